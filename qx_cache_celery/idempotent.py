"""``IdempotentTask``: delivered twice, recorded once."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from celery import Celery, current_task
from celery.result import AsyncResult

from qx_cache import Duration, InvalidValueError, Outcome, SyncIdempotencyStore
from qx_cache_celery import delivery
from qx_cache_celery.guard import GuardedTask, Run
from qx_cache_celery.identity import KeySpec, key_name
from qx_cache_celery.inbox.rows import Inbox
from qx_cache_celery.naming import HEADER
from qx_cache_celery.record import Idempotency, RecordGuard
from qx_cache_celery.results import KombuCodec
from qx_cache_celery.rowfirst import RowFirst
from qx_cache_celery.runtime import runtime_of
from qx_cache_celery.transacted import TransactionGuard
from qx_cache_celery.transaction import Transaction, outside_a_run


def _surrounding(inbox: Inbox) -> Transaction | None:
    """The transaction of the task that calls another one directly, where it is of the same database."""
    task: Any = current_task
    run = delivery.run_of(task.request) if task and isinstance(task, IdempotentTask) else None
    if run is None or run.tx is None or run.runtime.inbox(run.options).database is not inbox.database:
        return None
    return run.tx  # type: ignore[no-any-return]


def _record_guard(run: Run) -> RecordGuard:
    inbox = run.runtime.inbox(run.options)
    return RecordGuard(run) if inbox is None else TransactionGuard(run, inbox)


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
    - ``on_in_progress``: what a duplicate does while another task works under its key: ``"defer"``, ``"wait"`` (up
      to ten seconds, then defer), ``"raise"``.
    - ``on_interrupted``: what a delivery does that finds a run without an end: ``"rerun"``; ``"unknown"``: fail
      with ``InterruptedRunError``, and not run until somebody settles it (``resolve``, ``forget``); or a callable
      that takes the ``Interrupted`` and the task's arguments, and returns the result, or ``RERUN``.
    - ``max_interruptions``: after so many in a row the task fails with ``RepeatedlyInterruptedError``.
    - ``keep_failures``: an exception is recorded, and a later delivery fails with ``RecordedFailureError``.
    - ``on_lease_lost``: ``"abort"``: a body whose lease is lost is ended by ``LeaseLost``, which is no
      ``Exception``; ``"continue"``: it learns at ``self.lease.ensure()``, or at its end, only.
    - ``doubt_limit``: for how long a lease may be in doubt, as no renewal is confirmed, before the body is ended
      in the same way; None: for ever, as nothing is recorded without the lease.
    - ``tx``: the database that the body's effects are in: a SQLAlchemy ``sessionmaker`` or ``Engine``, or the
      alias of a Django database. The claim, the body's writes and the result then commit in one transaction.
    - ``lock_timeout``: how long a duplicate waits in the database for the first run's transaction before it is
      put off.
    - ``on_store_error``: what to do when Redis gives no usable answer at the claim: ``"defer"`` (publish a copy
      for later), ``"raise"`` (fail), ``"run"`` (run unguarded). With ``tx`` the row decides alone instead.

    Example:
        ```python
        @app.task(base=IdempotentTask, bind=True, idempotency_key="{order_id}")
        def capture(self, order_id, amount):
            self.lease.ensure()
            return charge(order_id, amount)
        ```
    """

    abstract = True
    qx_record_guard = staticmethod(_record_guard)

    idempotency_key: KeySpec = None
    fingerprint: Any = None
    result_ttl: Duration | None = None
    lease_ttl: Duration | None = None
    heartbeat_interval: Duration | None = None
    on_store_error: str | None = None
    on_in_progress: str | None = None
    on_interrupted: Any = None
    max_interruptions: int | None = None
    keep_failures: bool | None = None
    on_lease_lost: str | None = None
    doubt_limit: Duration | None = None
    lock_timeout: Duration | None = None

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Force what exactly-once recording needs of the broker."""
        super().on_bound(app)
        cls.acks_late = True
        cls.reject_on_worker_lost = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task; called directly one with ``tx`` has a transaction as well, but no record."""
        if delivery.is_delivery(self.request) or delivery.run_of(self.request) or self._inside():
            return super().__call__(*args, **kwargs)
        inbox = runtime_of(self.app).inbox(self.qx_options)
        if inbox is None:
            return super().__call__(*args, **kwargs)
        with outside_a_run(self, inbox, _surrounding(inbox)):
            return super().__call__(*args, **kwargs)

    @property
    def tx(self) -> Transaction:
        """The transaction of this run, where the task has the option ``tx``.

        Raises:
            RuntimeError: There is none now.
        """
        found = self._open_tx()
        if found is None:
            raise RuntimeError(
                f"task {self.name} is in no transaction now: it has no tx option, or its body is over"
            )
        return found

    def _open_tx(self) -> Transaction | None:
        run = delivery.run_of(self.request)
        return run.tx if run is not None else self._inside()  # type: ignore[no-any-return]

    def _inside(self) -> Any:
        return self.request.__dict__.get("qx_tx")

    def replace(self, sig: Any) -> Any:
        """As ``celery.Task.replace``, but not in a transaction: what the body wrote would be rolled back.

        Raises:
            InvalidValueError: The task has ``tx``; stage what follows, ``self.tx.stage(sig)``.
        """
        if self._open_tx() is not None:
            raise InvalidValueError(
                f"task {self.name}: replace() would roll back what this body wrote; stage what follows by "
                "self.tx.stage"
            )
        return super().replace(sig)

    def retry(  # as Celery has it
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        exc: Exception | None = None,
        throw: bool = True,  # noqa: FBT001, FBT002
        *more: Any,
        **options: Any,
    ) -> NoReturn:
        """As ``celery.Task.retry``, but in a transaction the body cannot go on after it.

        Raises:
            InvalidValueError: The task has ``tx``, and ``throw=False``: what the body wrote would be committed,
                and written again by the retry. Nothing is published.
        """
        if not throw and self._open_tx() is not None:
            raise InvalidValueError(
                f"task {self.name}: retry(throw=False) would commit what this body wrote and have it written "
                "again; let retry() raise, or stage what follows by self.tx.stage"
            )
        super().retry(args, kwargs, exc, throw, *more, **options)

    @property
    def idempotency(self) -> Idempotency | None:
        """Key, fence and attempt of this run, and ``downstream_key``; None outside a worker's run."""
        run = delivery.run_of(self.request)
        return run.idempotency if run is not None else None

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *more: Any,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> "AsyncResult[Any]":
        """As ``celery.Task.apply_async``; ``idempotency_key`` goes before the task's own, as a header."""
        if idempotency_key is not None:
            options["headers"] = {**(options.get("headers") or {}), HEADER: idempotency_key}
        return super().apply_async(args, kwargs, *more, **options)  # type: ignore[arg-type]

    def idempotency_key_for(self, *args: Any, idempotency_key: str | None = None, **kwargs: Any) -> str:
        """The name of the record that a call with these arguments has.

        Args:
            args: As for the task.
            idempotency_key: As given to ``apply_async``, where it was.
            kwargs: As for the task.

        Raises:
            ValueError: The key of this task is the task id, which only a publish gives.
        """
        if idempotency_key is not None:
            return key_name(self.name, "key", idempotency_key)
        maker = self.qx_options.makers.get(HEADER)
        if maker is None:
            raise ValueError(
                f"task {self.name} has no idempotency_key: its records go by task id; pass the idempotency_key of "
                "the call, or use key_name of the id"
            )
        return key_name(self.name, "key", maker.text(args, kwargs))

    def outcome(self, key: str) -> Outcome | None:
        """What became of a record: ``Done``, ``Failed``, ``Running``, ``Ended``, ``Interrupted``, or None.

        Args:
            key: As ``idempotency_key_for`` gives it, or ``self.idempotency.key``.

        Raises:
            StoreError: Redis gave no usable answer.
        """
        return self._store.look(key)

    def resolve(self, key: str, result: Any, *, fence: int) -> bool:
        """Record ``result`` for an interrupted run, so that its next delivery replays it.

        Args:
            key: As for ``outcome``.
            result: What to replay.
            fence: Of the run that is meant, as ``outcome`` shows it.

        Returns:
            False when that run is alive, or there is no record of it any more.
        """
        return self._store.resolve(key, result, fence=fence)

    def forget(self, key: str, *, fence: int) -> bool:
        """Forget a run, unless it is alive, so that the next delivery runs. Arguments as ``resolve``."""
        return self._store.forget(key, fence=fence)

    @property
    def _store(self) -> SyncIdempotencyStore | RowFirst:
        runtime = runtime_of(self.app)
        store, inbox = runtime.store(self.qx_options), runtime.inbox(self.qx_options)
        return store if inbox is None else RowFirst(store, inbox, KombuCodec(self.app))
