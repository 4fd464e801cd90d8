"""What an operator sees and settles of a task with ``tx=``: rows are right, and written before Redis."""

import json
from typing import Any

from qx_cache import (
    Claimed,
    Corrupt,
    Done,
    Failed,
    Interrupted,
    Mismatch,
    Outcome,
    Running,
    SyncIdempotencyStore,
)
from qx_cache_celery.inbox.rows import Entry, Inbox, Row
from qx_cache_celery.results import KombuCodec


class RowFirst:
    """What an operator sees and settles, where rows are right: the face of the store, the row before Redis.

    Args:
        store: The records in Redis.
        inbox: The rows.
        codec: Of the results.
    """

    def __init__(self, store: SyncIdempotencyStore, inbox: Inbox, codec: KombuCodec) -> None:
        self._store, self._inbox, self._codec = store, inbox, codec

    def look(self, key: str) -> Outcome | None:
        """As ``SyncIdempotencyStore.look``; an end that only Redis remembers is none."""
        row = self._inbox.look(key)
        if row is None:
            seen = self._store.look(key)
            return None if isinstance(seen, Done | Failed) else seen
        return outcome_of(row, key, self._codec)

    def resolve(self, key: str, result: Any, *, fence: int) -> bool:
        """As ``SyncIdempotencyStore.resolve``."""
        seen = self.look(key)
        if not isinstance(seen, Interrupted) or seen.fence != fence:
            return False
        if not self._inbox.settle(key, entry_of(seen), "done", self._codec.encode(result)):
            return False
        inside = self._store.look(key)
        if isinstance(inside, Interrupted):
            self._store.resolve(key, result, fence=inside.fence)
        return True

    def forget(self, key: str, *, fence: int) -> bool:
        """As ``SyncIdempotencyStore.forget``."""
        seen = self.look(key)
        if seen is None or isinstance(seen, Running | Mismatch | Corrupt) or seen.fence != fence:
            return False
        self._inbox.forget(key, fence)
        inside = self._store.look(key)
        if inside is not None and not isinstance(inside, Running | Mismatch | Corrupt):
            self._store.forget(key, fence=inside.fence)
        return True


def outcome_of(row: Row, key: str, codec: KombuCodec) -> Done | Failed | Interrupted:
    """What a row says, in the words of the store."""
    if row.interrupted:
        return Interrupted(key, row.fence, row.attempt, row.holder)
    if row.state == "failed":
        told = json.loads(row.result or b"{}")
        kind, message = told.get("type", "?"), told.get("message", "")
        return Failed(key, kind, message, row.fence, row.retries, row.holder, row.age_seconds)
    result = None if row.result is None else codec.decode(row.result)
    kept = row.result is not None
    return Done(key, result, kept, False, row.fence, row.retries, row.holder, row.age_seconds)


def entry_of(of: Claimed | Interrupted) -> Entry:
    """What the row of a run says of it."""
    if isinstance(of, Claimed):
        return Entry(of.fence, of.attempt, of.retries, of.holder, of.fingerprint)
    return Entry(of.fence, of.attempt, 0, of.holder, "-")
