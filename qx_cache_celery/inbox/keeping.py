"""Making the table, and deleting what nobody can ask for any more."""

from typing import Any

from celery import Celery

from qx_cache import Duration, InvalidValueError, seconds
from qx_cache_celery.inbox.database import check_tx, database_of
from qx_cache_celery.inbox.rows import Inbox


def create_inbox(tx: Any) -> None:
    """Make the table ``qx_inbox`` and its index where they are not. Safe to repeat.

    Args:
        tx: A SQLAlchemy ``Engine`` or ``sessionmaker``, or the alias of a Django database (whose migrations do
            the same: ``qx_cache_celery.inbox.django``).

    Raises:
        InvalidValueError: It is none of these, or of a dialect other than PostgreSQL and SQLite.

    Example:
        ```python
        engine = create_engine("postgresql+psycopg://…")
        create_inbox(engine)
        ```
    """
    check_tx("create_inbox", tx)
    Inbox(database_of(tx), "", 0).make_tables()


def sweep_inbox(app: Celery, *, retention: Duration, batch: int = 1000) -> int:
    """Delete the rows of all databases of the app's tasks that began longer than ``retention`` ago.

    A row that is gone is as if its task had never run: a message that comes later runs again. So keep them for
    longer than any message, or retry of a client, can be under way. Each batch is a transaction of its own, so
    that it holds up nobody; a later call goes on where one was interrupted.

    Args:
        app: Its tasks with ``tx`` say which databases, and what the retention has to be at least.
        retention: How long rows are kept, in seconds or as ``timedelta``.
        batch: How many rows a transaction deletes.

    Returns:
        How many rows were deleted.

    Raises:
        InvalidValueError: The retention is below the ``result_ttl`` of one of the tasks; nothing was deleted.
    """
    age = seconds(retention, "retention")
    databases: set[Any] = set()
    tasks: list[tuple[str, Any]] = sorted(app.tasks.items())
    for name, task in tasks:
        tx = task.qx_options.value(app, "tx") if hasattr(task, "qx_options") else None
        if tx is None:
            continue
        result_ttl = task.qx_options.duration(app, "result_ttl")
        if age < result_ttl:
            raise InvalidValueError(
                f"retention {age:g} s is below the result_ttl of task {name}, {result_ttl:g} s: a redelivery "
                "could find its record in Redis, but no row, and run again"
            )
        databases.add(tx)
    swept = 0
    for tx in databases:
        inbox = Inbox(database_of(tx), "", 0)
        while deleted := inbox.sweep(age, batch):
            swept += deleted
    return swept
