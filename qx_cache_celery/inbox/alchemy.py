"""Transactions by SQLAlchemy 2."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from qx_cache import InvalidValueError
from qx_cache_celery.inbox.database import Parameters
from qx_cache_celery.inbox.errors import Fault, TransactionBrokenError, fault_of
from qx_cache_celery.inbox.statements import Statements, statements_for

_IDLE = 0
"""libpq's PQTRANS_IDLE: no transaction is open."""


class AlchemyDatabase:
    """Where transactions are begun.

    Args:
        tx: A ``sessionmaker``, a ``scoped_session`` (its factory is used), or an ``Engine``.

    Raises:
        InvalidValueError: It is bound to no engine, or to several.
    """

    remedy = "qx_cache_celery.inbox.create_inbox(engine)"

    def __init__(self, tx: "sessionmaker[Any] | scoped_session[Any] | Engine") -> None:
        factory = tx.session_factory if isinstance(tx, scoped_session) else tx
        self._make: Any = sessionmaker(factory) if isinstance(factory, Engine) else factory
        self.engine = engine_of(factory)

    @property
    def statements(self) -> Statements:
        """Our SQL in the engine's dialect."""
        return statements_for(self.engine.dialect.name)

    @contextmanager
    def begin(self) -> Iterator["AlchemyTransaction"]:
        """Open a transaction on a connection of the engine's pool."""
        with self.engine.connect() as connection:
            opened, thrown = AlchemyTransaction(connection, self._make), None
            try:
                with connection.begin():
                    _refuse_autocommit(connection)
                    try:
                        yield opened
                    except BaseException as error:
                        thrown = error
                        raise
            except BaseException as error:
                masked = thrown is not None and thrown is not error  # by what the rollback raised
                if masked or not isinstance(error, Exception):  # ended from outside, perhaps within the driver
                    connection.invalidate()
                if thrown is not None and masked:
                    raise thrown from thrown.__cause__
                raise
            finally:
                thrown = None  # which holds this frame
                opened.close()


class AlchemyTransaction:
    """A transaction that is open.

    Args:
        connection: In a transaction of ours.
        make: Makes the session; it is bound to our connection, so that its own ``commit()`` ends a savepoint.
    """

    def __init__(self, connection: Connection, make: Any) -> None:
        self._connection, self._make = connection, make
        self._session: Session | None = None
        self._entered = False

    @property
    def session(self) -> Session:
        """Made on first use."""
        if self._session is None:
            made: Session = self._make(bind=self._connection, join_transaction_mode="create_savepoint")
            self._session = made
        return self._session

    def execute(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Send one statement."""
        self._entered = True
        found = self._connection.execute(text(statement), parameters)
        return [tuple(row) for row in found] if found.returns_rows else []

    def settle(self) -> None:
        """Flush the session; its last savepoint is released by the commit."""
        alive = self._connection.in_transaction()
        if not alive or (self._entered and not _in_transaction(self._connection)):
            raise TransactionBrokenError("the body ended the transaction itself: it sent COMMIT or ROLLBACK")
        if self._session is None:
            return
        try:
            self._session.flush()
        except (PendingRollbackError, DBAPIError) as error:
            if isinstance(error, DBAPIError) and fault_of(error) is not Fault.ABORTED:
                raise
            raise TransactionBrokenError(f"the body went on after a database error: {error}") from error
        except InvalidRequestError as error:
            raise TransactionBrokenError(f"the body left its session unusable: {error}") from error

    def close(self) -> None:
        """Detach what the session holds, after the end of the transaction: before it, that would undo its work."""
        if self._session is not None:
            self._session.close()


def engine_of(factory: Any) -> Engine:
    """The one engine behind a session factory or an engine.

    Raises:
        InvalidValueError: There is none, or the factory chooses among several.
    """
    bind = factory if isinstance(factory, Engine) else factory.kw.get("bind")
    if isinstance(bind, Engine) and not getattr(factory, "kw", {}).get("binds"):
        return bind
    raise InvalidValueError(
        f"tx={factory!r} must be bound to one engine, as in sessionmaker(engine): the row and the body's writes "
        "commit in one transaction of one database"
    )


def _refuse_autocommit(connection: Connection) -> None:
    raw: Any = connection.connection.dbapi_connection
    unbegun = hasattr(raw, "in_transaction") and raw.isolation_level is None and not raw.in_transaction
    if unbegun or getattr(raw, "autocommit", None) is True:
        raise InvalidValueError("tx= needs an engine with transactions: its isolation_level is AUTOCOMMIT")


def _in_transaction(connection: Connection) -> bool:
    """What the driver says, which sees a COMMIT that was sent past SQLAlchemy as well."""
    raw: Any = connection.connection.dbapi_connection
    if hasattr(raw, "in_transaction"):  # sqlite3
        return bool(raw.in_transaction)
    told = getattr(raw, "info", None)  # psycopg, psycopg2
    return getattr(told, "transaction_status", None) != _IDLE
