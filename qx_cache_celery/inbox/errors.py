"""Errors of the inbox, and what a database's own errors mean to it."""

from collections.abc import Iterator
from enum import Enum
from typing import Any

from qx_cache import CacheError


class InboxError(CacheError):
    """Base of the errors below. None of them leaves a half-written row."""


class InboxMissingError(InboxError):
    """The table is not there; the message says the one call that makes it."""


class TransactionBrokenError(InboxError):
    """The body left its transaction unusable, or ended it; nothing of it is recorded.

    It went on after a database error without rolling back to a savepoint, or sent COMMIT or ROLLBACK past the
    session. Let database errors pass, or catch them around a savepoint (``session.begin_nested()``, ``atomic()``).
    """


class NestedTransactionError(InboxError):
    """A transaction was open already when the task began, so its commit would decide nothing."""


class ResultTooLargeError(InboxError):
    """A result is too large for the row; the transaction was rolled back. Store it elsewhere, return its name."""


class Fault(Enum):
    """What an error of the database means to a transaction that began by entering the inbox."""

    LOCKED = "locked"
    """Another transaction held the row for longer than we wait."""
    CONFLICT = "conflict"
    """The whole transaction is to be tried again: a deadlock, or it could not be serialised."""
    MISSING = "missing"
    """There is no such table."""
    ABORTED = "aborted"
    """An earlier error was swallowed; the database takes no more statements."""
    UNREACHABLE = "unreachable"
    """The connection was not made, or was lost: what was under way may have happened."""


_STATES = {
    "55P03": Fault.LOCKED,
    "40001": Fault.CONFLICT,
    "40P01": Fault.CONFLICT,
    "42P01": Fault.MISSING,
    "25P02": Fault.ABORTED,
}
_GONE = ("08", "57P")
"""Classes of PostgreSQL's SQLSTATE: connection exceptions, and a server that shuts down."""


def fault_of(error: BaseException | None) -> Fault | None:
    """What the driver's error behind ``error`` means, where it means something here.

    Looks through the wrappers of SQLAlchemy (``orig``) and Django (``__cause__``). Codes after PostgreSQL's
    appendix "Error Codes" and https://sqlite.org/rescode.html.
    """
    return next((fault for one in _behind(error) if (fault := _own(one)) is not None), None)


def refused(error: BaseException) -> bool:
    """True when a COMMIT that ended with ``error`` has surely not happened: the database answered, and said no.

    False for one that was lost on its way, or cut off by an exception from outside (a soft time limit).
    """
    own = any(_state(one) or type(one).__module__.startswith("sqlite3") for one in _behind(error))
    return own and fault_of(error) not in {Fault.UNREACHABLE, Fault.LOCKED}


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = getattr(error, "orig", None) or error.__cause__


def _state(error: Any) -> str:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or ""


def _own(error: Any) -> Fault | None:
    state = _state(error)
    if state:
        return Fault.UNREACHABLE if state.startswith(_GONE) else _STATES.get(state)
    module = type(error).__module__
    if module.startswith("sqlite3"):
        return _of_sqlite(error)
    if module.startswith("psycopg") and type(error).__name__ in {"OperationalError", "InterfaceError"}:
        return Fault.UNREACHABLE  # no reply of the server, so no state
    return None


def _of_sqlite(error: Any) -> Fault | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without the details of the extended code
    if code in {5, 6}:  # SQLITE_BUSY, SQLITE_LOCKED
        return Fault.LOCKED
    return Fault.MISSING if "no such table" in str(error) else None
