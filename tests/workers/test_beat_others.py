"""Schedulers that are not ours: RedBeat's with our leader, and Celery's own twice, with nobody to lead."""

import re
import sys
from itertools import pairwise

import pytest
from beating import HERE, beats_of, dues
from celery import Celery, _state

from qx_cache_celery import beat

pytestmark = pytest.mark.worker
LOCK_SECONDS = 2.0
DOCS = HERE.parent.parent / "docs" / "beat.md"
PLAIN = "celery.beat:PersistentScheduler"


@pytest.fixture
def keeper_with(shop_with):
    def make(task, every, *args, **settings):
        shop = shop_with(
            name="timekeeper",
            imported=False,
            beat_schedule={"job": {"task": f"timekeeper.{task}", "schedule": every, "args": args}},
            beat_max_loop_interval=0.2,
            qx_cache_beat_lock_ttl=LOCK_SECONDS,
            task_ignore_result=True,
            **settings,
        )
        shop.start(concurrency=3)
        return shop

    return make


class Missing:
    """Finds no django-celery-beat, as if it were not installed."""

    def find_spec(self, name, *_):
        if name == "django_celery_beat":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_without_django_celery_beat_the_error_says_what_is_missing(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("django_celery_beat", "qx_cache_celery.beat_"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(ImportError, match="SingletonDatabaseScheduler needs django-celery-beat, which is not"):
        _ = beat.SingletonDatabaseScheduler
    with pytest.raises(AttributeError, match="no attribute 'SingletonScheduling'"):
        _ = beat.SingletonScheduling


def test_the_code_of_the_docs_runs(monkeypatch):
    monkeypatch.setattr(_state, "_on_app_finalizers", set())  # its task is not shared with the apps of later tests
    names = {"app": Celery("docs", set_as_current=False)}
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert 3 == len(blocks)
    for block in blocks:
        exec(block, names)  # noqa: S102  # our own text
    assert names["SingletonRedBeatScheduler"].shared_schedule
    assert 50 == names["app"].tasks[names["minutely"].name].min_hold


def test_redbeat_with_our_leader_dispatches_each_tick_once_and_is_followed(keeper_with):
    shop = keeper_with("ticked", 1.0, redbeat_lock_key=None)
    with beats_of(shop, "redbeats:SingletonRedBeatScheduler") as beats:
        first, second = beats.start(), beats.start()
        shop.until(lambda: len(shop.journal("tick")) > 2)
        assert beats.leads(first)
        assert shop.journal("looked", pid=beats.pid(first))
        assert [] == shop.journal("looked", pid=beats.pid(second))

        killed_at = beats.kill(first)
        shop.until(lambda: dues(shop.journal("tick"))[-1] > killed_at, what="a tick of the second")
        assert beats.leads(second)
        after = min(row["at"] for row in shop.journal("tick") if row["at"] > killed_at + 0.2)
        assert after - killed_at < 1.2 * LOCK_SECONDS + 1 + 0.5  # a turn of the schedule, and a noisy machine

        third = beats.start()
        beats.stop_one(second)
        shop.until(lambda: beats.leads(third), seconds=5, what="the handover")
        number = len(shop.journal("tick"))
        shop.until(lambda: len(shop.journal("tick")) > number + 1)
        seen = dues(shop.journal("tick"))
        assert len(set(seen)) == len(seen)


def test_two_plain_beats_and_a_singleton_longer_than_its_schedule_never_overlap(keeper_with):
    shop = keeper_with("long", 1.0, 2.2)
    with beats_of(shop, PLAIN) as beats:
        beats.start(), beats.start()
        shop.until(lambda: len(shop.journal("end")) > 3)
    rows = [row for row in shop.journal() if row["what"] in {"start", "end"}]
    assert ["start", "end"] * 4 == [row["what"] for row in rows][:8]
    assert shop.journal("skipped", reason="lock_held")


def test_two_plain_beats_and_a_short_job_with_min_hold_run_it_once_a_slot(keeper_with):
    shop = keeper_with("short", 3.0)
    with beats_of(shop, PLAIN) as beats:
        beats.start(wait=False), beats.start()  # at once, so that their copies come soon after each other
        shop.until(lambda: len(shop.journal("start")) > 3)
    starts = [row["at"] for row in shop.journal("start")]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert all(2 < gap < 4 for gap in gaps), gaps
    assert shop.journal("skipped", reason="lock_held")
