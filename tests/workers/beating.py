"""What the tests of beat share: real beat processes, and a clock that a test can set."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
SINGLETON = "qx_cache_celery.beat:SingletonScheduler"


class Beats:
    """Beat processes of one app."""

    def __init__(self, shop, scheduler):
        self._shop, self._scheduler = shop, scheduler
        self.processes = []

    def start(self, *, wait=True):
        """Start one, with a schedule file of its own, and wait until it beats."""
        number = len(self.processes)
        words = ["beat", "-S", self._scheduler, "-l", "INFO", "--pidfile="]
        words += ["-s", str(self._shop.folder / f"schedule-{number}")]
        with (self._shop.folder / f"beat-{number}.log").open("wb") as log:
            line = [sys.executable, "-m", "celery", "-A", self._shop.name, *words]
            self.processes.append(subprocess.Popen(line, cwd=HERE, stdout=log, stderr=subprocess.STDOUT))
        if wait:
            self._shop.until(lambda: self._shop.journal("beating", pid=self.pid(number)), what=f"beat {number}")
        return number

    def log(self, number):
        return (self._shop.folder / f"beat-{number}.log").read_text(errors="replace")

    def leads(self, number):
        log = self.log(number)
        return log.count("leads from now on") > log.count("leads no more")

    def pid(self, number):
        return self.processes[number].pid

    def settle(self):
        """Wait until the last tick is recorded: what is dispatched and not recorded may be dispatched again."""
        entry, due = self._shop.journal("tick")[-1]["tick"].rsplit(" ", 1)

        def recorded():
            keys = list(self._shop.redis.scan_iter(f"*qx_beat_tick:{entry}*"))
            return keys and float(self._shop.redis.get(keys[0])) >= float(due)

        self._shop.until(recorded, what="the record of the last tick")

    def freeze(self, number):
        self.settle()
        self.processes[number].send_signal(signal.SIGSTOP)

    def kill(self, number):
        """End one without a word; when that was."""
        self.settle()
        killed_at = time.time()
        self.processes[number].kill()
        self.processes[number].wait()
        return killed_at

    def stop_one(self, number):
        """End one in order; when it was told."""
        self.settle()
        stopped_at = time.time()
        self.processes[number].terminate()
        self.processes[number].wait(timeout=10)
        return stopped_at

    def living(self):
        return [number for number, process in enumerate(self.processes) if process.poll() is None]

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


@contextmanager
def beats_of(shop, scheduler=SINGLETON):
    """Beats that end with the test."""
    beats = Beats(shop, scheduler)
    try:
        yield beats
    finally:
        beats.stop()


def dues(rows):
    """When the ticks of these lines of the journal were due."""
    return [float(row["tick"].rsplit(" ", 1)[1]) for row in rows]


class Clock:
    """A time that stands until the test sets it."""

    now = datetime(2026, 6, 1, tzinfo=UTC)

    @classmethod
    def set(cls, text):
        cls.now = datetime.fromisoformat(text).astimezone(UTC)


def now():
    """What schedules ask; a function of a module, as schedules are pickled."""
    return Clock.now
