"""A lock that several processes share, and its blocking twin."""

import asyncio
import time
from types import TracebackType
from typing import Self

from qx_cache._locks import Acquired, Attempt, GuardedRun, LockCalls, settled
from qx_cache._pauses import pauses
from qx_cache._run import AsyncClient, SyncClient, arun, require_async, require_sync, run
from qx_cache.durations import Duration
from qx_cache.errors import LockNotHeldError
from qx_cache.heartbeat import Heartbeat
from qx_cache.lease import Lease


class DistributedLock:
    """Held by one holder at a time, for at most ``ttl_seconds`` without a renewal.

    Leaving ``async with`` releases the lock, and raises ``LockNotHeldError`` when it had been lost: others
    may have worked at the same time. A lock in Redis cannot stop a holder that pauses at the wrong
    moment; where that matters pass ``fence`` to whatever you write to.

    Args:
        client: A ``redis.asyncio`` client; it stays yours to close.
        name: Non-empty text.
        ttl_seconds: Life of the lock without a renewal.
        namespace: First part of every key.
        auto_renew: Renew it from the heartbeat thread while it is held.
        holder: Who holds it, for people to read; host and pid by default.
        heartbeat: What renews it; one of its own by default.
        guarded: A run whose end the lock is to remember.
        owner_prefix: Up to 6 characters that all tokens of this process begin with.

    Raises:
        WrongClientError: A blocking client; use ``SyncDistributedLock``.
        InvalidValueError: An empty name, or a duration that cannot be right.

    Example:
        ```python
        async with DistributedLock(client, "outbox-relay-leader", ttl_seconds=30):
            await relay.run_once()
        ```
    """

    def __init__(
        self,
        client: AsyncClient,
        name: str,
        *,
        ttl_seconds: Duration = 30,
        namespace: str = "qx",
        auto_renew: bool = False,
        holder: str = "",
        heartbeat: Heartbeat | None = None,
        guarded: GuardedRun | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_async(client, "DistributedLock")
        self._client = client
        self._heartbeat = (heartbeat or Heartbeat(client)) if auto_renew else None
        self._calls = LockCalls(
            name,
            ttl_seconds=ttl_seconds,
            namespace=namespace,
            holder=holder,
            guarded=guarded,
            owner_prefix=owner_prefix,
        )

    async def attempt(self) -> Attempt:
        """Try once, and learn who holds it otherwise.

        Raises:
            LockInUseError: This object holds it already.
            StoreError: Redis gave no usable answer; what it may have taken lapses after ``ttl_seconds``.
        """
        outcome = await arun(self._client, self._calls.attempt())
        if isinstance(outcome, Acquired) and self._heartbeat:
            self._heartbeat.add(outcome.lease)
        return outcome

    async def try_acquire(self) -> Lease | None:
        """Try once; the lease, or None when another holds it. Errors as ``attempt``."""
        outcome = await self.attempt()
        return outcome.lease if isinstance(outcome, Acquired) else None

    async def acquire(self, wait_seconds: Duration | None = None) -> Lease:
        """Wait for the lock; for ever by default, as ``asyncio.Lock`` does.

        Raises:
            LockTimeoutError: It was not free within ``wait_seconds``.
            LockInUseError: This object holds it already.
            StoreError: Redis gave no usable answer.
        """
        limit = self._calls.deadline(wait_seconds)
        outcome = await self.attempt()
        for pause in pauses(limit):
            if isinstance(outcome, Acquired):
                break
            await asyncio.sleep(pause)
            outcome = await self.attempt()
        return settled(self._calls.name, limit, outcome)

    async def release(self, *, ended: bool = True) -> None:
        """Give the lock back.

        Args:
            ended: With a ``guarded`` run: remember that it has ended.

        Raises:
            LockNotHeldError: It was lost meanwhile; another's lock was not touched.
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        call = self._calls.release(ended=ended)
        if self._heartbeat:
            self._heartbeat.remove(self._calls.held())
        await arun(self._client, call)

    async def extend(self, ttl_seconds: Duration | None = None) -> None:
        """Let the lock live ``ttl_seconds`` from now, or its own life again. Errors as ``release``."""
        await arun(self._client, self._calls.extend(ttl_seconds))

    @property
    def lease(self) -> Lease:
        """The handle of what is held; ``LockNotHeldError`` when nothing is."""
        return self._calls.held()

    @property
    def fence(self) -> int:
        """The fencing token of what is held; ``LockNotHeldError`` when nothing is."""
        return self._calls.held().fence

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.release()
        except LockNotHeldError as lost:
            if error is None:
                raise
            error.add_note(str(lost))  # never masks what is already in flight


class SyncDistributedLock:
    """Blocking twin of ``DistributedLock``."""

    def __init__(
        self,
        client: SyncClient,
        name: str,
        *,
        ttl_seconds: Duration = 30,
        namespace: str = "qx",
        auto_renew: bool = False,
        holder: str = "",
        heartbeat: Heartbeat | None = None,
        guarded: GuardedRun | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_sync(client, "SyncDistributedLock")
        self._client = client
        self._heartbeat = (heartbeat or Heartbeat(client)) if auto_renew else None
        self._calls = LockCalls(
            name,
            ttl_seconds=ttl_seconds,
            namespace=namespace,
            holder=holder,
            guarded=guarded,
            owner_prefix=owner_prefix,
        )

    def attempt(self) -> Attempt:
        """Blocking twin of ``DistributedLock.attempt``."""
        outcome = run(self._client, self._calls.attempt())
        if isinstance(outcome, Acquired) and self._heartbeat:
            self._heartbeat.add(outcome.lease)
        return outcome

    def try_acquire(self) -> Lease | None:
        """Blocking twin of ``DistributedLock.try_acquire``."""
        outcome = self.attempt()
        return outcome.lease if isinstance(outcome, Acquired) else None

    def acquire(self, wait_seconds: Duration | None = None) -> Lease:
        """Blocking twin of ``DistributedLock.acquire``."""
        limit = self._calls.deadline(wait_seconds)
        outcome = self.attempt()
        for pause in pauses(limit):
            if isinstance(outcome, Acquired):
                break
            time.sleep(pause)
            outcome = self.attempt()
        return settled(self._calls.name, limit, outcome)

    def release(self, *, ended: bool = True) -> None:
        """Blocking twin of ``DistributedLock.release``."""
        call = self._calls.release(ended=ended)
        if self._heartbeat:
            self._heartbeat.remove(self._calls.held())
        run(self._client, call)

    def extend(self, ttl_seconds: Duration | None = None) -> None:
        """Blocking twin of ``DistributedLock.extend``."""
        run(self._client, self._calls.extend(ttl_seconds))

    @property
    def lease(self) -> Lease:
        """Twin of ``DistributedLock.lease``."""
        return self._calls.held()

    @property
    def fence(self) -> int:
        """Twin of ``DistributedLock.fence``."""
        return self._calls.held().fence

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.release()
        except LockNotHeldError as lost:
            if error is None:
                raise
            error.add_note(str(lost))  # never masks what is already in flight
