"""The inbox: one row a key in the user's database, committed with the effects that it stands for (``tx=``).

``create_inbox`` makes its table, ``inbox_ddl`` shows it, ``sweep_inbox`` deletes what is past retention. For
Django there is an app with a migration: ``qx_cache_celery.inbox.django``.
"""

from qx_cache_celery.inbox.errors import (
    InboxError,
    InboxMissingError,
    NestedTransactionError,
    ResultTooLargeError,
    TransactionBrokenError,
)
from qx_cache_celery.inbox.keeping import create_inbox, sweep_inbox
from qx_cache_celery.inbox.statements import inbox_ddl

__all__ = [
    "InboxError",
    "InboxMissingError",
    "NestedTransactionError",
    "ResultTooLargeError",
    "TransactionBrokenError",
    "create_inbox",
    "inbox_ddl",
    "sweep_inbox",
]
