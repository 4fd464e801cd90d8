"""Transactions by Django."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from django.db import connections, transaction

from qx_cache import InvalidValueError
from qx_cache_celery.inbox.database import Parameters
from qx_cache_celery.inbox.errors import NestedTransactionError, TransactionBrokenError
from qx_cache_celery.inbox.statements import Statements, statements_for

_PARAMETER = re.compile(r":([a-z_]+)")


class DjangoDatabase:
    """Where transactions are begun.

    Args:
        alias: A key of ``DATABASES``.

    Raises:
        InvalidValueError: There is no such database.
    """

    remedy = 'manage.py migrate, with "qx_cache_celery.inbox.django" in INSTALLED_APPS'

    def __init__(self, alias: str) -> None:
        known = sorted(connections.settings)
        if alias not in known:
            raise InvalidValueError(
                f"tx={alias!r} is no database of this project; DATABASES has {', '.join(known)}"
            )
        self._alias = alias

    @property
    def statements(self) -> Statements:
        """Our SQL in the database's dialect."""
        return statements_for(connections[self._alias].vendor)

    @contextmanager
    def begin(self) -> Iterator["DjangoTransaction"]:
        """Open a durable atomic block; every use of the alias in this thread is within it."""
        connection = connections[self._alias]
        if connection.in_atomic_block or not connection.get_autocommit():
            raise NestedTransactionError(
                f"a transaction of {self._alias!r} was open already when the task began, so its commit would "
                "decide nothing; call the task outside of atomic()"
            )
        try:
            with transaction.atomic(using=self._alias, durable=True):
                yield DjangoTransaction(connection)
        except Exception:
            raise
        except BaseException:  # ended from outside, perhaps within the driver
            connection.close()
            raise


class DjangoTransaction:
    """A transaction that is open.

    Args:
        connection: Of the alias, in an atomic block of ours.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @property
    def session(self) -> NoReturn:
        """There is none: the ORM finds the transaction by its alias."""
        raise AttributeError(
            f"tx is a Django alias: use the models of {self._connection.alias!r} as ever, in the transaction"
        )

    def execute(self, statement: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        """Send one statement."""
        with self._connection.cursor() as cursor:
            cursor.execute(_PARAMETER.sub(r"%(\1)s", statement), parameters or None)
            return list(cursor.fetchall()) if cursor.description else []

    def settle(self) -> None:
        """Look whether the block can still be committed."""
        if self._connection.needs_rollback:
            raise TransactionBrokenError("the body went on after a database error, so nothing can be committed")
        if not self._connection.in_atomic_block:
            raise TransactionBrokenError("the body ended the transaction itself")
