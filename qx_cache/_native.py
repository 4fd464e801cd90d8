"""Threads and locks of the system, also where gevent has put greenlets in their place.

A heartbeat in a greenlet would starve beside one that computes, and lose its leases; see python-redis-lock #91.
"""

import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any


def native(module: str, name: str) -> Any:
    """``module.name`` as the standard library has it, before gevent patched it."""
    patcher = sys.modules.get("gevent.monkey")
    return getattr(import_module(module), name) if patcher is None else patcher.get_original(module, name)


def patched() -> bool:
    """True where gevent has put greenlets in the place of threads."""
    patcher = sys.modules.get("gevent.monkey")
    return patcher is not None and bool(patcher.is_module_patched("threading"))


class NativeThread:
    """A daemon thread that has started.

    Args:
        target: What it runs.
        name: What it is called, where threads have names.
    """

    def __init__(self, target: Callable[[], None], name: str) -> None:
        self._target = target
        self._thread: threading.Thread | None = None
        if patched():
            self._running = native("_thread", "allocate_lock")()
            self._running.acquire()
            native("_thread", "start_new_thread")(self._run, ())
        else:
            self._thread = threading.Thread(target=target, name=name, daemon=True)
            self._thread.start()

    def join(self) -> None:
        """Return when it has ended."""
        if self._thread is not None:
            self._thread.join()
        else:
            with self._running:
                pass

    def _run(self) -> None:
        try:
            self._target()
        finally:
            self._running.release()
