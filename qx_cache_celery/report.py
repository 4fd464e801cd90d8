"""Telling what became of a delivery: one log line with flat ``extra`` fields, and one signal.

The fields: ``qx_event``, ``task_id``, ``task_name``, ``idempotency_key`` or ``lock_name`` and ``lock_key``,
``outcome``, ``fencing_token``, ``holder_task_id``, ``wait_seconds``. Keys may hold personal data: they are written
as a digest, unless ``qx_cache_log_keys`` is True. A handler that raises harms nothing: Celery logs it.
"""

import logging
from typing import Any

from celery import Task
from celery.utils.dispatch import Signal

from qx_cache import Claimed, Done, Interrupted, StoreError, digest
from qx_cache_celery import signals

_log = logging.getLogger("qx_cache_celery.task")
_DIGEST_LENGTH = 16


class Subject:
    """What is told about: a delivery, and the record or the lock that decided over it.

    Args:
        task: The task.
        task_id: Of the delivery.
        key: Name of the record or of the lock.
        lock: True where ``key`` names a lock.
    """

    def __init__(self, task: "Task[Any, Any]", task_id: str, key: str, *, lock: bool = False) -> None:
        self._task, self._id, self.key, self._lock = task, task_id, key, lock

    def log(self, level: int, event: str, message: str, *args: Any, **fields: Any) -> None:
        """One line; ``message`` begins with "task %s" for the task id."""
        extra = {"qx_event": event, "task_id": self._id, "task_name": self._task.name, **self._place(), **fields}
        _log.log(level, message, self._id, *args, extra=extra)

    def send(self, signal: Signal, **told: Any) -> None:
        """One signal."""
        signal.send(sender=self._task, task_id=self._id, key=self.key, **told)

    def _place(self) -> dict[str, str]:
        shown = self.key
        if not self._task.app.conf.get("qx_cache_log_keys", False):
            shown = digest(self.key.encode())[:_DIGEST_LENGTH]
        return {"lock_name": self._task.name, "lock_key": shown} if self._lock else {"idempotency_key": shown}


def replayed(subject: Subject, done: Done) -> None:
    """A stored result is returned instead of a run."""
    fields = {"holder_task_id": done.holder, "fencing_token": done.fence, "outcome": "replayed"}
    subject.log(logging.INFO, "replayed", "task %s replays the result of %s", done.holder, **fields)
    subject.send(signals.task_replayed, holder=done.holder, age_seconds=done.age_seconds)


def taken_over(subject: Subject, claim: Claimed) -> None:
    """This run takes over from one that never ended."""
    message = "task %s takes over a run that never ended (attempt %d)"
    fields = {"fencing_token": claim.fence, "outcome": "reclaimed"}
    subject.log(logging.WARNING, "taken_over", message, claim.attempt, **fields)
    subject.send(signals.task_taken_over, attempt=claim.attempt, fence=claim.fence)


def interrupted(subject: Subject, seen: Interrupted) -> None:
    """A run began and its end is unknown, and the task is not simply to run again."""
    message = "task %s: run %d was interrupted, its end is unknown"
    fields = {"fencing_token": seen.fence, "holder_task_id": seen.holder, "outcome": "interrupted"}
    subject.log(logging.WARNING, "interrupted", message, seen.fence, **fields)
    subject.send(signals.task_interrupted, attempt=seen.attempt, fence=seen.fence, holder=seen.holder)


def deferred(subject: Subject, countdown: float, reason: str) -> None:
    """A copy was published, to be looked at again."""
    fields = {"wait_seconds": round(countdown, 3), "outcome": reason}
    subject.log(logging.INFO, "deferred", "task %s deferred for %.2f s: %s", countdown, reason, **fields)
    subject.send(signals.task_deferred, countdown=countdown, reason=reason)


def skipped(subject: Subject, reason: str, holder: str) -> None:
    """The task ends without a run, because another holds its lock."""
    fields = {"holder_task_id": holder, "outcome": reason}
    subject.log(logging.INFO, "skipped", "task %s skipped: %s by %s", reason, holder, **fields)
    subject.send(signals.task_skipped, reason=reason, holder=holder)


def already_queued(subject: Subject, other: str, *, running: bool) -> None:
    """A task was not published, because another one of its name is queued or running."""
    fields = {"holder_task_id": other, "outcome": "already_running" if running else "already_queued"}
    message = "task %s not published: task %s is " + ("running" if running else "queued")
    subject.log(logging.INFO, "already_queued", message, other, **fields)
    subject.send(signals.task_already_queued, holder=other, running=running)


def unclaimed(subject: Subject, error: StoreError) -> None:
    """A task is published although nobody can tell whether it is queued already, or which is the newest."""
    subject.log(logging.WARNING, "unclaimed", "task %s published unchecked: %s", error, outcome="error")


def ended(subject: Subject, how: str) -> None:
    """A delivery whose run has ended in a recorded way: nothing is left to do."""
    subject.log(logging.INFO, "ended", "task %s is not run again: %s", how, outcome=how)


def lease_lost(subject: Subject, fence: int, reason: str) -> None:
    """A run found that its lease or lock is not its own any more."""
    fields = {"fencing_token": fence, "outcome": "lost"}
    subject.log(logging.ERROR, "lease_lost", "task %s lost its lease during its run: %s", reason, **fields)
    subject.send(signals.lease_lost, fence=fence, reason=reason)


def unguarded(subject: Subject, error: StoreError) -> None:
    """A run goes on without its record or its lock, as ``on_store_error="run"`` asks for."""
    subject.log(logging.WARNING, "unguarded", "task %s runs unguarded: %s", error, outcome="error")


def degraded(subject: Subject, error: StoreError) -> None:
    """Redis gives no usable answer, and the row in the user's database decides alone."""
    subject.log(logging.WARNING, "degraded", "task %s goes by its row alone: %s", error, outcome="degraded")
    subject.send(signals.task_degraded, reason=str(error))


def stale(subject: Subject, fence: int) -> None:
    """Redis remembers a run that the user's database does not: it was forgotten there, or a backup restored."""
    message = "task %s: run %d is in Redis, but not in its database, which is right"
    subject.log(logging.WARNING, "stale", message, fence, fencing_token=fence, outcome="stale")
