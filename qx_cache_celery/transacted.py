"""``tx=``: the claim, the body's writes and the result commit in one transaction of the user's database.

Redis decides first and fast: who works, who waits, whose lease it is. The row decides last: it is inserted before
the body begins and committed with its writes, so where row and Redis disagree the row is right, and where Redis is
away the row decides alone. After NServiceBus's outbox and DBOS's transactions; the measured table is in the docs.
"""

import json
import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from celery.exceptions import TaskPredicate

from qx_cache import (
    Claimed,
    Done,
    Failed,
    IdempotencyMismatchError,
    Interrupted,
    Outcome,
    ResultEncodingError,
    StoreError,
    digest,
    holder_text,
    refuse,
)
from qx_cache_celery import delivery, report
from qx_cache_celery.guard import Proceed, Run
from qx_cache_celery.inbox.database import Opened
from qx_cache_celery.inbox.errors import Fault, ResultTooLargeError, fault_of, refused
from qx_cache_celery.inbox.rows import Entry, Inbox, Row
from qx_cache_celery.naming import fingerprint
from qx_cache_celery.record import Idempotency, RecordGuard
from qx_cache_celery.results import KombuCodec
from qx_cache_celery.rowfirst import entry_of, outcome_of
from qx_cache_celery.staging import Children
from qx_cache_celery.transaction import Transaction

_log = logging.getLogger("qx_cache_celery.task")
_TRIES = 6
_PATIENCE_SECONDS = 1.0
"""The row is the record: Redis is told if it can be."""
MAX_RESULT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Committed:
    """A run whose transaction is committed."""

    result: Any
    staged: bytes | None


class TransactionGuard(RecordGuard):
    """Takes a run through its idempotency record and its row."""

    _mirrored = True

    def __init__(self, run: Run, inbox: Inbox) -> None:
        super().__init__(run)
        self._inbox = inbox
        self._codec = KombuCodec(run.task.app)
        self._patience_seconds = _PATIENCE_SECONDS

    def _decide(self, outcome: Outcome, proceed: Proceed) -> Any:
        if isinstance(outcome, Done | Failed | Interrupted):
            return self._compared(outcome, proceed)
        return super()._decide(outcome, proceed)

    def _compared(self, outcome: Done | Failed | Interrupted, proceed: Proceed) -> Any:
        """Redis remembers an end, or none: what does the row say?"""
        with self._reached():
            row = self._inbox.look(self._key)
        match row, outcome:
            case None, Interrupted():
                return self._interrupted(outcome, proceed)
            case None, Failed() | Done(mirrored=False):  # from before the task had tx=
                return super()._decide(outcome, proceed)
            case None, _:
                report.stale(self._subject, outcome.fence)
                self._store.forget(self._key, fence=outcome.fence)
                return self._decide(self._claim(takeover=True), proceed)
            case Row(interrupted=True), _:
                seen = Interrupted(self._key, outcome.fence, row.attempt, row.holder)
                return self._interrupted(seen, proceed)
            case _:
                told = self._told(row)
                if isinstance(told, Done) and not isinstance(outcome, Done):
                    self._store.resolve(self._key, told.result, fence=outcome.fence)
                finalised = isinstance(outcome, Done) and outcome.finalised
                return self._replay_row(row, told, fence=outcome.fence, finalised=finalised)

    def _without_store(self, error: StoreError, proceed: Proceed) -> Any:
        report.degraded(self._subject, error)
        run, said = self._run, fingerprint(self._run.task, self._run.request, self._run.args, self._run.kwargs)
        entry = Entry(
            fence=time.time_ns() // 1000,
            attempt=1,
            retries=run.request.retries or 0,
            holder=holder_text(run.id),
            fingerprint="-" if said is None else digest(said.encode()),
        )
        run.idempotency = Idempotency(self._key, entry.fence, entry.attempt)
        ended = self._locked(entry, proceed)
        if isinstance(ended, Committed):
            self._publish(entry.fence, ended.staged)
            return ended.result
        self._check_request(ended, entry)
        if ended.interrupted:
            raise delivery.Deferral("its run was interrupted, and Redis is away", self._subject)
        return self._replay_row(ended, self._told(ended), fence=ended.fence)

    def _ended_elsewhere(self) -> bool:
        with self._reached():
            row = self._inbox.look(self._key)
        return row is not None and not row.interrupted

    def _held(self, claim: Claimed, proceed: Proceed) -> Any:
        return self._locked(entry_of(claim), proceed)

    def _locked(self, entry: Entry, proceed: Proceed) -> Committed | Row:
        """The transaction, under the lock where the task needs one."""
        if self._run.locked is None:
            return self._transacted(entry, proceed)
        ended: Committed | Row = self._run.locked(lambda: self._transacted(entry, proceed))
        return ended

    def _complete(self, claim: Claimed, result: Committed | Row) -> Any:
        if isinstance(result, Row):
            return self._repair(claim, result)
        try:
            self._publish(claim.fence, result.staged)
        except BaseException:
            self._abandon(claim)
            raise
        return super()._complete(claim, result.result)

    def _met(self, claim: Claimed, result: Committed | Row) -> Interrupted | None:
        if isinstance(result, Committed):
            return None
        try:
            self._check_request(result, entry_of(claim))
        except IdempotencyMismatchError:
            self._abandon(claim)
            self._store.forget(self._key, fence=claim.fence)  # it bears the fingerprint of the wrong one
            raise
        if not result.interrupted:
            return None
        self._abandon(claim)
        return Interrupted(self._key, claim.fence, result.attempt, result.holder)

    def _repair(self, claim: Claimed, row: Row) -> Any:
        """The row was there before us: Redis had lost its record, or was never told."""
        told = self._told(row)
        if isinstance(told, Done):
            self._store_result(claim, told.result, kept=told.kept, finalised=False)
        else:
            self._release(claim)
        return self._replay_row(row, told, fence=claim.fence)

    def _fail(self, claim: Claimed, error: Exception) -> None:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        body = json.dumps({"type": kind, "message": str(error)}).encode()
        try:
            self._inbox.settle(self._key, entry_of(claim), "failed", body)
        except Exception:  # noqa: BLE001  # whatever the driver raises, the failure itself is told
            _log.exception("the failure of task %s could not be written to its row", self._run.id)
        super()._fail(claim, error)

    def _mark_unknown(self, seen: Interrupted) -> None:
        with self._reached(insures=seen.fence):
            self._inbox.settle(self._key, entry_of(seen), "unknown", None)
        super()._mark_unknown(seen)

    def _resolve(self, seen: Interrupted, result: Any) -> None:
        data = self._codec.encode(result)
        with self._reached(insures=seen.fence):
            self._inbox.settle(self._key, entry_of(seen), "done", data)
        super()._resolve(seen, result)

    def _forget(self, seen: Interrupted) -> None:
        with self._reached(insures=seen.fence):
            row = self._inbox.look(self._key)
            if row is not None and row.interrupted:
                self._inbox.forget(self._key, row.fence)
        super()._forget(seen)

    def _transacted(self, entry: Entry, proceed: Proceed) -> Committed | Row:
        """From BEGIN to COMMIT, and again while the database asks for that; or the row that was there."""
        for turn in range(_TRIES):
            if turn:
                time.sleep(random.uniform(0.5, 1.0) * 0.02 * 2**turn)  # noqa: S311  # apart from its rivals
            try:
                return self._transaction(entry, proceed)
            except TaskPredicate:
                raise
            except Exception as error:
                if fault_of(error) is not Fault.CONFLICT:
                    raise
        reason = f"its database could not serialise it in {_TRIES} tries"
        raise delivery.Deferral(reason, self._subject, insures=entry.fence)

    def _transaction(self, entry: Entry, proceed: Proceed) -> Committed | Row:
        ended = False
        try:
            with self._begun(entry) as (opened, row):
                if row is not None:
                    return row
                result = self._run_body(opened, entry, proceed)
                ended = True
        except Exception as error:
            if ended and not refused(error):  # committed or not: the row will tell
                reason = "the database did not say whether it committed"
                raise delivery.Deferral(reason, self._subject, insures=entry.fence) from error
            raise
        return result

    @contextmanager
    def _begun(self, entry: Entry) -> Iterator[tuple[Opened, Row | None]]:
        """An open transaction that has entered the row; or with the row that it met there."""
        with self._reached(insures=entry.fence) as reaching, self._inbox.database.begin() as opened:
            row = self._inbox.enter(opened, self._key, entry, takes_over=self._on_interrupted == "rerun")
            reaching.clear()
            yield opened, row

    @contextmanager
    def _reached(self, insures: int | None = None) -> Iterator[list[Fault]]:
        """Put the delivery off while the database cannot be reached, or holds the row back.

        Yields what it looks for; to be cleared when from then on it is the body's to handle.
        """
        faults = [Fault.UNREACHABLE, Fault.LOCKED]
        try:
            yield faults
        except Exception as error:
            fault = fault_of(error)
            if fault is None or fault not in faults:
                raise
            why = "another transaction, which holds its row or its database, has not ended"
            reason = why if fault is Fault.LOCKED else f"its database cannot be reached: {error}"
            raise delivery.Deferral(reason, self._subject, insures=insures) from error

    def _run_body(self, opened: Opened, entry: Entry, proceed: Proceed) -> Committed:
        run = self._run
        run.tx = tx = Transaction(opened, Children(run.task.app, self._key))
        try:
            result = proceed()
        finally:
            run.tx = None
        opened.settle()
        staged = tx.children.encoded()
        self._inbox.finish(opened, self._key, entry, result=self._encoded(result), staged=staged)
        return Committed(result, staged)

    def _encoded(self, result: Any) -> bytes | None:
        ignored = delivery.result_is_ignored(self._run.task, self._run.request)
        try:
            data = self._codec.encode(result)
        except ResultEncodingError as error:
            if ignored:
                return None
            raise (error.__cause__ or error) from None
        if len(data) <= MAX_RESULT_BYTES:
            return data
        if ignored:
            return None
        raise ResultTooLargeError(
            f"task {self._run.task.name}: its result has {len(data)} bytes, a row takes {MAX_RESULT_BYTES}; "
            "store it elsewhere and return its name"
        )

    def _publish(self, fence: int, staged: bytes | None) -> None:
        """Publish what is staged; where that fails the delivery is put off, and its replay does it."""
        if staged is None:
            return
        try:
            Children(self._run.task.app, self._key).publish(staged)
            self._inbox.published(self._key, fence)
        except Exception as error:
            reason = f"its children could not be published: {error}"
            raise delivery.Deferral(reason, self._subject, insures=fence) from error

    def _told(self, row: Row) -> Done | Failed | Interrupted:
        return outcome_of(row, self._key, self._codec)

    def _replay_row(self, row: Row, told: Outcome, *, fence: int, finalised: bool = False) -> Any:
        """Replay what a row told, or raise its failure; ``fence`` and ``finalised`` are the record's in Redis."""
        if not isinstance(told, Done):
            refuse(told)
        self._publish(row.fence, row.staged)
        return self._replay(replace(told, fence=fence, finalised=finalised))

    def _check_request(self, row: Row, entry: Entry) -> None:
        said = "-" not in {row.fingerprint, entry.fingerprint}
        if said and row.holder != entry.holder and row.fingerprint != entry.fingerprint:
            raise IdempotencyMismatchError(self._key, row.fingerprint, entry.fingerprint)
