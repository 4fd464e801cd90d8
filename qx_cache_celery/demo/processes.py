"""Workers and beat as processes: started, killed, frozen, and always ended."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qx_cache_celery.demo.ledger import Ledger

_PR_SET_PDEATHSIG = 1


class DemoError(Exception):
    """The demo cannot go on; says what it waited for."""


def until(condition: Callable[[], Any], what: str, seconds: float) -> Any:
    """Wait for a truthy value and return it.

    Raises:
        DemoError: It did not come in time.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise DemoError(f"waited {seconds:.0f} s in vain for {what}")


class Crew:
    """The processes of one phase.

    Args:
        folder: For logs.
        environment: What the app reads.
        ledger: Where workers say that they are ready.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], ledger: Ledger) -> None:
        self._folder, self._environment, self._ledger = folder, dict(environment), ledger
        self._side = environment["QX_DEMO_SIDE"]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._killed: set[int] = set()

    def worker(self) -> None:
        """Start one worker; ``wait_ready`` waits for it."""
        name = f"{self._side}{len(self._processes)}@demo"
        self._start(name, "worker", "-n", name, "-c", "4", "-l", "INFO", "--without-mingle", "--without-gossip")

    def beat(self) -> None:
        """Start beat."""
        schedule = str(self._folder / f"beat-{self._side}")
        self._start("beat", "beat", "-s", schedule, "-l", "INFO", "--pidfile", "")

    def wait_ready(self, workers: int) -> None:
        """Wait until so many workers take messages."""
        query = "SELECT count(*) FROM events WHERE kind='worker ready' AND side=?"
        until(lambda: self._ledger.rows(query, self._side)[0][0] >= workers, f"{workers} workers ready", 25)

    def quiet(self, parent: int, but: int) -> None:
        """Stop a worker's main process, and wait until its children are done, but for one.

        A fault is to hit its target only: a beat job that is frozen with it would go on later beside another.
        """
        os.kill(parent, signal.SIGSTOP)
        query = """SELECT pid FROM events WHERE parent=?
                   AND pid NOT IN (SELECT pid FROM events WHERE kind LIKE 'killed%')
                   AND kind IN ('enter', 'leave', 'report start', 'report end') GROUP BY pid
                   HAVING sum(kind IN ('enter', 'report start')) > sum(kind IN ('leave', 'report end'))"""
        gone = {but, *self._killed}

        def done() -> bool:
            return all(pid in gone for (pid,) in self._ledger.rows(query, parent))

        until(done, "the other children to be done", 10)

    def kill_child(self, pid: int) -> None:
        """End one pool child."""
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def send(self, parent: int, number: int) -> None:
        """A signal to a worker and all its children."""
        os.killpg(parent, number)

    def stop(self) -> None:
        """End everything that was started."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self, name: str, *words: str) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "qx_cache_celery.demo.app", *words],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # one thread here
            )
        self._processes.append(process)


def _die_with_parent() -> None:
    """The kernel kills this process when the demo ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
