"""Beat in several processes: one leads, and whoever follows it neither repeats the past nor skips the present."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.worker
HERE = Path(__file__).parent
LOCK_SECONDS = 2.0
SCHEDULE = {"tick": {"task": "shop.ticked", "schedule": 0.5}}


class Beats:
    """Beat processes of one app."""

    def __init__(self, shop):
        self._shop, self.processes = shop, []

    def start(self):
        number = len(self.processes)
        words = ["beat", "-S", "qx_cache_celery.beat:SingletonScheduler", "-l", "INFO", "--pidfile="]
        words += ["-s", str(self._shop.folder / f"schedule-{number}")]
        with (self._shop.folder / f"beat-{number}.log").open("wb") as log:
            line = [sys.executable, "-m", "celery", "-A", "shop", *words]
            self.processes.append(subprocess.Popen(line, cwd=HERE, stdout=log, stderr=subprocess.STDOUT))
        self._shop.until(lambda: "beat: Starting" in self.log(number), what=f"beat {number}")
        return number

    def log(self, number):
        return (self._shop.folder / f"beat-{number}.log").read_text(errors="replace")

    def leads(self, number):
        log = self.log(number)
        return log.count("leads from now on") > log.count("leads no more")

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@pytest.fixture
def shop(shop_with):
    shop = shop_with(
        beat_schedule=SCHEDULE,
        beat_max_loop_interval=0.2,
        qx_cache_beat_lock_ttl=LOCK_SECONDS,
        task_ignore_result=True,
    )
    shop.start()
    return shop


@pytest.fixture
def beats(shop):
    beats = Beats(shop)
    yield beats
    beats.stop()


def ticks(shop):
    return [float(row["tick"].split()[1]) for row in shop.journal("tick")]


def test_the_first_leads_the_second_follows_and_each_tick_is_dispatched_once(shop, beats):
    first, second = beats.start(), beats.start()
    shop.until(lambda: len(ticks(shop)) > 3)
    assert beats.leads(first)
    assert not beats.leads(second)

    killed_at = time.time()
    beats.processes[first].kill()
    shop.until(lambda: ticks(shop)[-1] > killed_at and beats.leads(second), what="a tick of the second")
    after = min(row["at"] for row in shop.journal("tick") if float(row["tick"].split()[1]) > killed_at)
    assert after - killed_at < 1.2 * LOCK_SECONDS + 0.5 + 0.5  # a turn, and a noisy machine

    third = beats.start()
    stopped_at = time.time()
    beats.processes[second].terminate()
    shop.until(lambda: beats.leads(third), seconds=5, what="the handover")
    assert time.time() - stopped_at < 1 + 0.5
    number = len(ticks(shop))
    shop.until(lambda: len(ticks(shop)) > number + 3)

    seen = ticks(shop)
    assert len(set(seen)) == len(seen)
    gaps = [later - earlier for earlier, later in zip(sorted(seen), sorted(seen)[1:], strict=False)]
    missed = [gap for gap in gaps if round(gap, 3) != 0.5]
    assert len(missed) <= 2  # one a change of leaders
    assert max(missed, default=0) <= 1.2 * LOCK_SECONDS + 2 * 0.5


def test_a_leader_that_was_frozen_past_its_lock_follows_and_repeats_nothing(shop, beats):
    first, second = beats.start(), beats.start()
    shop.until(lambda: len(ticks(shop)) > 1)
    beats.processes[first].send_signal(signal.SIGSTOP)
    shop.until(lambda: beats.leads(second), what="the second to lead")
    number = len(ticks(shop))
    shop.until(lambda: len(ticks(shop)) > number + 1)
    beats.processes[first].send_signal(signal.SIGCONT)
    shop.until(lambda: "leads no more" in beats.log(first), what="the first to notice")
    number = len(ticks(shop))
    shop.until(lambda: len(ticks(shop)) > number + 3)
    assert not beats.leads(first)
    assert len(set(ticks(shop))) == len(ticks(shop))


def test_a_leader_without_its_redis_stands_again_and_beat_does_not_end(shop, beats, records):
    number = beats.start()
    shop.until(lambda: len(ticks(shop)) > 1)
    shop.redis.delete("shop:lock:1:{beat}")
    shop.until(lambda: beats.log(number).count("leads from now on") == 2, what="the second election")
    seen = len(ticks(shop))
    shop.until(lambda: len(ticks(shop)) > seen + 1)
    assert beats.processes[number].poll() is None
