"""A server, workers of one helper, and what is seen of one row."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from journals import rows_in

HERE = Path(__file__).parent
PATIENCE = 8.0
"""How long to wait for what may never come, in seconds."""
A_MOMENT = 1.0
"""For what a helper does once a task has ended."""


class Stage:
    """One server, one folder, some workers, and what was written down."""

    def __init__(self, rival, server, folder, visibility=60.0):
        self.server, self.folder, self.workers = server, folder, []
        os.environ.update(
            RIVAL=rival, RIVAL_URL=server.url, RIVAL_FOLDER=str(folder), RIVAL_VISIBILITY=str(visibility)
        )
        import rivals_app

        self.app = rivals_app

    def start(self, concurrency=3):
        """One more worker, once it takes messages."""
        number = len(self.workers)
        log = self.folder / f"worker-{number}.log"
        words = ["worker", "-c", str(concurrency), "-n", f"w{number}@rivals", "-l", "INFO", "--without-mingle"]
        with log.open("wb") as out:
            self.workers.append(
                subprocess.Popen(
                    [sys.executable, "-m", "celery", "-A", "rivals_app", *words],
                    cwd=HERE,
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        assert until(lambda: "ready." in log.read_text(), 30), log.read_text()

    def stop(self):
        """End all workers."""
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()

    def journal(self, what, order):
        """Its lines."""
        return [row for row in rows_in(self.folder / "journal") if row["what"] == what and row["order"] == order]


class Case:
    """One row: its calls, and what came of them."""

    def __init__(self, stage, order, **plan):
        self.stage, self.order, self.results = stage, order, []
        (stage.folder / f"plan-{order}").write_text(json.dumps(plan))
        self.before = set(self.locks())

    def publish(self, acks="early", *, by_name=False, keyword=False, **options):
        """Call the task; what it raises is what the caller sees."""
        task = self.stage.app.TASKS[acks]
        args, kwargs = ((), {"order": self.order}) if keyword else ((self.order,), {})
        try:
            if by_name:
                self.results.append(self.stage.app.app.send_task(task.name, args, kwargs, **options))
            else:
                self.results.append(task.apply_async(args, kwargs, **options))
        except Exception as error:
            self.results.append(error)
        return self.results[-1]

    def running(self, number=1):
        """Wait for so many starts; False when they do not come."""
        return until(lambda: len(self.stage.journal("start", self.order)) >= number)

    def kill_child(self):
        """The process that runs it."""
        self.running()
        os.kill(self.stage.journal("start", self.order)[-1]["pid"], signal.SIGKILL)

    def open(self):
        """Let the bodies go on."""
        (self.stage.folder / f"gate-{self.order}").touch()

    def locks(self):
        """The helper's own keys, and for how long they live."""
        client = self.stage.server.client()
        own = [key for key in client.scan_iter() if not key.startswith((b"celery", b"_kombu", b"unacked"))]
        return {key: client.ttl(key) for key in own if client.type(key) == b"string"}

    def told(self):
        """Runs, how many at once, states, and what lock is left."""
        until(lambda: all(ended(result) for result in self.results))
        starts = self.stage.journal("start", self.order)
        until(lambda: len(self.stage.journal("over", self.order)) >= len(starts), 1)
        runs = f"{len(starts)} run" + ("s" if len(starts) != 1 else "")
        runs += f", {self._at_once()} at once" if len(starts) > 1 else ""
        same = (
            " (one result)" if len({getattr(one, "id", one) for one in self.results}) < len(self.results) else ""
        )
        return f"{runs}; {', '.join(map(said, self.results))}{same}{self._left()}"

    def _left(self):
        if until(lambda: not self.locks().keys() - self.before, 2):
            return ""
        left = {key: ttl for key, ttl in self.locks().items() if key not in self.before}
        return "; locked for ever" if -1 in left.values() else f"; locked for {round(max(left.values()), -2)} s"

    def _at_once(self):
        over = {
            (row["id"], row["pid"], row["retries"]): row["at"] for row in self.stage.journal("over", self.order)
        }
        starts = self.stage.journal("start", self.order)
        spans = [(row["at"], over.get((row["id"], row["pid"], row["retries"]), row["at"])) for row in starts]
        return max(sum(begun <= at < ended or begun == at for begun, ended in spans) for at, _ in spans)


def until(condition, seconds=PATIENCE):
    """Wait for it; whether it came."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def ended(result):
    return result is None or isinstance(result, Exception) or result.ready()


def said(result):
    if result is None:
        return "None"
    return type(result).__name__ if isinstance(result, Exception) else str(result.state)
