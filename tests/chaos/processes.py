"""Celery processes that are killed, frozen and started anew, and the journal that they write."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from journals import rows_in

HERE = Path(__file__).parent
REDIS_TRANSPORT = {"unacked_restore_interval": 1, "unacked_restore_throttle": 1, "unacked_mutex_expire": 2}
RABBITMQ_TRANSPORT = {"confirm_publish": True}
STOP_SECONDS = 60.0


def start(log_path, environment, *words):
    """A celery command, in a process group of its own."""
    with log_path.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "celery", *words],
            cwd=HERE,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def start_worker(log_path, environment, *words, app="chaos_app"):
    """A worker of one of the apps here."""
    words = ["-A", app, "worker", "-l", "INFO", *words, "--without-mingle", "--without-gossip"]
    return start(log_path, environment, *words)


def read_journal(folder, what=None):
    """What the processes have written down so far; of one kind where one is named."""
    rows = rows_in(folder / "journal")
    return rows if what is None else [row for row in rows if row["what"] == what]


class Crew:
    """Named processes; ``begin``, given a name and a number, starts one."""

    def __init__(self, names, begin):
        self._begin, self._begun, self.living = begin, 0, {}
        self._mutex, self._over, self._supervisor = threading.RLock(), threading.Event(), None
        for name in names:
            self.start(name)

    def start(self, name):
        self._begun += 1
        self.living[name] = self._begin(name, self._begun)

    def supervise(self):
        """From now on start anew what ends by itself."""
        self._supervisor = threading.Thread(target=self._look_after)
        self._supervisor.start()

    def kill(self, name):
        """With all its children, as a machine that fails does."""
        self._signal(name, signal.SIGKILL)
        self.living[name].wait()

    def stop(self, name):
        """In order; an error when that takes longer than a minute."""
        self.living[name].terminate()
        self.living[name].wait(STOP_SECONDS)

    def replace(self, name, end):
        """End one, by ``kill`` or ``stop``, and start it anew."""
        with self._mutex:
            end(name)
            self.start(name)

    def freeze(self, name, seconds):
        self._signal(name, signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(name, signal.SIGCONT)

    def close(self):
        self._over.set()
        if self._supervisor is not None:
            self._supervisor.join()
        for name in self.living:
            with suppress(ProcessLookupError):
                self._signal(name, signal.SIGKILL)
            self.living[name].wait()

    def _look_after(self):
        while not self._over.wait(0.1):
            with self._mutex:
                for name, process in list(self.living.items()):
                    if process.poll() is not None:
                        self.start(name)

    def _signal(self, name, number):
        os.killpg(self.living[name].pid, number)
