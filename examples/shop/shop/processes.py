"""The processes of ``python -m shop``: started, listened to, started again, and always ended."""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

HOME = Path(__file__).parent.parent
_PR_SET_PDEATHSIG = 1
_PATIENCE_SECONDS = 10.0
_SHORTEST_LIFE_SECONDS = 5.0
_LOOK_SECONDS = 0.2


class StageError(Exception):
    """A process ended before it had done anything."""


class Program:
    """One process, and what it has written.

    Args:
        name: Stands before its lines.
        words: What follows ``python -m``.
        environment: For it.
    """

    def __init__(self, name: str, words: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.name, self.words = name, words
        self.began = time.monotonic()
        self._rest = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=HOME,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,  # a Ctrl-C in the terminal is for us alone; we end the others in order
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509  # one thread here
        )
        self.output = cast("IO[bytes]", self.process.stdout)
        os.set_blocking(self.output.fileno(), False)

    def lines(self) -> list[str]:
        """What it has written since it was last asked, whole lines only."""
        piece = self.output.read(65_536) or b""
        *whole, self._rest = (self._rest + piece).split(b"\n")
        return [line.decode(errors="replace") for line in whole]

    def ask_to_end(self) -> None:
        """A worker ends what it is doing first."""
        with suppress(ProcessLookupError):
            self.process.terminate()

    def end(self, seconds: float) -> None:
        """Wait for it, but not for ever, and then end whatever is left of it."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.output.close()


class Stage:
    """The processes that run.

    Args:
        environment: For all of them.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._programs: list[Program] = []
        self._selector = selectors.DefaultSelector()

    def start(self, name: str, *words: str) -> None:
        """Start ``python -m <words>``."""
        program = Program(name, words, self._environment)
        self._programs.append(program)
        self._selector.register(program.output, selectors.EVENT_READ, program)

    def follow(self) -> Iterator[tuple[str, str]]:
        """Name and line, for each line that is written; goes on for ever.

        Raises:
            StageError: A process ended right after its start.
        """
        while True:
            ended = [program for program in self._programs if program.process.poll() is not None]
            for key, _ in self._selector.select(_LOOK_SECONDS):
                for line in key.data.lines():
                    yield key.data.name, line
            for program in ended:
                yield from self._start_again(program)

    def _start_again(self, program: Program) -> Iterator[tuple[str, str]]:
        """As Docker and systemd do it."""
        self._selector.unregister(program.output)
        self._programs.remove(program)
        code = program.process.returncode
        program.end(0)
        if time.monotonic() - program.began < _SHORTEST_LIFE_SECONDS:
            raise StageError(f"{program.name} ended with code {code} as soon as it was started")
        yield program.name, f"ended with code {code}, and is started again"
        self.start(program.name, *program.words)

    def stop(self) -> None:
        """End everything, in order where there is time for it."""
        for program in self._programs:
            program.ask_to_end()
        until = time.monotonic() + _PATIENCE_SECONDS
        try:
            for program in self._programs:
                program.end(until - time.monotonic())
        finally:  # somebody is impatient
            for program in self._programs:
                with suppress(ProcessLookupError):
                    os.killpg(program.process.pid, signal.SIGKILL)
        self._selector.close()


def _die_with_parent() -> None:
    """The kernel kills this process when ours ends, however it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
