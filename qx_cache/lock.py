"""A lock that several processes share, and its blocking twin."""

import asyncio
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from qx_cache._call import Arg, Call, Script, script_call, text, word
from qx_cache._pauses import pauses
from qx_cache._run import AsyncClient, SyncClient, arun, require_async, require_sync, run
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.errors import InvalidValueError, LockInUseError, LockNotHeldError, LockTimeoutError
from qx_cache.heartbeat import Heartbeat
from qx_cache.keys import Keyspace, default_holder, holder_text, owner_token
from qx_cache.lease import Lease, Renewal, boottime

ACQUIRE, RELEASE, RENEW = Script("lock_acquire"), Script("lock_release"), Script("lock_renew")
_FENCE_MEMORY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Acquired:
    """The lock is ours."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Taken:
    """Another holder has the lock."""

    holder: str
    remaining_seconds: float
    fence: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """This very run has ended under the lock before (only where a ``GuardedRun`` was given)."""

    retries: int


Attempt = Acquired | Taken | RunEnded


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A run whose end the lock remembers, so that a second delivery of it does not run again.

    Args:
        id: Task id.
        retries: Which attempt of the task this is.
        redelivery: This may be a second delivery.
        remember_seconds: How long the end is remembered.
    """

    id: str
    retries: int
    redelivery: bool
    remember_seconds: float


class _Calls:
    """What both twins send and remember: everything but the awaits."""

    def __init__(
        self,
        name: str,
        *,
        ttl_seconds: Duration,
        namespace: str,
        holder: str,
        guarded: GuardedRun | None,
        owner_prefix: str,
    ) -> None:
        keys = Keyspace(namespace)
        self.name = name
        self.ttl_seconds = seconds(ttl_seconds, "ttl_seconds", at_least=0.05)
        self._lock, self._fence = keys.lock(name), keys.fence(name)
        self._guarded = guarded
        self._ended = [keys.ended(name, guarded.id)] if guarded else []
        self._holder = holder_text(holder) if holder else ""
        self._owner_prefix = owner_prefix
        self.token = ""
        self.lease: Lease | None = None
        self._memory_ms = milliseconds(max(_FENCE_MEMORY_SECONDS, 2 * self.ttl_seconds))

    def attempt(self) -> Call[Attempt]:
        if self.token:
            raise LockInUseError(
                f"this lock object holds or awaits {self.name!r} already; make one for each holder"
            )
        token = owner_token(self._owner_prefix)
        run_args = (self._guarded.retries, int(self._guarded.redelivery)) if self._guarded else (0, 0)
        ttl_ms = milliseconds(self.ttl_seconds)
        sent_at = boottime()

        def parse(reply: Any) -> Attempt:
            if word(reply) == "taken":
                return Taken(text(reply[3]), max(0, int(reply[1])) / 1000, int(reply[2]))
            if word(reply) == "ended":
                return RunEnded(int(reply[1]))
            renewal = Renewal(RENEW, self._lock, (token, ttl_ms))
            self.token = token
            self.lease = Lease(
                name=self.name,
                fence=int(reply[1]),
                ttl_seconds=self.ttl_seconds,
                sent_at=sent_at,
                renewal=renewal,
            )
            return Acquired(self.lease)

        holder = self._holder or default_holder(token)
        args: tuple[Arg, ...] = (token, ttl_ms, holder, self._memory_ms, *run_args)
        return script_call(ACQUIRE, [self._lock, self._fence, *self._ended], args, parse)

    def release(self, *, ended: bool) -> Call[None]:
        lease, token = self.held(), self.token
        remembered = self._guarded if ended else None
        run_args = (remembered.retries, milliseconds(remembered.remember_seconds)) if remembered else (0, 0)

        def parse(reply: Any) -> None:
            self.token, self.lease = "", None
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(
                    self.name, "it lapsed before it was given back; others may have worked meanwhile"
                )
            lease.end()

        keys = [self._lock, self._fence, *(self._ended if remembered else [])]
        return script_call(RELEASE, keys, (token, self._memory_ms, *run_args), parse)

    def extend(self, ttl_seconds: Duration | None) -> Call[None]:
        lease, sent_at = self.held(), boottime()
        ttl = lease.ttl_seconds if ttl_seconds is None else seconds(ttl_seconds, "ttl_seconds", at_least=0.05)

        def parse(reply: Any) -> None:
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(self.name, "it lapsed before it was extended")
            lease.renewal = Renewal(RENEW, self._lock, (self.token, milliseconds(ttl)))
            lease.renewed(sent_at, ttl)

        return script_call(RENEW, [self._lock], (self.token, milliseconds(ttl)), parse)

    def held(self) -> Lease:
        if self.lease is None:
            raise LockNotHeldError(self.name, "this lock object has not acquired it")
        return self.lease

    def deadline(self, wait_seconds: Duration | None) -> float | None:
        return None if wait_seconds is None else seconds(wait_seconds, "wait_seconds", at_least=0)


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
        self._calls = _Calls(
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
        self._calls = _Calls(
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


def settled(name: str, wait_seconds: float | None, outcome: Attempt) -> Lease:
    """The lease of a wait that is over, or the error that says why there is none."""
    match outcome:
        case Acquired():
            return outcome.lease
        case Taken():
            raise LockTimeoutError(name, wait_seconds or 0.0, outcome.holder)
        case RunEnded():
            raise InvalidValueError(f"the run under the lock {name!r} has ended before; it is not run again")
