"""The scheduler of django-celery-beat, in any number of processes."""

import logging
from typing import Any

import django.db
from django_celery_beat.schedulers import DatabaseScheduler

from qx_cache_celery.leading import Leading

_log = logging.getLogger("qx_cache_celery.beat")
_RETRY_SECONDS = 1.0


class SingletonDatabaseScheduler(Leading, DatabaseScheduler):
    """django-celery-beat's scheduler, in any number of processes: the leader alone reads and writes the schedule.

    What is declared in ``beat_schedule`` is put into the database by each process when it starts. A database that
    is away later does not end beat: a leader goes on by what it has read, one that has just begun waits.
    """

    shared_schedule = True
    _dirty: set[str]
    _initial_read: bool
    _heap: Any
    _pending: str | None = None

    def begin_term(self) -> None:
        """Read the schedule anew; what an earlier term of this process left to be written is out of date."""
        super().begin_term()
        self._dirty.clear()
        self._initial_read = True
        self._heap = None

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """As ``Leading.apply_entry``; that the entry ran is written once it was dealt with, and by a leader."""
        self._dirty.discard(entry.name)
        self._pending = entry.name
        super().apply_entry(entry, producer=producer)
        self._settle()

    def should_sync(self) -> bool:
        """As the scheduler says; asked right after a dispatch, too."""
        self._settle()
        return bool(super().should_sync())

    def _settle(self) -> None:
        name, self._pending = self._pending, None
        if name is not None and self.lease is not None:
            self._dirty.add(name)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Leading.tick``, but the database may be away."""
        try:
            return super().tick(*args, **kwargs)
        except django.db.Error as error:
            _log.warning("the schedule cannot be read for now: %s", error)
            self._initial_read = self._heap is None  # nothing of this term was read yet
            return _RETRY_SECONDS
