"""Beat in any number of processes: one leads and dispatches, the others are ready to follow.

``beat_scheduler = "qx_cache_celery.beat:SingletonScheduler"`` is all that is needed. The leader holds a lock that
a heartbeat renews, not the tick; a leader that dies is followed within the lock's life, one that stops in order at
once. For django-celery-beat it is ``"qx_cache_celery.beat:SingletonDatabaseScheduler"``; any other scheduler takes
the mixin ``Leading``.
"""

from typing import TYPE_CHECKING, Any

from celery.beat import PersistentScheduler

from qx_cache_celery.leading import TICK, Leading
from qx_cache_celery.ticks import Tick, tick_of

if TYPE_CHECKING:
    from qx_cache_celery.beat_database import SingletonDatabaseScheduler

__all__ = ["TICK", "Leading", "SingletonDatabaseScheduler", "SingletonScheduler", "Tick", "tick_of"]


class SingletonScheduler(Leading, PersistentScheduler):
    """Celery's own scheduler, in any number of processes."""


def __getattr__(name: str) -> Any:
    if name != "SingletonDatabaseScheduler":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from qx_cache_celery import beat_database  # noqa: PLC0415  # optional, imported on first use
    except ModuleNotFoundError as error:
        if error.name != "django_celery_beat":
            raise
        raise ImportError(f"{name} needs django-celery-beat, which is not installed", name=error.name) from error
    return beat_database.SingletonDatabaseScheduler
