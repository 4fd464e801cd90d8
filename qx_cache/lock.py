"""A lock that several processes share, and its blocking twin."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Self
from weakref import WeakValueDictionary

from qx_cache._connect import belonging
from qx_cache._locks import (
    LONGEST_BLOCK_SECONDS,
    Acquired,
    Attempt,
    GuardedRun,
    LockCalls,
    LockInfo,
    Taken,
    settled,
)
from qx_cache._run import (
    AsyncClient,
    SyncClient,
    arun,
    cancellations,
    cancelled_after,
    require_async,
    require_sync,
    run,
    to_the_end,
)
from qx_cache._waits import await_at_server, wait_at_server
from qx_cache.durations import Duration, patience
from qx_cache.errors import LockNotHeldError, StoreError, chained
from qx_cache.heartbeat import AsyncHeartbeat, Heartbeat, async_heartbeat_of, heartbeat_of
from qx_cache.lease import Lease, boottime

OnLost = Callable[[Lease], None]


class DistributedLock:
    """Held by one holder at a time, for at most ``ttl_seconds`` without a renewal.

    Whoever waits is served in turn: a release hands the lock to who has waited longest, which is woken by the
    server and polls nothing. Leaving ``async with`` releases the lock, and raises ``LockNotHeldError`` when it had
    been lost: others may have worked at the same time. A lock in Redis cannot stop a holder that pauses at the
    wrong moment; where that matters pass ``fence`` to whatever you write to. Nothing is released when the object
    is merely dropped: the lock then lapses, or, with ``auto_renew``, is renewed until the process ends.

    Args:
        client: A ``redis.asyncio`` client; it stays yours to close.
        name: Non-empty text.
        ttl_seconds: Life of the lock without a renewal.
        namespace: First part of every key.
        auto_renew: Renew it while it is held, every third of its life.
        fair: False: a release lets whoever comes first take the lock; more acquires a second, at the price of
            long waits for some.
        min_hold_seconds: The shortest time from acquire to the next holder, by the server's clock, however early
            the release: for jobs that are due on several machines whose clocks differ (ShedLock's
            ``lockAtLeastFor``).
        holder: Who holds it, for people to read; host and pid by default.
        on_lost: Called once with the lease when it turns LOST, from the event loop.
        heartbeat: What renews it; one for all locks of the client by default.
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
        fair: bool = True,
        min_hold_seconds: Duration = 0,
        holder: str = "",
        on_lost: OnLost | None = None,
        heartbeat: AsyncHeartbeat | Heartbeat | None = None,
        guarded: GuardedRun | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_async(client, "DistributedLock")
        self._client = client
        self._heartbeat = heartbeat or async_heartbeat_of(client)
        self._auto_renew = auto_renew
        self._on_lost = on_lost
        self._calls = LockCalls(
            name,
            ttl_seconds=ttl_seconds,
            namespace=namespace,
            fair=fair,
            min_hold_seconds=min_hold_seconds,
            holder=holder,
            guarded=guarded,
            owner_prefix=owner_prefix,
        )

    async def attempt(self) -> Attempt:
        """Try once, and learn who holds it otherwise.

        Raises:
            LockInUseError: This object holds it, or is acquiring it, already.
            StoreError: Redis gave no usable answer; what it may have taken lapses after ``ttl_seconds``.
        """
        return await self._acquire(0)

    async def try_acquire(self) -> Lease | None:
        """Try once; the lease, or None when another holds it. Errors as ``attempt``."""
        outcome = await self.attempt()
        return outcome.lease if isinstance(outcome, Acquired) else None

    async def acquire(self, wait_seconds: Duration | None = None) -> Lease:
        """Wait for the lock; for ever by default, as ``asyncio.Lock`` does.

        When the wait is cancelled, whatever it was given meanwhile goes to the next.

        Raises:
            LockTimeoutError: It was not free within ``wait_seconds``.
            LockInUseError: This object holds it, or is acquiring it, already.
            StoreError: Redis gave no usable answer.
        """
        limit = patience(wait_seconds)
        return settled(self._calls.name, limit, await self._acquire(limit))

    async def release(self, *, ended: bool = True, told: bool = True) -> None:
        """Give the lock back, to who has waited longest.

        Args:
            ended: With a ``guarded`` run: remember that it has ended.
            told: False where ``end_run`` is to say that its end is known to all who await it. Until then a
                redelivery finds the lock taken by itself, and once ``ttl_seconds`` have passed it runs again.

        Raises:
            LockNotHeldError: It was lost meanwhile, or belongs to the parent of this forked process; another's
                lock was not touched.
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        call, lease = self._calls.release(ended=ended, told=told), self._calls.held()
        if self._auto_renew:
            self._heartbeat.remove(lease)
        try:
            await to_the_end(lambda: arun(self._client, call))
        finally:
            await self._rest()

    async def end_run(self) -> None:
        """Note that the end of the ``guarded`` run, released with ``told=False``, is known to all who await it.

        Raises:
            InvalidValueError: There is no such run, or its end is not to be remembered.
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        await arun(self._client, self._calls.end())

    async def extend(self, ttl_seconds: Duration | None = None) -> None:
        """Let the lock live ``ttl_seconds`` from now, or its own life again. Errors as ``release``."""
        await arun(self._client, self._calls.extend(ttl_seconds))
        if self._auto_renew:
            self._heartbeat.add(self.lease)

    async def info(self) -> LockInfo:
        """Who holds the lock, since when, under which fence, and how many wait. Changes nothing."""
        return await arun(self._client, self._calls.info())

    async def release_lock(self, fence: int) -> bool:
        """Free the lock whoever holds it: for an operator who has looked at ``info``.

        Its holder learns at its next renewal, or at its release, that the lock is lost.

        Args:
            fence: The fence that ``info`` showed.

        Returns:
            False when nobody holds the lock under that fence any more; nothing was changed.
        """
        return await arun(self._client, self._calls.free(fence))

    async def abandon_lost(self, *, holder: str, owner_prefix: str) -> bool:
        """Free the lock of a process that is known to be dead; True when it held it.

        Args:
            holder: The holder that the dead process worked for.
            owner_prefix: What its owner tokens began with.

        Raises:
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        return await arun(self._client, self._calls.free_lost(holder, owner_prefix))

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
        except (LockNotHeldError, StoreError) as failure:
            self._calls.drop()
            if error is None:
                raise
            chained(error, failure)

    async def _acquire(self, limit: float) -> Attempt:
        self._calls.begin()
        before = cancellations()
        try:
            outcome = await arun(self._client, self._calls.ask(waiting=limit > 0))
            cancelled_after(before)
            if isinstance(outcome, Taken) and limit > 0:
                outcome = await self._wait(outcome, limit)
                cancelled_after(before)
        except StoreError:
            self._calls.forget()
            raise
        except BaseException:
            with suppress(StoreError):
                await asyncio.shield(arun(self._client, self._calls.leave()))
            raise
        if isinstance(outcome, Acquired):
            self._begin(outcome.lease)
        elif limit > 0:
            await arun(self._client, self._calls.leave())
        else:
            self._calls.forget()
        return outcome

    async def _wait(self, taken: Taken, limit: float) -> Attempt:
        watch = self._calls.watch()
        self._heartbeat.watch(watch, taken.remaining_seconds)
        try:
            async with asyncio.timeout(None if limit == float("inf") else limit), self._turn():
                return await self._wait_for_baton()
        except TimeoutError:
            return taken
        finally:
            self._heartbeat.remove(watch)
            await asyncio.shield(self._rest())

    async def _wait_for_baton(self) -> Attempt:
        before = cancellations()
        while True:
            call = self._calls.baton(LONGEST_BLOCK_SECONDS)
            grant = await await_at_server(self._client, call, LONGEST_BLOCK_SECONDS)
            cancelled_after(before)
            outcome = await arun(self._client, self._calls.ask(waiting=True, grant=grant))
            cancelled_after(before)
            if not isinstance(outcome, Taken):
                return outcome

    async def _rest(self) -> None:
        if isinstance(self._heartbeat, AsyncHeartbeat):
            await self._heartbeat.rest()

    def _turn(self) -> asyncio.Lock:
        """The place of this wait among those of this client for the same lock: one connection waits for all."""
        turns = belonging(self._client, "turns", lambda _: WeakValueDictionary[bytes, asyncio.Lock]())
        return turns.setdefault(self._calls.key, asyncio.Lock())

    def _begin(self, lease: Lease) -> None:
        if self._on_lost is not None:
            tell, loop = self._on_lost, asyncio.get_running_loop()

            def told() -> None:
                with suppress(RuntimeError):  # the loop is over: nobody is there to be told
                    loop.call_soon_threadsafe(tell, lease)

            lease.when_lost(told)
        if self._auto_renew:
            self._heartbeat.add(lease)


class SyncDistributedLock:
    """Blocking twin of ``DistributedLock``; ``on_lost`` is called from a thread of its own."""

    def __init__(
        self,
        client: SyncClient,
        name: str,
        *,
        ttl_seconds: Duration = 30,
        namespace: str = "qx",
        auto_renew: bool = False,
        fair: bool = True,
        min_hold_seconds: Duration = 0,
        holder: str = "",
        on_lost: OnLost | None = None,
        heartbeat: Heartbeat | None = None,
        guarded: GuardedRun | None = None,
        owner_prefix: str = "",
    ) -> None:
        require_sync(client, "SyncDistributedLock")
        self._client = client
        self._heartbeat = heartbeat or heartbeat_of(client)
        self._auto_renew = auto_renew
        self._on_lost = on_lost
        self._calls = LockCalls(
            name,
            ttl_seconds=ttl_seconds,
            namespace=namespace,
            fair=fair,
            min_hold_seconds=min_hold_seconds,
            holder=holder,
            guarded=guarded,
            owner_prefix=owner_prefix,
        )

    def attempt(self) -> Attempt:
        """Blocking twin of ``DistributedLock.attempt``."""
        return self._acquire(0)

    def try_acquire(self) -> Lease | None:
        """Blocking twin of ``DistributedLock.try_acquire``."""
        outcome = self.attempt()
        return outcome.lease if isinstance(outcome, Acquired) else None

    def acquire(self, wait_seconds: Duration | None = None) -> Lease:
        """Blocking twin of ``DistributedLock.acquire``."""
        limit = patience(wait_seconds)
        return settled(self._calls.name, limit, self._acquire(limit))

    def release(self, *, ended: bool = True, told: bool = True) -> None:
        """Blocking twin of ``DistributedLock.release``."""
        call, lease = self._calls.release(ended=ended, told=told), self._calls.held()
        if self._auto_renew:
            self._heartbeat.remove(lease)
        run(self._client, call)

    def end_run(self) -> None:
        """Blocking twin of ``DistributedLock.end_run``."""
        run(self._client, self._calls.end())

    def extend(self, ttl_seconds: Duration | None = None) -> None:
        """Blocking twin of ``DistributedLock.extend``."""
        run(self._client, self._calls.extend(ttl_seconds))
        if self._auto_renew:
            self._heartbeat.add(self.lease)

    def info(self) -> LockInfo:
        """Blocking twin of ``DistributedLock.info``."""
        return run(self._client, self._calls.info())

    def release_lock(self, fence: int) -> bool:
        """Blocking twin of ``DistributedLock.release_lock``."""
        return run(self._client, self._calls.free(fence))

    def abandon_lost(self, *, holder: str, owner_prefix: str) -> bool:
        """Blocking twin of ``DistributedLock.abandon_lost``."""
        return run(self._client, self._calls.free_lost(holder, owner_prefix))

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
        except (LockNotHeldError, StoreError) as failure:
            self._calls.drop()
            if error is None:
                raise
            chained(error, failure)

    def _acquire(self, limit: float) -> Attempt:
        self._calls.begin()
        try:
            outcome = run(self._client, self._calls.ask(waiting=limit > 0))
            if isinstance(outcome, Taken) and limit > 0:
                outcome = self._wait(outcome, limit)
        except StoreError:
            self._calls.forget()
            raise
        except BaseException:
            with suppress(StoreError):
                run(self._client, self._calls.leave())
            raise
        if isinstance(outcome, Acquired):
            self._begin(outcome.lease)
        elif limit > 0:
            run(self._client, self._calls.leave())
        else:
            self._calls.forget()
        return outcome

    def _wait(self, taken: Taken, limit: float) -> Attempt:
        watch, deadline = self._calls.watch(), boottime() + limit
        outcome: Attempt = taken
        self._heartbeat.watch(watch, taken.remaining_seconds)
        try:
            while isinstance(outcome, Taken) and (left := deadline - boottime()) > 0:
                pause = min(left, LONGEST_BLOCK_SECONDS)
                grant = wait_at_server(self._client, self._calls.baton(pause), pause)
                outcome = run(self._client, self._calls.ask(waiting=True, grant=grant))
        finally:
            self._heartbeat.remove(watch)
        return outcome

    def _begin(self, lease: Lease) -> None:
        if self._on_lost is not None:
            tell = self._on_lost
            lease.when_lost(
                lambda: Thread(target=tell, args=(lease,), name="qx-cache-on-lost", daemon=True).start()
            )
        if self._auto_renew:
            self._heartbeat.add(lease)
