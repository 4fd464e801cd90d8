"""What one process of one app shares: client, heartbeat, stores. Made on first use, anew after a fork."""

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu.utils.functional import retry_over_time
from pydantic import SecretStr

from qx_cache import (
    CacheSettings,
    GuardedRun,
    Heartbeat,
    StoreUnavailableError,
    SyncDistributedLock,
    SyncIdempotencyStore,
    SyncPublishing,
    create_sync_client,
    process_prefix,
)
from qx_cache_celery.backend import backend_url
from qx_cache_celery.inbox.database import Database, database_of
from qx_cache_celery.inbox.rows import Inbox
from qx_cache_celery.options import TaskOptions, namespace, owner_host
from qx_cache_celery.results import KombuCodec

if TYPE_CHECKING:
    import redis

T = TypeVar("T")
_ATTRIBUTE = "_qx_cache_runtimes"
_HASTY_SECONDS = 0.5
_REST_SECONDS = 5.0
_SOCKET_TIMEOUT_SECONDS = 2.0
"""Shorter than the client's own default: a task that waits for Redis holds up a worker slot."""


class Runtime:
    """One process's connections. Nothing is opened before it is used.

    Args:
        app: Where the settings are.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._making = threading.Lock()
        self._client: redis.Redis | None = None
        self._hasty: redis.Redis | None = None
        self._hints_rest_until = 0.0
        self._heartbeat: Heartbeat | None = None
        self._stores: dict[tuple[float, float], SyncIdempotencyStore] = {}
        self._databases: dict[Any, Database] = {}
        self._inboxes: dict[tuple[Any, float], Inbox] = {}
        self.owner_prefix = process_prefix(owner_host(), os.getppid(), os.getpid())

    @property
    def client(self) -> "redis.Redis":
        """The client of this process; opened and checked on first use.

        Raises:
            StoreUnavailableError: The server does not answer; the next use tries again.
        """
        with self._making:
            if self._client is None:
                self._client = create_sync_client(store_settings(self._app))
            return self._client

    @property
    def heartbeat(self) -> Heartbeat:
        """The one thread that renews all leases of this process."""
        client = self.client
        with self._making:
            if self._heartbeat is None:
                self._heartbeat = Heartbeat(client)
            return self._heartbeat

    def store(self, options: TaskOptions) -> SyncIdempotencyStore:
        """The store for the lives of claims and results that a task's options say."""
        lease_ttl = options.duration(self._app, "lease_ttl")
        result_ttl = options.duration(self._app, "result_ttl")
        lives = lease_ttl, result_ttl
        if lives not in self._stores:
            self._stores[lives] = SyncIdempotencyStore(
                self.client,
                ttl_seconds=result_ttl,
                lease_seconds=lease_ttl,
                namespace=namespace(self._app),
                codec=KombuCodec(self._app),
                heartbeat=self.heartbeat,
                owner_prefix=self.owner_prefix,
            )
        return self._stores[lives]

    def inbox(self, options: TaskOptions) -> Inbox | None:
        """The rows in the database that a task's ``tx`` names; None where it has none."""
        tx = options.value(self._app, "tx")
        if tx is None:
            return None
        named = tx, options.duration(self._app, "lock_timeout")
        if named not in self._inboxes:
            if tx not in self._databases:
                self._databases[tx] = database_of(tx)
            self._inboxes[named] = Inbox(self._databases[tx], namespace(self._app), named[1])
        return self._inboxes[named]

    def hint(self, space: str, ask: Callable[[SyncPublishing], T]) -> T:
        """Ask for, or tell, what is only a hint of tasks that are published, in the namespace ``space``.

        Nobody waits for it long: each of four tries may take half a second, and when there was no answer, the next
        few seconds go without.

        Raises:
            StoreError: No usable answer, now or a moment ago.
        """
        if time.monotonic() < self._hints_rest_until:
            raise StoreUnavailableError("publish", "the Redis of the locks", "it did not answer a moment ago")
        try:
            with self._making:
                if self._hasty is None:
                    self._hasty = create_sync_client(settings_within(self._app, _HASTY_SECONDS))
            return ask(SyncPublishing(self._hasty, namespace=space))
        except StoreUnavailableError:
            self._hints_rest_until = time.monotonic() + _REST_SECONDS
            raise

    def lock(
        self, name: str, *, ttl: float, holder: str = "", guarded: GuardedRun | None = None, min_hold: float = 0.0
    ) -> SyncDistributedLock:
        """A lock object for one run; ``ttl`` and ``min_hold`` in seconds."""
        return SyncDistributedLock(
            self.client,
            name,
            ttl_seconds=ttl,
            namespace=namespace(self._app),
            holder=holder,
            guarded=guarded,
            min_hold_seconds=min_hold,
            owner_prefix=self.owner_prefix,
        )


def runtime_of(app: Celery) -> Runtime:
    """The runtime of this process for ``app``; a forked child gets one of its own."""
    runtimes: dict[int, Runtime] = app.__dict__.setdefault(_ATTRIBUTE, {})
    pid = os.getpid()
    if pid not in runtimes:
        runtimes.setdefault(pid, Runtime(app))
    return runtimes[pid]


def insist(call: Callable[[], T], patience_seconds: float) -> T:
    """Write how a run ended: repeat ``call`` while Redis cannot be reached, for ``patience_seconds`` at most.

    A soft time limit, of which there is one, is too late now, for the body has kept to it: ``call`` begins anew.

    Raises:
        StoreUnavailableError: It could not be reached all that time.
    """
    try:
        return _repeated(call, patience_seconds)
    except SoftTimeLimitExceeded:
        return _repeated(call, patience_seconds)


def _repeated(call: Callable[[], T], patience_seconds: float) -> T:
    return retry_over_time(
        call,
        StoreUnavailableError,
        timeout=patience_seconds,
        interval_start=0.1,
        interval_step=0.1,
        interval_max=0.3,  # soon after Redis is back, before a redelivery is
    )


def store_settings(app: Celery) -> CacheSettings:
    """How the workers of ``app`` reach their Redis: as the environment says, but with shorter timeouts."""
    settings = CacheSettings(url=SecretStr(backend_url(app)))
    if "socket_timeout_seconds" in settings.model_fields_set:
        return settings
    return settings_within(app, _SOCKET_TIMEOUT_SECONDS)


def settings_within(app: Celery, timeout_seconds: float) -> CacheSettings:
    """The same with timeouts of one's own, whatever the environment says of them."""
    shorter = {"socket_timeout_seconds": timeout_seconds, "socket_connect_timeout_seconds": timeout_seconds}
    return CacheSettings(url=SecretStr(backend_url(app))).model_copy(update=shorter)
