"""A transaction of the user's database, whichever library the user reaches it by."""

from contextlib import AbstractContextManager
from typing import Any, Protocol

from qx_cache import InvalidValueError
from qx_cache_celery.inbox.statements import Statements

Parameters = dict[str, Any]


class Opened(Protocol):
    """A transaction that is open."""

    @property
    def session(self) -> Any:
        """What the body works with; raises where the library has no such thing."""
        ...

    def execute(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Send one of our own statements; parameters are written ``:name``."""
        ...

    def settle(self) -> None:
        """Send what the body has not sent yet.

        Raises:
            TransactionBrokenError: The body left the transaction unusable, or ended it.
        """
        ...


class Database(Protocol):
    """Where transactions are begun."""

    remedy: str
    """The one call that makes the inbox's table."""

    @property
    def statements(self) -> Statements:
        """Our SQL in its dialect.

        Raises:
            InvalidValueError: The dialect is not supported.
        """
        ...

    def begin(self) -> AbstractContextManager[Opened]:
        """Open a transaction; it is committed at the end of the block, and rolled back when an error leaves it.

        Raises:
            NestedTransactionError: One was open already.
        """
        ...


def check_tx(task_name: str, tx: Any) -> None:
    """Refuse what cannot be a ``tx``; nothing is imported or opened.

    Raises:
        InvalidValueError: Names the task, the value and what would be right.
    """
    if isinstance(tx, str) and tx:
        return
    kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(tx).__mro__}
    if kinds & _ALCHEMY:
        return
    raise InvalidValueError(
        f"task {task_name}: tx must be a SQLAlchemy sessionmaker or Engine, or the alias of a Django database, "
        f"not {tx!r}" + (": an async one cannot be used in a worker" if _is_async(tx) else "")
    )


def database_of(tx: Any) -> Database:
    """The database behind a checked ``tx``; imports the library that it needs.

    Raises:
        InvalidValueError: The factory is bound to no database, to several, or the alias is not known.
    """
    if isinstance(tx, str):
        from qx_cache_celery.inbox.orm import DjangoDatabase  # noqa: PLC0415  # optional

        return DjangoDatabase(tx)
    from qx_cache_celery.inbox.alchemy import AlchemyDatabase  # noqa: PLC0415  # optional

    return AlchemyDatabase(tx)


_ALCHEMY = {
    "sqlalchemy.orm.session.sessionmaker",
    "sqlalchemy.orm.scoping.scoped_session",
    "sqlalchemy.engine.base.Engine",
}


def _is_async(tx: Any) -> bool:
    return type(tx).__module__.startswith("sqlalchemy.ext.asyncio")
