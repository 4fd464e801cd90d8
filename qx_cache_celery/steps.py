"""What runs in a worker's main process."""

import logging
import os
from typing import Any

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined, unused-ignore]
from billiard.exceptions import WorkerLostError
from celery.worker.request import Request

from qx_cache import CacheError, process_prefix
from qx_cache_celery.naming import record_name
from qx_cache_celery.options import owner_host
from qx_cache_celery.runtime import runtime_of

_log = logging.getLogger("qx_cache_celery.task")


class GuardedRequest(Request):
    """A request whose lost pool child does not keep its lease: the requeued message is taken over at once."""

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:  # noqa: FBT001, FBT002
        """End the dead child's lease before Celery puts the message back."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):
            error = error.exc
        if isinstance(error, WorkerLostError):
            self._abandon(self)
        return super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)

    @staticmethod
    def _abandon(request: Any) -> None:
        """End the lease of exactly that child and this task; what cannot be told is left to lapse."""
        task, pid = request.task, request.worker_pid
        if not pid or task.qx_record_guard is None:
            return
        prefix = process_prefix(owner_host(), os.getpid(), pid)
        try:
            key = record_name(task, request._context, request.args, request.kwargs)  # noqa: SLF001  # as Celery does
            store = runtime_of(task.app).store(task.qx_options)
            store.abandon_lost(key, holder=request.id, owner_prefix=prefix)
        except CacheError as failure:
            _log.warning("the claim of lost task %s is left to lapse: %s", request.id, failure)
