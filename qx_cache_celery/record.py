"""A run's way through its idempotency record: claim, replay or defer, and the record of how it ended."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from celery import states
from celery.exceptions import Ignore, Reject, Retry

from qx_cache import (
    Claimed,
    ClaimLostError,
    Corrupt,
    CorruptRecordError,
    Done,
    Ended,
    Interrupted,
    InterruptedRunError,
    Outcome,
    RepeatedlyInterruptedError,
    ResultEncodingError,
    ResultNotKeptError,
    Running,
    StoreError,
    StoreUnavailableError,
    SyncIdempotencyStore,
    refuse,
)
from qx_cache_celery import delivery, report
from qx_cache_celery.guard import Proceed, Run
from qx_cache_celery.interrupt import LeaseLost
from qx_cache_celery.naming import fingerprint, record_name
from qx_cache_celery.runtime import insist

_log = logging.getLogger("qx_cache_celery.task")
RERUN = object()
"""What an ``on_interrupted`` callable returns to have the body run again."""
_WAIT_SECONDS = 10.0
_RETRY = f"{Retry.__module__}.{Retry.__qualname__}"
_RECORD_PATIENCE_SECONDS = 60.0
"""An effect without a record is what makes a second one: its record is worth a worker slot for this long."""
_NAMESPACE = uuid.UUID("6b0cf5a8-5c1f-5f53-9d0c-0f0a4d1c8f11")


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What a run knows of its record."""

    key: str
    """Name of the record: task, kind of key and its text; what ``outcome``, ``resolve`` and ``forget`` take."""
    fence: int
    """Fencing token of this run, higher than that of every earlier run of the key."""
    attempt: int
    """1, and one more for each run before it that was interrupted."""
    replayed: bool = False
    """True where a stored result was returned instead of a run."""

    @property
    def downstream_key(self) -> str:
        """A UUID that is the same in every run of this key: to hand to an API that takes idempotency keys."""
        return str(uuid.uuid5(_NAMESPACE, self.key))


class RecordGuard:
    """Takes a run through its idempotency record."""

    _mirrored = False
    """True where results are kept elsewhere as well."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._key = record_name(run.task, run.request, run.args, run.kwargs)
        app, options = run.task.app, run.options
        self._on_interrupted = options.value(app, "on_interrupted")
        self._max_interruptions = options.value(app, "max_interruptions")
        self._on_in_progress = options.value(app, "on_in_progress")
        self._keep_failures = options.value(app, "keep_failures")
        self._on_lease_lost = options.value(app, "on_lease_lost")
        self._doubt_limit = options.value(app, "doubt_limit")
        self._lease_ttl = options.duration(app, "lease_ttl")
        self._interval = options.interval(app, self._lease_ttl)
        self._policy = options.value(app, "on_store_error")
        self._subject = run.subject = report.Subject(run.task, run.id, self._key)
        self._released = self._retried = False
        self._patience_seconds = max(self._lease_ttl, _RECORD_PATIENCE_SECONDS)

    @property
    def _store(self) -> SyncIdempotencyStore:
        return self._run.runtime.store(self._run.options)

    def around(self, proceed: Proceed) -> Any:
        """Proceed with a claim; replay a recorded result; raise what ends any other delivery."""
        try:
            outcome = self._claim()
        except StoreError as error:
            return self._without_store(error, proceed)
        return self._decide(outcome, proceed)

    def _decide(self, outcome: Outcome, proceed: Proceed) -> Any:
        match outcome:
            case Claimed():
                return self._work(outcome, proceed)
            case Done():
                return self._replay(outcome)
            case Interrupted():
                return self._interrupted(outcome, proceed)
            case Ended():
                return self._repeat_end(outcome, proceed)
            case _:
                return self._refuse(outcome)

    def _claim(self, *, takeover: bool | None = None, redelivery: bool | None = None) -> Outcome:
        request = self._run.request
        outcome = self._store.claim(
            self._key,
            holder=self._run.id,
            fingerprint=fingerprint(self._run.task, request, self._run.args, self._run.kwargs),
            retries=request.retries or 0,
            redelivery=delivery.is_redelivery(request) if redelivery is None else redelivery,
            takeover=self._on_interrupted == "rerun" if takeover is None else takeover,
            wait_seconds=_WAIT_SECONDS if self._on_in_progress == "wait" else 0,
        )
        if isinstance(outcome, Corrupt):
            raise CorruptRecordError(outcome.key, outcome.header)
        return outcome

    def _without_store(self, error: StoreError, proceed: Proceed) -> Any:
        if self._policy == "raise":
            raise error
        if self._policy == "defer":
            raise delivery.Deferral(f"store error: {error}", self._subject) from error
        report.unguarded(self._subject, error)
        return proceed()

    def _refuse(self, outcome: Outcome) -> NoReturn:
        match outcome:
            case Running():
                same = delivery.is_same(self._run.request, outcome.holder)
                if self._on_in_progress == "raise" and not same:
                    refuse(outcome)
                raise delivery.Deferral(
                    "this task is running" if same else f"task {outcome.holder} runs under the same key",
                    self._subject,
                    insures=outcome.fence,
                    remaining_seconds=outcome.remaining_seconds,
                )
            case _:
                refuse(outcome)

    def _repeat_end(self, ended: Ended, proceed: Proceed) -> Any:
        """Nothing is left to do, unless a crash came before a failure was told, or a retry published."""
        if ended.failure is None:
            raise delivery.ended(self._subject, f"its run {ended.fence} has ended")
        left = self._lease_ttl - ended.age_seconds
        if left > 0:  # the first delivery may be about to
            raise delivery.Deferral(
                "its end is being told", self._subject, insures=ended.fence, remaining_seconds=left
            )
        if ended.failure.error_type == _RETRY:
            return self._decide(self._claim(redelivery=False), proceed)
        self._run.when_told(lambda: self._finalise(ended.fence), states.FAILURE)
        return refuse(ended.failure)

    def _replay(self, done: Done) -> Any:
        task, request = self._run.task, self._run.request
        if delivery.is_same(request, done.holder):
            follows = delivery.dispatches(request)
            if done.finalised:
                raise delivery.ended(self._subject, "its result is recorded and passed on")
            if follows and done.age_seconds < self._lease_ttl:  # the first delivery may be passing it on now
                left = self._lease_ttl - done.age_seconds
                raise delivery.Deferral(
                    "its result is being passed on", self._subject, insures=done.fence, remaining_seconds=left
                )
            if follows:
                self._run.when_told(lambda: self._finalise(done.fence), states.SUCCESS)
        if not done.kept and not delivery.result_is_ignored(task, request):
            raise ResultNotKeptError(self._key)
        self._run.idempotency = Idempotency(self._key, done.fence, 0, replayed=True)
        report.replayed(self._subject, done)
        return done.result

    def _interrupted(self, seen: Interrupted, proceed: Proceed) -> Any:
        """A run began and nobody knows how it ended, and the task is not simply to run again."""
        run = self._run
        report.interrupted(self._subject, seen)
        self._mark_unknown(seen)
        if not callable(self._on_interrupted):
            raise InterruptedRunError(self._key, seen.fence, seen.holder)
        settled = self._on_interrupted(seen, *run.args, **run.kwargs)
        if settled is RERUN:
            self._forget(seen)
        else:
            self._resolve(seen, settled)
        again = self._claim(takeover=True)
        if isinstance(again, Interrupted):
            refuse(again)
        return self._decide(again, proceed)

    def _mark_unknown(self, seen: Interrupted) -> None:
        self._store.mark_unknown(self._key, fence=seen.fence)

    def _forget(self, seen: Interrupted) -> None:
        self._store.forget(self._key, fence=seen.fence)

    def _resolve(self, seen: Interrupted, result: Any) -> None:
        self._store.resolve(self._key, result, fence=seen.fence)

    def _work(self, claim: Claimed, proceed: Proceed) -> Any:
        run, heartbeat = self._run, self._run.runtime.heartbeat
        if claim.takeover:
            report.taken_over(self._subject, claim)
            if claim.attempt > self._max_interruptions and not self._ended_elsewhere():
                error = RepeatedlyInterruptedError(self._key, claim.attempt - 1)
                self._fail(claim, error)
                raise error
        run.idempotency = Idempotency(self._key, claim.fence, claim.attempt)
        run.hold(claim.lease, self._on_lease_lost, self._doubt_limit)
        run.before_retry.append(lambda: self._before_retry(claim))
        heartbeat.add(claim.lease, self._interval)
        try:
            result = self._proceed(claim, proceed)
            if (seen := self._met(claim, result)) is None:
                return self._complete(claim, result)
        finally:
            heartbeat.remove(claim.lease)
        run.let_go()
        return self._interrupted(seen, proceed)

    def _met(self, claim: Claimed, result: Any) -> Interrupted | None:  # noqa: ARG002  # for who does more
        """An interrupted run that was met instead of a body's result; the claim is given back then."""
        return None

    def _ended_elsewhere(self) -> bool:
        """True where the run is known to have ended, though its record does not say so."""
        return False

    def _held(self, claim: Claimed, proceed: Proceed) -> Any:  # noqa: ARG002  # for who does more
        """Let the run proceed with the claim."""
        return proceed()

    def _proceed(self, claim: Claimed, proceed: Proceed) -> Any:
        """Let the body run; whatever leaves it decides what the record says (the table in the docs)."""
        try:
            return self._held(claim, proceed)
        except delivery.Skip:
            self._release(claim)
            raise
        except LeaseLost as error:
            self._abandon(claim)
            report.lease_lost(self._subject, claim.fence, str(error))
            raise delivery.Deferral("its lease was lost", self._subject, insures=claim.fence) from error
        except Reject as reject:
            if delivery.requeues(reject):
                self._abandon(claim)
            else:
                self._release(claim)
            raise
        except (Retry, Ignore):
            self._release(claim)
            raise
        except Exception as error:
            if self._keep_failures:
                self._fail(claim, error)
            else:
                self._release(claim, error)
            raise
        except BaseException:  # the process is told to go, or a lock was refused
            self._hand_back(claim)
            raise

    def _complete(self, claim: Claimed, result: Any) -> Any:
        if self._retried:  # the body went on after retry(throw=False), and the retry says how the task ends
            return result
        task, request = self._run.task, self._run.request
        ignored, follows = delivery.result_is_ignored(task, request), delivery.dispatches(request)
        nothing_follows = ignored and not follows
        try:
            self._store_result(claim, result, finalised=nothing_follows)
        except ResultEncodingError as error:
            self._store_result(claim, None, kept=False, finalised=nothing_follows)
            if not ignored:
                raise (error.__cause__ or error) from None
        if follows:
            self._run.when_told(lambda: self._finalise(claim.fence), states.SUCCESS)
        return result

    def _store_result(self, claim: Claimed, result: Any, *, finalised: bool, kept: bool = True) -> None:
        mirrored = self._mirrored
        self._record(
            claim,
            lambda: self._store.complete(claim, result, kept=kept, finalised=finalised, mirrored=mirrored),
        )

    def _before_retry(self, claim: Claimed) -> None:
        """End the run before its retry is published, which may start at once.

        Until that is known to be out a redelivery does not take the run for ended: after a crash it runs again.
        """
        self._released = self._retried = True
        self._record(claim, lambda: self._store.release(claim, Retry()))
        self._run.when_told(lambda: self._finalise(claim.fence))

    def _release(self, claim: Claimed, failure: Exception | None = None) -> None:
        """Record that the run has ended; with its failure, where somebody is to learn of that."""
        if self._released:
            return
        self._released = True
        if failure is not None and delivery.failure_is_told(self._run.task, self._run.request):
            self._record(claim, lambda: self._store.release(claim, failure))
            self._run.when_told(lambda: self._finalise(claim.fence), states.FAILURE)
        else:
            self._record(claim, lambda: self._store.release(claim))

    def _fail(self, claim: Claimed, error: Exception) -> None:
        if not self._released:
            self._released = True
            self._record(claim, lambda: self._store.fail(claim, error))

    def _record(self, claim: Claimed, write: Callable[[], object]) -> None:
        """Write how the run ended. It has ended, so a store that stays away is logged and not raised."""
        try:
            insist(write, patience_seconds=self._patience_seconds)
        except ClaimLostError as error:
            report.lease_lost(self._subject, claim.fence, str(error))
            raise delivery.Deferral("its claim was taken over", self._subject, insures=claim.fence) from error
        except StoreError:
            _log.exception("the end of task %s could not be recorded; its lease is left to lapse", self._run.id)

    def _hand_back(self, claim: Claimed) -> None:
        """End the claim with nothing recorded; where the body never began, as if it had never been made."""
        self._abandon(claim)
        if self._run.began or claim.takeover or claim.retries:
            return  # what an earlier run left is not ours to forget
        try:
            self._store.forget(self._key, fence=claim.fence)
        except StoreError as error:
            _log.warning("the unused claim of task %s is left to lapse: %s", self._run.id, error)

    def _abandon(self, claim: Claimed) -> None:
        try:
            self._store.abandon(claim, counted=False)
        except StoreError as error:
            _log.warning("the claim of task %s is left to lapse: %s", self._run.id, error)

    def _finalise(self, fence: int) -> None:
        try:
            self._store.finalise(self._key, fence)
        except StoreUnavailableError as error:
            _log.warning("task %s: its end stays unmarked, a redelivery repeats it: %s", self._run.id, error)
