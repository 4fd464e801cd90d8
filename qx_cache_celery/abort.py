"""Ending a body whose lease is lost: an exception from outside, that cannot land in our own cleanup.

How it gets there depends on where the body runs (measured in the table of the docs):

- on the main thread (prefork, solo): a signal of ours, ``SIGURG``, which Celery does not use and the system
  ignores by default. It ends a sleep and a Python loop. Where the program has a handler for it, the next way is
  taken.
- on another thread: an asynchronous exception, which comes between two bytecodes: after a sleep, within a loop.
- in a gevent greenlet: thrown from its hub, at its next switch.

A C call that keeps the interpreter's lock is not ended by any of them; ``self.lease.ensure()`` after it is.
"""

import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from qx_cache import Lease
from qx_cache_celery.interrupt import LeaseLost

ABORT_SIGNAL = signal.SIGURG
_armed: "dict[int, _Arming]" = {}
"""What the signal may end: at most one on the main thread of a process."""


_REASON = "it is held by another now, or may be"

Watched = tuple[Lease, float | None]
"""A lease, and for how many seconds it may be in doubt; None: for ever."""


@contextmanager
def aborted_when_lost(*watched: Watched) -> Iterator[Callable[[], None]]:
    """Raise ``LeaseLost`` in the block when one of these is lost; nothing of it comes after the block.

    What it gives is to be called when the block learns of the loss in another way: then it is not told again.
    """
    arming = _arming()
    for lease, doubt_limit in watched:
        lease.when_lost(arming.fire)
        if doubt_limit is not None:
            lease.when_doubtful(arming.fire, doubt_limit)
    try:
        arming.arm()
        if any(lease.lost for lease, _ in watched):
            raise LeaseLost(_REASON)  # before the body begins
        yield arming.stand_down
    finally:
        arming.disarm()


def _arming() -> "_Arming":
    patcher = sys.modules.get("gevent.monkey")
    if patcher is not None and patcher.is_module_patched("threading"):
        return _ByHub()
    if threading.current_thread() is threading.main_thread() and _signal_is_ours():
        return _BySignal()
    return _ByThreadState()


class _Arming:
    """One body that may be ended. ``fire`` comes from a heartbeat, once; it must not block."""

    def __init__(self) -> None:
        self._live = False
        self._mutex = threading.Lock()

    def arm(self) -> None:
        self._live = True

    def disarm(self) -> None:
        self._live = False

    def stand_down(self) -> None:
        """Fire no more, from whatever thread this is called."""
        self._live = False

    def fire(self) -> None:
        raise NotImplementedError


class _BySignal(_Arming):
    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.main_thread().ident or 0
        self._fired = False

    def arm(self) -> None:
        _armed[self._thread] = self
        super().arm()

    def disarm(self) -> None:
        super().disarm()
        if _armed.get(self._thread) is self:
            del _armed[self._thread]

    def fire(self) -> None:
        if self._live:
            self._fired = True
            signal.pthread_kill(self._thread, ABORT_SIGNAL)

    def strike(self) -> None:
        """On the main thread: once, and only while the body runs."""
        if self._live and self._fired:
            self._live = False
            raise LeaseLost(_REASON)


class _ByThreadState(_Arming):
    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._fired = False

    def disarm(self) -> None:
        with self._mutex:
            self._live = False
        if self._fired:
            self._sweep()

    def stand_down(self) -> None:
        if threading.get_ident() == self._thread:
            self.disarm()

    def _sweep(self) -> None:
        """One that was set and has not come yet does not come any more.

        It is replaced and the replacement awaited. To set none instead would leave CPython 3.11 looking for it at
        every jump, and under a tracer (coverage, a debugger) waiting for it at the next call, for ever.
        """
        try:
            _set_async(self._thread, _Swept)
            while True:
                pass
        except _Swept:
            pass

    def fire(self) -> None:
        with self._mutex:
            if self._live:
                self._live, self._fired = False, True
                _set_async(self._thread, LeaseLost)


class _ByHub(_Arming):
    def __init__(self) -> None:
        super().__init__()
        import gevent  # noqa: PLC0415  # patched, so it is there

        self._greenlet: Any = gevent.getcurrent()
        self._loop: Any = gevent.get_hub().loop

    def fire(self) -> None:
        self._loop.run_callback_threadsafe(self._strike)

    def _strike(self) -> None:
        if self._live:
            self._live = False
            self._greenlet.throw(LeaseLost(_REASON))


class _Swept(BaseException):
    """Takes the place of a loss that came too late."""


def _set_async(thread: int, kind: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(kind))


def _signal_is_ours() -> bool:
    """True when our handler is in place; never in the place of one of the program's own."""
    current = signal.getsignal(ABORT_SIGNAL)
    if current is _on_signal:
        return True
    if current not in {signal.SIG_DFL, signal.SIG_IGN}:
        return False
    signal.signal(ABORT_SIGNAL, _on_signal)
    return True


def _on_signal(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # as the standard library calls it
    arming = _armed.get(threading.main_thread().ident or 0)
    if isinstance(arming, _BySignal):
        arming.strike()
