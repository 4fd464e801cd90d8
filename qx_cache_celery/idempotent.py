"""``IdempotentTask``: delivered twice, recorded once."""

import logging
from collections.abc import Callable
from typing import Any, NoReturn

from celery import Celery
from celery.exceptions import Ignore, Reject, Retry

from qx_cache import (
    Claimed,
    ClaimLostError,
    Corrupt,
    CorruptRecordError,
    Done,
    Duration,
    Ended,
    Outcome,
    ResultEncodingError,
    ResultNotKeptError,
    Running,
    StoreError,
    StoreUnavailableError,
    SyncIdempotencyStore,
    refuse,
    seconds,
)
from qx_cache_celery import delivery, signals
from qx_cache_celery.guard import GuardedTask, Proceed, Run, lost
from qx_cache_celery.identity import KeyMaker, KeySpec, key_name
from qx_cache_celery.interrupt import LeaseLost
from qx_cache_celery.runtime import insist

_log = logging.getLogger("qx_cache_celery.task")
_HEADER = "idempotency_key"


class RecordGuard:
    """Takes a run through its idempotency record: claim, replay or defer, and the record of its end."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._key = record_name(run.task, run.request, run.args, run.kwargs)
        app, options = run.task.app, run.options
        self._lease_ttl = options.duration(app, "lease_ttl")
        self._result_ttl = options.duration(app, "result_ttl")
        self._interval = options.interval(app, self._lease_ttl)
        self._policy = options.value(app, "on_store_error")
        self._released = False

    @property
    def _store(self) -> SyncIdempotencyStore:
        return self._run.runtime.store(lease_ttl=self._lease_ttl, result_ttl=self._result_ttl)

    def around(self, proceed: Proceed) -> Any:
        """Proceed with a claim; replay a recorded result; raise what ends any other delivery."""
        try:
            outcome = self._claim()
        except StoreError as error:
            if self._policy != "run":
                raise self._store_down(error) from error
            _log.warning("task %s runs without its idempotency record: %s", self._run.id, error)
            return proceed()
        match outcome:
            case Claimed():
                return self._work(outcome, proceed)
            case Done():
                return self._replay(outcome)
            case _:
                return self._refuse(outcome)

    def _claim(self) -> Outcome:
        request = self._run.request
        outcome = self._store.claim(
            self._key,
            holder=self._run.id,
            fingerprint=fingerprint(self._run),
            retries=request.retries or 0,
            redelivery=delivery.is_redelivery(request),
        )
        if isinstance(outcome, Corrupt):
            raise CorruptRecordError(outcome.key, outcome.header)
        return outcome

    def _store_down(self, error: StoreError) -> BaseException:
        return error if self._policy == "raise" else delivery.Deferral(f"store error: {error}", self._key)

    def _refuse(self, outcome: Outcome) -> NoReturn:
        match outcome:
            case Running():
                same = delivery.is_same(self._run.request, outcome.holder)
                raise delivery.Deferral(
                    "this task is running" if same else f"task {outcome.holder} runs under the same key",
                    self._key,
                    insures=outcome.fence,
                    remaining_seconds=outcome.remaining_seconds,
                )
            case Ended():
                raise delivery.ended(self._run.request, self._key, f"its run {outcome.fence} has ended")
            case _:
                refuse(outcome)

    def _replay(self, done: Done) -> Any:
        task, request = self._run.task, self._run.request
        if delivery.is_same(request, done.holder):
            follows = delivery.dispatches(request)
            if done.finalised:
                raise delivery.ended(request, self._key, "its result is recorded and passed on")
            if follows and done.age_seconds < self._lease_ttl:  # the first delivery may be passing it on now
                left = self._lease_ttl - done.age_seconds
                raise delivery.Deferral(
                    "its result is being passed on", self._key, insures=done.fence, remaining_seconds=left
                )
            if follows:
                self._run.after.append(lambda: self._finalise(done.fence))
        if not done.kept and not delivery.result_is_ignored(task, request):
            raise ResultNotKeptError(self._key)
        extra = {"qx_event": "replayed", "task_id": self._run.id, "holder_task_id": done.holder}
        _log.info("task %s replays the result of %s", self._run.id, done.holder, extra=extra)
        told = {"holder": done.holder, "age_seconds": done.age_seconds}
        signals.task_replayed.send(sender=task, task_id=self._run.id, key=self._key, **told)
        return done.result

    def _work(self, claim: Claimed, proceed: Proceed) -> Any:
        run, heartbeat = self._run, self._run.runtime.heartbeat
        if claim.takeover:
            _log.warning("task %s takes over a run that never ended (attempt %d)", run.id, claim.attempt)
            told = {"attempt": claim.attempt, "fence": claim.fence}
            signals.task_taken_over.send(sender=run.task, task_id=run.id, key=self._key, **told)
        run.lease.hold(claim.lease)
        run.before_retry.append(lambda: self._release(claim))
        heartbeat.add(claim.lease, self._interval)
        try:
            result = self._proceed(claim, proceed)
            return result if self._released else self._complete(claim, result)
        finally:
            heartbeat.remove(claim.lease)

    def _proceed(self, claim: Claimed, proceed: Proceed) -> Any:
        """Let the body run; whatever leaves it decides what the record says (the table in the docs)."""
        try:
            return proceed()
        except delivery.Skip:
            self._release(claim)
            raise
        except LeaseLost as error:
            self._abandon(claim)
            lost(self._run, self._key, str(error))
            raise delivery.Deferral("its lease was lost", self._key, insures=claim.fence) from error
        except Reject as reject:
            if delivery.requeues(reject):
                self._abandon(claim)
            else:
                self._release(claim)
            raise
        except (Retry, Ignore, Exception):
            self._release(claim)
            raise
        except BaseException:  # the process is told to go, or a lock was refused: handed back, nothing recorded
            self._abandon(claim)
            raise

    def _complete(self, claim: Claimed, result: Any) -> Any:
        task, request = self._run.task, self._run.request
        ignored, follows = delivery.result_is_ignored(task, request), delivery.dispatches(request)
        nothing_follows = ignored and not follows
        try:
            self._record(claim, lambda: self._store.complete(claim, result, finalised=nothing_follows))
        except ResultEncodingError as error:
            self._record(claim, lambda: self._store.complete(claim, None, kept=False, finalised=nothing_follows))
            if not ignored:
                raise (error.__cause__ or error) from None
        if follows:
            self._run.after.append(lambda: self._finalise(claim.fence))
        return result

    def _release(self, claim: Claimed) -> None:
        if not self._released:
            self._released = True
            self._record(claim, lambda: self._store.release(claim))

    def _record(self, claim: Claimed, write: Callable[[], object]) -> None:
        """Write how the run ended. It has ended, so a store that stays away is logged and not raised."""
        try:
            insist(write, patience_seconds=self._lease_ttl)
        except ClaimLostError as error:
            lost(self._run, self._key, str(error))
            raise delivery.Deferral("its claim was taken over", self._key, insures=claim.fence) from error
        except StoreError:
            _log.exception("the end of task %s could not be recorded; its lease is left to lapse", self._run.id)

    def _abandon(self, claim: Claimed) -> None:
        try:
            self._store.abandon(claim, counted=False)
        except StoreError as error:
            _log.warning("the claim of task %s is left to lapse: %s", self._run.id, error)

    def _finalise(self, fence: int) -> None:
        try:
            self._store.finalise(self._key, fence)
        except StoreUnavailableError as error:
            _log.warning("task %s: its result stays unmarked, a redelivery repeats it: %s", self._run.id, error)


class IdempotentTask(GuardedTask):
    """Base for tasks that may be delivered twice but must take effect once.

    The outcome is recorded once per key and replayed: a second delivery of finished work returns the first
    one's result, one that meets work in progress is put off until that work has ended. ``acks_late`` and
    ``reject_on_worker_lost`` are forced. The body can run again in three situations only: the worker dies
    after the effect and before the result is stored; the worker stalls past its lease; Redis loses the record.
    Call ``self.lease.ensure()`` right before each effect.

    Class attributes, each also app-wide as ``qx_cache_<name>`` (but the key), durations in seconds or as
    ``timedelta``:

    - ``idempotency_key``: a template such as ``"{order_id}"``, a list of argument names, or a callable that
      takes the task's arguments; None: the task id. A message header ``idempotency_key`` goes before it.
    - ``fingerprint``: what of the arguments must be equal under one key: True all, False nothing, names, or a
      callable that returns text.
    - ``result_ttl``: how long a result is replayed; ``lease_ttl``: life of a claim without a heartbeat;
      ``heartbeat_interval``: time between renewals, a third of the lease by default, half of it at most.
    - ``on_store_error``: what to do when Redis gives no usable answer at the claim: ``"defer"`` (publish a copy
      for later), ``"raise"`` (fail), ``"run"`` (run unguarded).

    Example:
        ```python
        @app.task(base=IdempotentTask, bind=True, idempotency_key="{order_id}")
        def capture(self, order_id, amount):
            self.lease.ensure()
            return charge(order_id, amount)
        ```
    """

    abstract = True
    qx_record_guard = RecordGuard

    idempotency_key: KeySpec = None
    fingerprint: Any = None
    result_ttl: Duration | None = None
    lease_ttl: Duration | None = None
    heartbeat_interval: Duration | None = None
    on_store_error: str | None = None

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Force what exactly-once recording needs of the broker."""
        super().on_bound(app)
        cls.acks_late = True
        cls.reject_on_worker_lost = True


def record_name(task: GuardedTask, request: Any, args: Any, kwargs: Any) -> str:
    """The name of the record that this delivery belongs to: by header, else by option, else by task id."""
    nesting = int(getattr(request, "replaced_task_nesting", 0) or 0)
    by_header = delivery.header(request, _HEADER)
    if by_header is not None:
        index = getattr(request, "group_index", None)  # a header on a group reaches every member
        return key_name(task.name, "key", str(by_header), nesting=nesting, group_index=index)
    maker = task.qx_options.makers.get(_HEADER)
    if maker is not None:
        return key_name(task.name, "key", maker.text(args, kwargs), nesting=nesting)
    return key_name(task.name, "id", str(request.id), nesting=nesting)


def fingerprint(run: Run) -> str | None:
    """Canonical text of what must be equal under one key; None where nothing is compared."""
    task, options = run.task, run.options
    spec = options.value(task.app, "fingerprint")
    keyed = delivery.header(run.request, _HEADER) is not None or _HEADER in options.makers
    if spec is False or not keyed:
        return None
    if spec is True:
        return options.arguments.all_encoded(run.args, run.kwargs)
    return KeyMaker("fingerprint", spec, options.arguments).text(run.args, run.kwargs)


def lease_seconds(task: GuardedTask) -> float:
    """The life of the task's claims, in seconds."""
    return seconds(task.qx_options.value(task.app, "lease_ttl"), "lease_ttl")
