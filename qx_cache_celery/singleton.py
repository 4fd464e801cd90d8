"""``SingletonTask``: one run at a time."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from celery.exceptions import Reject
from celery.result import AsyncResult

from qx_cache import (
    Acquired,
    CacheError,
    Duration,
    GuardedRun,
    Lease,
    LockInfo,
    LockNotHeldError,
    RunEnded,
    StoreError,
    SyncDistributedLock,
    Taken,
)
from qx_cache_celery import delivery, report
from qx_cache_celery.guard import GuardedTask, Proceed, Run
from qx_cache_celery.identity import KeySpec
from qx_cache_celery.interrupt import LeaseLost
from qx_cache_celery.naming import CONFLICT_HEADER, lock_name
from qx_cache_celery.options import check_option
from qx_cache_celery.runtime import insist, runtime_of

_log = logging.getLogger("qx_cache_celery.task")
_SHORTEST_MEMORY_SECONDS = 3600.0


class AlreadyRunningError(CacheError):
    """Another task holds the lock, and ``on_conflict="raise"`` was asked for.

    Args:
        name: The lock's name.
        holder_task_id: Who holds it.
    """

    def __init__(self, name: str, holder_task_id: str) -> None:
        super().__init__(name, holder_task_id)
        self.name, self.holder_task_id = name, holder_task_id

    def __str__(self) -> str:
        return f"the lock {self.name!r} is held by task {self.holder_task_id}"


class LockGuard:
    """Takes a run through its lock: acquire, skip or defer, and the release."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._key = lock_name(run.task, run.args, run.kwargs)
        self._subject = report.Subject(run.task, run.request, self._key, lock=True)
        app, options = run.task.app, run.options
        self._ttl = options.duration(app, "lock_ttl")
        self._interval = options.interval(app, self._ttl)
        self._policy = options.value(app, "on_store_error")
        self._on_lease_lost = options.value(app, "on_lease_lost")
        doubt_limit = options.value(app, "doubt_limit")
        self._doubt_limit = 0.0 if doubt_limit is None else doubt_limit
        self._min_hold = options.duration(app, "min_hold")
        self._released = self._told = False

    def around(self, proceed: Proceed) -> Any:
        """Proceed under the lock; raise what ends any other delivery."""
        try:
            lock = self._run.runtime.lock(
                self._key, ttl=self._ttl, holder=self._run.id, guarded=self._guarded(), min_hold=self._min_hold
            )
            attempt = lock.attempt()
        except StoreError as error:
            if self._policy == "raise":
                raise
            if self._policy == "defer":
                raise delivery.Deferral(f"store error: {error}", self._subject) from error
            report.unguarded(self._subject, error)
            return proceed()
        match attempt:
            case Acquired():
                return self._work(lock, proceed)
            case RunEnded():
                raise delivery.ended(self._subject, "its run has ended")
            case Taken():
                raise self._conflict(attempt)

    def _guarded(self) -> GuardedRun | None:
        """What the lock is to remember; nothing where an idempotency record does."""
        if self._run.task.qx_record_guard is not None:
            return None
        request = self._run.request
        memory = max(_SHORTEST_MEMORY_SECONDS, 2 * delivery.visibility_timeout(self._run.task))
        return GuardedRun(self._run.id, request.retries or 0, delivery.is_redelivery(request), memory)

    def _conflict(self, taken: Taken) -> BaseException:
        request, options = self._run.request, self._run.options
        if delivery.is_same(request, taken.holder):
            return delivery.Deferral(
                "this task is running",
                self._subject,
                insures=taken.fence,
                remaining_seconds=taken.remaining_seconds,
            )
        policy = delivery.header(request, CONFLICT_HEADER) or options.value(self._run.task.app, "on_conflict")
        policy = policy or ("defer" if delivery.dispatches(request) else "skip")
        if policy == "raise":
            return AlreadyRunningError(self._key, taken.holder)
        if policy == "skip":
            return delivery.Skip("lock_held", self._subject, taken.holder)
        return delivery.Deferral(
            f"task {taken.holder} holds the lock", self._subject, remaining_seconds=taken.remaining_seconds
        )

    def _work(self, lock: SyncDistributedLock, proceed: Proceed) -> Any:
        run, lease, heartbeat = self._run, lock.lease, self._run.runtime.heartbeat
        run.lease.hold(lease)
        if self._on_lease_lost == "abort":
            run.watched.append((lease, self._doubt_limit))
        run.before_retry.append(lambda: self._release(lock, lease, ended=True))
        heartbeat.add(lease, self._interval)
        ended = True
        try:
            return proceed()
        except LeaseLost as error:
            ended = False
            if lease.valid():  # it is the record's claim that was lost
                raise
            self._tell(lease, error)
            raise delivery.Deferral("its lock was lost", self._subject, insures=lease.fence) from error
        except Reject as reject:
            ended = not delivery.requeues(reject)
            raise
        except Exception:
            raise
        except BaseException:  # the process is told to go: the run has not ended in a recorded way
            ended = False
            raise
        finally:
            self._release(lock, lease, ended=ended)
            heartbeat.remove(lease)

    def _release(self, lock: SyncDistributedLock, lease: Lease, *, ended: bool) -> None:
        """Give the lock back. The run is over, so what goes wrong here is logged and not raised."""
        if self._released:
            return
        self._released = True
        try:
            insist(lambda: lock.release(ended=ended), patience_seconds=self._ttl)
        except LockNotHeldError as error:
            self._tell(lease, error)
        except StoreError as error:
            _log.warning("the lock of task %s is left to lapse: %s", self._run.id, error)

    def _tell(self, lease: Lease, error: BaseException) -> None:
        """Tell once that the lock is gone."""
        if not self._told:
            self._told = True
            report.lease_lost(self._subject, lease.fence, str(error))


class SingletonTask(GuardedTask):
    """Base for tasks of which one may run at a time: beat jobs above all.

    A lock is held around the run and renewed while it lasts; a worker that dies frees it within ``lock_ttl``.
    When another task holds it, this one ends as SUCCESS with a small marker (``{"qx_skipped": "lock_held", …}``),
    a log line and a signal; in a chain, chord or group, or with links, it is put off instead. A second delivery
    of the same task is never skipped: it waits for the first one's end.

    Class attributes, each also app-wide as ``qx_cache_<name>`` (but the key), durations in seconds or as
    ``timedelta``:

    - ``lock_key`` (or ``unique_on``): a template, a list of argument names (``[]``: the task's name alone) or a
      callable; None: the task's name and all arguments.
    - ``lock_ttl`` (or ``lock_expiry``): life of the lock without a heartbeat; ``heartbeat_interval``: time between
      renewals.
    - ``min_hold``: the shortest time from the start of a run to the start of the next: against two schedulers
      that publish the same tick.
    - ``on_lease_lost``: ``"abort"``: a body whose lock is lost is ended by ``LeaseLost``, which is no
      ``Exception``; ``"continue"``: it learns at ``self.lease.ensure()``, or at its end, only.
    - ``doubt_limit``: for how long the lock may be in doubt, as no renewal is confirmed, before the body is ended
      in the same way; 0 by default.
    - ``on_conflict``: ``"skip"``, ``"defer"`` or ``"raise"``; ``apply_async(…, on_conflict=…)`` goes before it.
    - ``on_store_error``: ``"defer"``, ``"raise"`` or ``"run"``.

    Example:
        ```python
        @app.task(base=SingletonTask)
        def nightly_report(): ...
        ```
    """

    abstract = True
    qx_lock_guard = LockGuard

    lock_key: KeySpec = None
    lock_ttl: Duration | None = None
    heartbeat_interval: Duration | None = None
    min_hold: Duration | None = None
    on_lease_lost: str | None = None
    doubt_limit: Duration | None = None
    on_conflict: str | None = None
    on_store_error: str | None = None

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *more: Any,
        on_conflict: str | None = None,
        **options: Any,
    ) -> "AsyncResult[Any]":
        """As ``celery.Task.apply_async``; ``on_conflict`` goes before the task's own.

        Raises:
            InvalidValueError: It is none of the words; nothing was published.
        """
        if on_conflict is not None:
            check_option(self.name, "on_conflict", on_conflict)
            options["headers"] = {**(options.get("headers") or {}), CONFLICT_HEADER: on_conflict}
        return super().apply_async(args, kwargs, *more, **options)  # type: ignore[arg-type]

    def lock_info(self, *args: Any, **kwargs: Any) -> LockInfo:
        """Who holds the lock that a call with these arguments needs: task id, since when, fence, waiters.

        Raises:
            StoreError: Redis gave no usable answer.
        """
        return self._lock(args, kwargs).info()

    def release_lock(self, *args: Any, fence: int, **kwargs: Any) -> bool:
        """Free a lock whose holder is known to be gone; were it alive, it would learn that its lock is lost.

        Args:
            args: As for the task.
            fence: Of the run that is meant, as ``lock_info`` shows it.
            kwargs: As for the task.

        Returns:
            False when nobody holds it under that fence; nothing was changed.
        """
        return self._lock(args, kwargs).release_lock(fence)

    def _lock(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SyncDistributedLock:
        ttl = self.qx_options.duration(self.app, "lock_ttl")
        return runtime_of(self.app).lock(lock_name(self, args, kwargs), ttl=ttl)
