"""A run's way through its lock: acquire, skip or defer, and the release."""

import logging
from typing import Any

from celery.exceptions import Reject

from qx_cache import (
    Acquired,
    Attempt,
    CacheError,
    GuardedRun,
    Lease,
    LockNotHeldError,
    RunEnded,
    StoreError,
    Superseded,
    SyncDistributedLock,
    Taken,
)
from qx_cache_celery import delivery, report
from qx_cache_celery.guard import Proceed, Run
from qx_cache_celery.interrupt import LeaseLost
from qx_cache_celery.naming import CONFLICT_HEADER, NUMBER_HEADER, lock_name, number_in
from qx_cache_celery.options import check_option, lock_mode, namespace
from qx_cache_celery.runtime import insist

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
        self._subject = run.subject = report.Subject(run.task, run.id, self._key, lock=True)
        app, options = run.task.app, run.options
        self._ttl = options.duration(app, "lock_ttl")
        self._interval = options.interval(app, self._ttl)
        self._policy = options.value(app, "on_store_error")
        self._on_lease_lost = options.value(app, "on_lease_lost")
        doubt_limit = options.value(app, "doubt_limit")
        self._doubt_limit = 0.0 if doubt_limit is None else doubt_limit
        self._min_hold = options.duration(app, "min_hold")
        self._mode = lock_mode(run.task)
        run.lock_place = (namespace(app), self._key)
        self._conflict_policy = self._of_conflicts()

    def around(self, proceed: Proceed) -> Any:
        """Proceed under the lock; raise what ends any other delivery."""
        if self._mode == "until_executing":
            return proceed()
        try:
            lock = self._run.runtime.lock(
                self._key, ttl=self._ttl, holder=self._run.id, guarded=self._guarded(), min_hold=self._min_hold
            )
            attempt = lock.attempt()
            self._note_claim(attempt)
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
            case Superseded():
                raise delivery.Skip("superseded", self._subject, attempt.holder)
            case Taken():
                raise self._conflict(attempt)

    @property
    def _remembers(self) -> bool:
        """True where the lock remembers the end of a run, as no idempotency record does."""
        return self._run.task.qx_record_guard is None

    def _guarded(self) -> GuardedRun:
        """What the lock is to know of the run."""
        task, request = self._run.task, self._run.request
        memory = max(_SHORTEST_MEMORY_SECONDS, 2 * delivery.visibility_timeout(task))
        number = number_in(delivery.header(request, NUMBER_HEADER), self._run.id)
        return GuardedRun(
            self._run.id,
            request.retries or 0,
            delivery.is_redelivery(request),
            memory if self._remembers else 0,
            number=number if self._conflict_policy == "keep_latest" else 0,
            queued=self._ends_claim(),
            refusal_ends=self._refuses,
        )

    @property
    def _refuses(self) -> bool:
        """True where the task is over when another holds the lock."""
        return self._conflict_policy in {"skip", "raise"}

    def _ends_claim(self) -> bool:
        """True where the acquire is to end the claim that the task made in the queue."""
        claim = self._run.claim
        return claim is not None and not claim.ended and claim.place == self._run.lock_place

    def _note_claim(self, attempt: Attempt) -> None:
        """The script has ended the claim, unless the task comes again."""
        comes_again = isinstance(attempt, Taken) and (
            not self._refuses or delivery.is_same(self._run.request, attempt.holder)
        )
        if self._ends_claim() and not comes_again:
            self._run.claim.ended = True

    def _of_conflicts(self) -> str:
        """What to do while another task holds the lock."""
        run, said = self._run, delivery.header(self._run.request, CONFLICT_HEADER)
        if said is not None:
            return str(check_option(run.task.name, "on_conflict", said))
        said = run.options.value(run.task.app, "on_conflict")
        # what was queued because one runs is to run after it
        goes_on = delivery.dispatches(run.request) or self._mode == "until_and_while_executing"
        return str(said or ("defer" if goes_on else "skip"))

    def _conflict(self, taken: Taken) -> BaseException:
        request, policy = self._run.request, self._conflict_policy
        if delivery.is_same(request, taken.holder):
            return delivery.Deferral(
                "this task is running",
                self._subject,
                insures=taken.fence,
                remaining_seconds=taken.remaining_seconds,
            )
        if policy == "raise":
            return AlreadyRunningError(self._key, taken.holder)
        if policy == "skip":
            return delivery.Skip("lock_held", self._subject, taken.holder)
        return delivery.Deferral(
            f"task {taken.holder} holds the lock", self._subject, remaining_seconds=taken.remaining_seconds
        )

    def _work(self, lock: SyncDistributedLock, proceed: Proceed) -> Any:
        run, lease, heartbeat = self._run, lock.lease, self._run.runtime.heartbeat
        run.hold(lease, self._on_lease_lost, self._doubt_limit)
        self._released = self._told = False  # a run that began anew comes by twice
        run.before_retry.append(lambda: self._release(lock, lease, ended=True, retries=True))
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

    def _release(self, lock: SyncDistributedLock, lease: Lease, *, ended: bool, retries: bool = False) -> None:
        """Give the lock back. The run is over, so what goes wrong here is logged and not raised.

        A message that is acknowledged late comes again if its worker is killed before Celery has stored the end,
        or published the retry: only after that is nothing left to do.
        """
        if self._released:
            return
        self._released = True
        comes_again = ended and self._remembers and (retries or bool(self._run.task.acks_late))
        if comes_again:
            self._run.when_told(lambda: self._end_run(lock))
        try:
            insist(lambda: lock.release(ended=ended, told=not comes_again), patience_seconds=self._ttl)
        except LockNotHeldError as error:
            self._tell(lease, error)
        except StoreError as error:
            _log.warning("the lock of task %s is left to lapse: %s", self._run.id, error)

    def _end_run(self, lock: SyncDistributedLock) -> None:
        try:
            lock.end_run()
        except StoreError as error:
            _log.warning("the end of task %s is not noted, a redelivery runs it again: %s", self._run.id, error)

    def _tell(self, lease: Lease, error: BaseException) -> None:
        """Tell once that the lock is gone."""
        if not self._told:
            self._told = True
            report.lease_lost(self._subject, lease.fence, str(error))
