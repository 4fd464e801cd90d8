"""Which tick of each entry was dispatched last, as Redis remembers it."""

import logging
from typing import Any

from qx_cache import CacheError, SyncCache, create_sync_client
from qx_cache_celery.options import beat_lock_ttl, namespace
from qx_cache_celery.runtime import settings_within
from qx_cache_celery.ticks import Tick

_log = logging.getLogger("qx_cache_celery.beat")
_SHORTEST_TIMEOUT_SECONDS = 0.2
_KEPT_SECONDS = 400 * 86_400.0


class Record:
    """Which tick of each entry was dispatched last, as Redis remembers it; it never stands in a dispatch's way.

    Args:
        app: Whose Redis and namespace it is in.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._opened: SyncCache | None = None

    def last(self, entry: str) -> float | None:
        """When the last tick was due; None when that is not known."""
        try:
            return self._cache().get(_key(entry), float)
        except CacheError as error:
            _log.warning("no record of the ticks of %s: %s", entry, error)
            return None

    def note(self, tick: Tick) -> None:
        """Remember that ``tick`` was dispatched, or dropped."""
        try:
            self._cache().set(_key(tick.entry), tick.due)
        except CacheError as error:
            _log.warning("tick %s is not recorded: %s", tick, error)

    def _cache(self) -> SyncCache:
        """All attempts together take a fifth of the lock's life."""
        if self._opened is None:
            timeout = max(_SHORTEST_TIMEOUT_SECONDS, beat_lock_ttl(self._app) / 20)
            client = create_sync_client(settings_within(self._app, timeout))
            self._opened = SyncCache(client, ttl_seconds=_KEPT_SECONDS, namespace=namespace(self._app))
        return self._opened


def _key(entry: str) -> str:
    return f"qx_beat_tick:{entry}"
