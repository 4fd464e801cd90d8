"""The inbox: one row a key, written in the transaction of the effects that it stands for."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qx_cache import digest
from qx_cache_celery.inbox.database import Database, Opened
from qx_cache_celery.inbox.errors import Fault, InboxMissingError, TransactionBrokenError, fault_of

_LONGEST_KEY = 255


@dataclass(frozen=True, slots=True)
class Entry:
    """Who enters: what a row says of the run that wrote it."""

    fence: int
    attempt: int
    retries: int
    holder: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Row:
    """What is there. One that is committed without an end is of an interrupted run."""

    state: str
    """``running`` (interrupted, as it is committed), ``unknown``, ``done`` or ``failed``."""
    fence: int
    attempt: int
    retries: int
    holder: str
    fingerprint: str
    result: bytes | None
    """What ``done`` replays (None: not kept), or the failure."""
    staged: bytes | None
    """Children that are to be published, until they are."""
    age_seconds: float

    @property
    def interrupted(self) -> bool:
        """True when nobody knows how its run ended."""
        return self.state in {"running", "unknown"}


class Inbox:
    """The rows of one namespace in one database.

    Args:
        database: Where they are.
        namespace: First part of every key, so that apps may share a table.
        wait_seconds: How long to wait for a row that another transaction holds.

    Raises:
        InvalidValueError: The database's dialect is not supported.
    """

    def __init__(self, database: Database, namespace: str, wait_seconds: float) -> None:
        self.database = database
        self._statements = database.statements
        self._namespace = namespace
        self._wait_ms = max(1, round(wait_seconds * 1000))

    def enter(self, opened: Opened, key: str, entry: Entry, *, takes_over: bool) -> Row | None:
        """Insert the row of ``key``, or make an interrupted one ours; None when it is, else the row that is there.

        Waits for a transaction that has written it and has not ended, for ``wait_seconds`` at most.
        """
        given = {**_told(entry), "key": self._key(key)}
        with self._bounded(opened) as wait:
            if self._sent(opened, self._statements.enter, {**given, **wait}):
                return None
            row = self.read(opened, key)
            if row is None or not (takes_over and row.state == "running"):
                return row
            given = {name: given[name] for name in ("key", "fence", "retries", "holder", "fingerprint")}
            if self._sent(opened, self._statements.take_over, {**given, "seen_fence": row.fence}):
                return None
            return self.read(opened, key)

    def finish(
        self, opened: Opened, key: str, entry: Entry, *, result: bytes | None, staged: bytes | None
    ) -> None:
        """Store the result, to be committed with all the rest.

        Raises:
            TransactionBrokenError: The row is not there any more, or no statement is taken.
        """
        given = {"key": self._key(key), "fence": entry.fence, "state": "done", "result": result, "staged": staged}
        try:
            found = self._sent(opened, self._statements.finish, given)
        except Exception as error:
            if fault_of(error) is Fault.ABORTED:
                raise TransactionBrokenError(f"the body went on after a database error: {error}") from error
            raise
        if not found:
            raise TransactionBrokenError("the body ended the transaction itself: its row is gone")

    def read(self, opened: Opened, key: str) -> Row | None:
        """The row of ``key``."""
        found = self._sent(opened, self._statements.read, {"key": self._key(key)})
        if not found:
            return None
        told: list[Any]
        *told, result, staged, age_ms = found[0]
        told += [_bytes(result), _bytes(staged), max(0, age_ms or 0) / 1000]
        return Row(*told)

    def look(self, key: str) -> Row | None:
        """The row of ``key``, in a transaction of its own."""
        with self.database.begin() as opened:
            return self.read(opened, key)

    def settle(self, key: str, entry: Entry, state: str, result: bytes | None) -> bool:
        """Write down what is known of a run without an end; False when it has one."""
        told = {"fence": entry.fence, "attempt": entry.attempt, "holder": entry.holder}
        given = {**told, "key": self._key(key), "state": state, "result": result}
        with self._alone() as opened:
            return bool(self._sent(opened, self._statements.settle, given))

    def published(self, key: str, fence: int) -> None:
        """Note that the staged children are on their way."""
        with self.database.begin() as opened:
            self._sent(opened, self._statements.published, {"key": self._key(key), "fence": fence})

    def forget(self, key: str, fence: int) -> bool:
        """Delete the row of a run; False when it is gone."""
        with self._alone() as opened:
            given = {"key": self._key(key), "fence": fence}
            return bool(self._sent(opened, self._statements.forget, given))

    def sweep(self, age_seconds: float, batch: int) -> int:
        """Delete up to ``batch`` of the rows that began at least so long ago, the oldest first; how many."""
        with self.database.begin() as opened:
            given = {"age_ms": round(age_seconds * 1000), "batch": batch}
            return len(self._sent(opened, self._statements.sweep, given))

    def make_tables(self) -> None:
        """Make table and index where they are not."""
        with self.database.begin() as opened:
            for statement in self._statements.tables:
                opened.execute(statement, {})

    def _key(self, key: str) -> str:
        text = f"{self._namespace}:{key}"
        if len(text) <= _LONGEST_KEY and text.isprintable():
            return text
        return f"{self._namespace[:200]}:~{digest(text.encode())}"

    def _sent(self, opened: Opened, statement: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return opened.execute(statement, parameters)
        except Exception as error:
            if fault_of(error) is Fault.MISSING:
                raise InboxMissingError(
                    f"the table qx_inbox is not there; make it once: {self.database.remedy}"
                ) from error
            raise

    @contextmanager
    def _alone(self) -> Iterator[Opened]:
        """A transaction of our own statements, which waits for others no longer than ``enter`` does."""
        with self.database.begin() as opened, self._bounded(opened) as wait:
            if wait:
                opened.execute(self._statements.bound, wait)
            yield opened

    @contextmanager
    def _bounded(self, opened: Opened) -> Iterator[dict[str, Any]]:
        """Bound the wait for other transactions; yields what our statements take for it."""
        if self._statements.bounds_waits:
            yield {"wait_ms": f"{self._wait_ms}ms"}
            return
        before = opened.execute("PRAGMA busy_timeout", {})[0][0]
        opened.execute(f"PRAGMA busy_timeout = {self._wait_ms}", {})
        try:
            yield {}
        finally:
            opened.execute(f"PRAGMA busy_timeout = {int(before)}", {})


def _told(entry: Entry) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in Entry.__dataclass_fields__}


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)
