"""A Redis layer that stands alone: typed cache, idempotency store, distributed lock.

Async first; each ``Sync…`` class is the blocking twin of the class it is named after. Importing this package
reads no environment and opens no connection.
"""

from qx_cache._locks import Acquired, Attempt, GuardedRun, LockInfo, RunEnded, Superseded, Taken
from qx_cache._schedule import interval_for
from qx_cache.cache import Cache, SyncCache
from qx_cache.client import create_client, create_sync_client
from qx_cache.codecs import Codec, JsonCodec
from qx_cache.durations import Duration, seconds
from qx_cache.errors import (
    CacheError,
    CacheValueError,
    ClaimLostError,
    CorruptRecordError,
    EmbeddedServerError,
    IdempotencyError,
    IdempotencyMismatchError,
    InProgressError,
    InterruptedRunError,
    InvalidValueError,
    LeaseLostError,
    LockInUseError,
    LockNotHeldError,
    LockTimeoutError,
    RecordedFailureError,
    RepeatedlyInterruptedError,
    ResultEncodingError,
    ResultNotKeptError,
    StoreError,
    StoreRefusedError,
    StoreUnavailableError,
    WrongClientError,
)
from qx_cache.heartbeat import AsyncHeartbeat, Heartbeat
from qx_cache.idempotency import IdempotencyStore, SyncIdempotencyStore
from qx_cache.keys import Keyspace, digest, holder_text, process_prefix
from qx_cache.lease import Lease, LeaseState
from qx_cache.lock import DistributedLock, SyncDistributedLock
from qx_cache.outcomes import (
    Claimed,
    Corrupt,
    Done,
    Ended,
    Failed,
    Interrupted,
    Mismatch,
    Outcome,
    RecordInfo,
    Running,
    refuse,
)
from qx_cache.preflight import Finding, diagnose, diagnose_sync
from qx_cache.publishing import AlreadyPublished, Publishing, SyncPublishing
from qx_cache.settings import CacheSettings

__all__ = [
    "Acquired",
    "AlreadyPublished",
    "AsyncHeartbeat",
    "Attempt",
    "Cache",
    "CacheError",
    "CacheSettings",
    "CacheValueError",
    "ClaimLostError",
    "Claimed",
    "Codec",
    "Corrupt",
    "CorruptRecordError",
    "DistributedLock",
    "Done",
    "Duration",
    "EmbeddedServerError",
    "Ended",
    "Failed",
    "Finding",
    "GuardedRun",
    "Heartbeat",
    "IdempotencyError",
    "IdempotencyMismatchError",
    "IdempotencyStore",
    "InProgressError",
    "Interrupted",
    "InterruptedRunError",
    "InvalidValueError",
    "JsonCodec",
    "Keyspace",
    "Lease",
    "LeaseLostError",
    "LeaseState",
    "LockInUseError",
    "LockInfo",
    "LockNotHeldError",
    "LockTimeoutError",
    "Mismatch",
    "Outcome",
    "Publishing",
    "RecordInfo",
    "RecordedFailureError",
    "RepeatedlyInterruptedError",
    "ResultEncodingError",
    "ResultNotKeptError",
    "RunEnded",
    "Running",
    "StoreError",
    "StoreRefusedError",
    "StoreUnavailableError",
    "Superseded",
    "SyncCache",
    "SyncDistributedLock",
    "SyncIdempotencyStore",
    "SyncPublishing",
    "Taken",
    "WrongClientError",
    "create_client",
    "create_sync_client",
    "diagnose",
    "diagnose_sync",
    "digest",
    "holder_text",
    "interval_for",
    "process_prefix",
    "refuse",
    "seconds",
]
