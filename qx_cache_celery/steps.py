"""What runs in a worker's main process: giving back what its dead children held."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined, unused-ignore]
from billiard.exceptions import Terminated, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry
from celery.worker.request import Request

from qx_cache import CacheError, process_prefix
from qx_cache_celery.guard import GuardedTask
from qx_cache_celery.naming import lock_name, record_name
from qx_cache_celery.options import owner_host
from qx_cache_celery.queued import claim_in
from qx_cache_celery.runtime import runtime_of

_log = logging.getLogger("qx_cache_celery.task")
_DYING_SECONDS = 30.0


class GuardedRequest(Request):
    """A request whose dead pool child keeps neither its claim nor its lock.

    A lost worker's message is requeued, and taken over at once. After a hard time limit, or a revocation that
    terminates, the task does not run again, and its lock is free for others. What cannot be told is left to lapse.
    """

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002
        """Give back what the dead child held, before Celery puts the message back."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, WorkerLostError | Terminated):
            self._abandon_claim(self)
            self._free_lock(self)
        if not isinstance(error, Retry | Ignore | Reject):  # these go on, or were settled where the task ran
            self._leave_queue()
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:  # noqa: FBT001
        """End its claim in the queue before anybody can see that it is over."""
        self._leave_queue()
        super()._announce_revoked(reason, terminated, signum, expired)  # type: ignore[misc]  # not in its stubs

    def _leave_queue(self) -> None:
        claim = claim_in(self.task.app, self._context)  # type: ignore[attr-defined]  # as Celery does
        if claim is not None:
            claim.end()

    def on_timeout(self, soft: bool, timeout: float) -> None:  # noqa: FBT001
        """Free the lock once the child is dead, which is killed after this."""
        if not soft:
            self._leave_queue()
        super().on_timeout(soft, timeout)
        pid, task = self.worker_pid, cast("GuardedTask", self.task)
        if not soft and pid and task.qx_lock_guard is not None:
            wait = threading.Thread(target=_when_dead, args=(pid, lambda: self._free_lock(self)), daemon=True)
            wait.start()

    @staticmethod
    def _abandon_claim(request: Any) -> None:
        """End the claim of exactly that child for this task."""
        task, pid = request.task, request.worker_pid
        if not pid or task.qx_record_guard is None:
            return
        try:
            key = record_name(task, request._context, request.args, request.kwargs)  # noqa: SLF001  # as Celery does
            store = runtime_of(task.app).store(task.qx_options)
            store.abandon_lost(key, holder=request.id, owner_prefix=_prefix(pid))
        except CacheError as failure:
            _log.warning("the claim of lost task %s is left to lapse: %s", request.id, failure)

    @staticmethod
    def _free_lock(request: Any) -> None:
        """Free the lock of exactly that child for this task."""
        task, pid = request.task, request.worker_pid
        if not pid or task.qx_lock_guard is None:
            return
        try:
            name = lock_name(task, request.args, request.kwargs)
            lock = runtime_of(task.app).lock(name, ttl=task.qx_options.duration(task.app, "lock_ttl"))
            lock.abandon_lost(holder=request.id, owner_prefix=_prefix(pid))
        except CacheError as failure:
            _log.warning("the lock of lost task %s is left to lapse: %s", request.id, failure)


def _prefix(pid: int) -> str:
    return process_prefix(owner_host(), os.getpid(), pid)


def _when_dead(pid: int, act: Callable[[], None]) -> None:
    """Wait for the end of a child, which somebody else reaps."""
    until = time.monotonic() + _DYING_SECONDS
    while time.monotonic() < until:
        try:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                break
        except ChildProcessError:  # reaped already
            break
        time.sleep(0.05)
    else:
        return
    act()
