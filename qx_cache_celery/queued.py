"""The claim that a task made in the queue when it was published, and its end: by name, whatever became of it."""

import logging
from typing import Any

from celery import Celery
from celery.exceptions import Reject, Retry

from qx_cache import CacheError
from qx_cache_celery import delivery
from qx_cache_celery.guard import Proceed, Run
from qx_cache_celery.naming import CLAIM_HEADER
from qx_cache_celery.options import lock_mode
from qx_cache_celery.runtime import insist, runtime_of

_log = logging.getLogger("qx_cache_celery.task")
_PATIENCE_SECONDS = 60.0
"""A claim that nobody ends holds up others for an hour: its end is worth a worker slot for this long."""


class Claim:
    """A name in the queue that a task has claimed.

    Args:
        app: Whose Redis it is in.
        task_id: Of the task.
        place: Namespace and name, as the message says.
    """

    def __init__(self, app: Celery, task_id: str, place: tuple[str, str]) -> None:
        self._app, self._id, self.place = app, task_id, place
        self.ended = False
        """True once it is known that it is no more."""

    def end(self, patience_seconds: float = 0.0) -> None:
        """End it, if Redis answers within ``patience_seconds``, or at once; else it is left to lapse."""
        try:
            if patience_seconds:
                insist(self._free, patience_seconds=patience_seconds)
            else:
                self._free()
        except CacheError as error:
            _log.warning("task %s: its place in the queue is left to lapse: %s", self._id, error)

    def _free(self) -> None:
        space, name = self.place
        runtime_of(self._app).hint(space, lambda known: known.free(name, self._id))
        self.ended = True


def claim_in(app: Celery, request: Any) -> Claim | None:
    """The claim that a delivery's message tells of."""
    told = delivery.header(request, CLAIM_HEADER)
    if not isinstance(told, list | tuple) or len(told) != 2 or not all(told):
        return None
    return Claim(app, str(request.id), (str(told[0]), str(told[1])))


class QueueGuard:
    """Ends the claim of a task that begins, where the acquire of its lock does not."""

    def __init__(self, run: Run) -> None:
        self._run = run
        run.claim = claim_in(run.task.app, run.request)

    def around(self, proceed: Proceed) -> Any:
        """Proceed; the claim is over when this is, unless the task goes on elsewhere."""
        claim = self._run.claim
        if claim is None:
            return proceed()
        if not self._lock_ends_it():
            claim.end()
        try:
            result = proceed()
        except (delivery.Deferral, Retry, Reject):
            raise
        except (delivery.Skip, Exception):
            self._make_sure(claim)
            raise
        self._make_sure(claim)
        return result

    def _lock_ends_it(self) -> bool:
        """True where the lock has the claim's name and is asked first: not where a record may answer before."""
        run = self._run
        recorded = run.task.qx_record_guard is not None
        return not recorded and lock_mode(run.task) != "until_executing" and run.claim.place == run.lock_place

    def _make_sure(self, claim: Claim) -> None:
        if not claim.ended:
            claim.end(_PATIENCE_SECONDS)
