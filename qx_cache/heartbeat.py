"""What renews every lease of a process: one thread, or one asyncio task, with one round trip for all that is due.

Both carry out what ``Schedule`` decides. They use a client of their own (own pool, short timeouts, no retries),
never the caller's, and look after the locks that this process waits for as well.
"""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from queue import Empty

from qx_cache import _schedule
from qx_cache._connect import async_sibling, belonging, sibling
from qx_cache._many import arun_many, run_many
from qx_cache._native import NativeThread, native
from qx_cache._run import AnyClient, AsyncClient, SyncClient, is_cluster, where
from qx_cache._schedule import Answer, Item, Schedule, Watch, interval_for
from qx_cache.durations import Duration
from qx_cache.errors import StoreError, StoreUnavailableError
from qx_cache.lease import Clock, Lease, boottime

_log = logging.getLogger("qx_cache.heartbeat")
_IDLE_SECONDS = 30.0


class Heartbeat:
    """Renews leases from one thread, with a connection of its own.

    The thread starts with the first lease and ends when nothing was held for half a minute. After a fork the
    child begins with nothing: the parent's leases are the parent's.

    Args:
        client: A redis-py client, async or blocking; its server and credentials are used, not its pool.

    Example:
        ```python
        heartbeat = Heartbeat(client)
        heartbeat.add(lease)
        ...
        heartbeat.remove(lease)
        ```
    """

    _thread: NativeThread | None
    _timeout: float
    _schedule: Schedule

    def __init__(self, client: AnyClient, *, clock: Clock = boottime) -> None:
        self._origin = client
        self._clock = clock
        self._forget()

    def add(self, lease: Lease, interval_seconds: Duration | None = None) -> None:
        """Renew ``lease`` from now on.

        Args:
            lease: What is held.
            interval_seconds: Time between renewals; a third of the lease's life by default.

        Raises:
            InvalidValueError: The interval is longer than half the life.
        """
        interval = interval_for(lease.ttl_seconds, interval_seconds)
        self._add(lease, interval)

    def watch(self, watch: Watch, remaining_seconds: float) -> None:
        """Look after a lock that is waited for; its holder has ``remaining_seconds`` left."""
        self._add(watch, Watch.pause(remaining_seconds))

    def remove(self, item: Item) -> None:
        """Renew a lease no more, or watch no more. Nothing is given back by this."""
        self._check_pid()
        with self._mutex:
            self._schedule.remove(item)

    @property
    def lateness(self) -> float:
        """Seconds by which the last beat came too late: the early sign of a starved process."""
        return self._schedule.lateness

    def stop(self) -> None:
        """End the thread; what it renewed is left to lapse."""
        self._check_pid()
        with self._mutex:
            thread, self._thread, self._stopping = self._thread, None, True
            self._signals.put(None)
        if thread is not None:
            thread.join()

    def _add(self, item: Item, interval: float) -> None:
        self._check_pid()
        now = self._clock()
        with self._mutex:
            self._schedule.add(item, interval, now)
            if self._thread is None:
                self._stopping = False
                self._thread = NativeThread(self._live, "qx-cache-heartbeat")
            elif now + interval < self._sleeps_until:
                self._signals.put(None)

    def _check_pid(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._mutex = native("_thread", "allocate_lock")()
        self._signals = native("queue", "SimpleQueue")()
        self._schedule = Schedule()
        self._thread = None
        self._stopping = False
        self._sleeps_until = 0.0

    def _live(self) -> None:
        client: SyncClient | None = None
        timeout = 0.0
        try:
            while (due := self._wait()) is not None:
                sent_at = self._clock()
                try:
                    if client is None or self._timeout != timeout:
                        client, timeout = self._opened(client), self._timeout
                    answers = renew(client, due)
                except Exception as error:  # noqa: BLE001  # whatever it is, this thread goes on: all leases depend on it
                    answers = [_failure(self._origin, error)] * len(due)
                now = self._clock()
                with self._mutex:
                    _note(self._schedule, due, answers, sent_at, now)
        finally:
            if client is not None:
                client.close()

    def _opened(self, before: SyncClient | None) -> SyncClient:
        """A client for beats, in place of the one ``before``.

        Raises:
            StoreUnavailableError: A cluster cannot be reached now.
        """
        if before is not None:
            before.close()
        return sibling(self._origin, timeout_seconds=self._timeout)

    def _wait(self) -> list[Item] | None:
        """Sleep until something is due; None when told to stop, or idle for long."""
        idle_until = self._clock() + _IDLE_SECONDS
        while True:
            with self._mutex:
                now = self._clock()
                if self._stopping:
                    return None
                if due := self._schedule.take(now):
                    self._timeout = self._schedule.timeout()
                    return due
                next_due = self._schedule.next_due()
                if next_due is None and now >= idle_until:
                    self._thread = None
                    return None
                self._sleeps_until = idle_until if next_due is None else next_due
            with suppress(Empty):  # a signal: something is due earlier, or it is over
                self._signals.get(timeout=max(0.0, self._sleeps_until - now))


class AsyncHeartbeat:
    """Renews leases from the event loop, with a connection of its own.

    Nothing runs between two beats but a timer, and nothing at all while nothing is held. A loop that is blocked
    for longer than the lease loses it; ``Heartbeat`` renews from a thread instead and takes async clients too.

    Args:
        client: A ``redis.asyncio`` client; its server and credentials are used, not its pool.

    Example:
        ```python
        lock = DistributedLock(client, "leader", auto_renew=True, heartbeat=AsyncHeartbeat(client))
        ```
    """

    _loop: asyncio.AbstractEventLoop | None
    _timer: asyncio.TimerHandle | None
    _beating: asyncio.Task[None] | None
    _sibling: AsyncClient | None
    _schedule: Schedule

    def __init__(self, client: AsyncClient, *, clock: Clock = boottime) -> None:
        self._origin = client
        self._clock = clock
        self._forget()

    def add(self, lease: Lease, interval_seconds: Duration | None = None) -> None:
        """Renew ``lease`` from now on; see ``Heartbeat.add``."""
        self._add(lease, interval_for(lease.ttl_seconds, interval_seconds))

    def watch(self, watch: Watch, remaining_seconds: float) -> None:
        """Look after a lock that is waited for; its holder has ``remaining_seconds`` left."""
        self._add(watch, Watch.pause(remaining_seconds))

    def remove(self, item: Item) -> None:
        """Renew a lease no more, or watch no more. Nothing is given back by this."""
        self._schedule.remove(item)
        if not self._schedule:
            self._disarm()

    async def rest(self) -> None:
        """Close the connection where nothing is held any more; a later lease opens another.

        A beat that is under way comes to its end first: it would go on with the loop, or be left behind by it.
        """
        beating = self._beating
        if not self._schedule and beating is not None and beating.get_loop() is asyncio.get_running_loop():
            await asyncio.wait({beating})
        if not self._schedule and self._beating is None:
            await self._close()

    @property
    def lateness(self) -> float:
        """Seconds by which the last beat came too late: the early sign of a blocked loop."""
        return self._schedule.lateness

    def _add(self, item: Item, interval: float) -> None:
        if self._pid != os.getpid() or self._loop is not asyncio.get_running_loop():
            self._forget()
            self._loop = asyncio.get_running_loop()
        self._schedule.add(item, interval, self._clock())
        self._arm()

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._loop = None
        self._schedule = Schedule()
        self._timer = None
        self._beating = None
        self._sibling = None
        self._opened_with = 0.0

    def _arm(self) -> None:
        due = self._schedule.next_due()
        if due is None or self._loop is None or self._beating is not None:
            return
        self._disarm()
        self._timer = self._loop.call_later(max(0.0, due - self._clock()), self._fire)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fire(self) -> None:
        self._timer = None
        if self._loop is not None:
            self._beating = self._loop.create_task(self._beat())

    async def _beat(self) -> None:
        try:
            if due := self._schedule.take(self._clock()):
                sent_at = self._clock()
                try:
                    answers = await arenew(await self._opened(), due)
                except Exception as error:  # noqa: BLE001  # whatever it is, all leases depend on the next beat
                    answers = [_failure(self._origin, error)] * len(due)
                _note(self._schedule, due, answers, sent_at, self._clock())
            if not self._schedule:
                await self._close()
        finally:
            self._beating = None
            self._arm()

    async def _opened(self) -> AsyncClient:
        timeout = self._schedule.timeout()
        if self._sibling is None or timeout != self._opened_with:
            await self._close()
            self._sibling = async_sibling(self._origin, timeout_seconds=timeout)
            self._opened_with = timeout
        return self._sibling

    async def _close(self) -> None:
        opened, self._sibling = self._sibling, None
        if opened is not None:
            await opened.aclose()


def heartbeat_of(client: AnyClient) -> Heartbeat:
    """The heartbeat thread of ``client``: one for all locks and stores on it, made on first use."""
    return belonging(client, "heartbeat", Heartbeat)


def async_heartbeat_of(client: AsyncClient) -> AsyncHeartbeat:
    """The asyncio heartbeat of ``client``: one for all locks and stores on it, made on first use."""
    return belonging(client, "async_heartbeat", AsyncHeartbeat)


def renew(client: SyncClient, items: Sequence[Item]) -> list[Answer]:
    """Attend to all ``items`` in one round trip: a word each, or the error that hit its chunk."""
    groups = _groups(client, items)
    calls = [_schedule.chunk_call(group) for group in groups]
    replies: list[list[str] | StoreError] = run_many(client, calls)
    return _spread(items, groups, replies)


async def arenew(client: AsyncClient, items: Sequence[Item]) -> list[Answer]:
    """Asyncio twin of ``renew``."""
    groups = _groups(client, items)
    calls = [_schedule.chunk_call(group) for group in groups]
    replies: list[list[str] | StoreError] = await arun_many(client, calls)
    return _spread(items, groups, replies)


def _groups(client: AnyClient, items: Sequence[Item]) -> list[list[Item]]:
    return list(_schedule.chunks(items, 1 if is_cluster(client) else _schedule.CHUNK))


def _spread(
    items: Sequence[Item], groups: Sequence[Sequence[Item]], replies: Sequence[list[str] | StoreError]
) -> list[Answer]:
    answers: dict[Item, Answer] = {}
    for group, reply in zip(groups, replies, strict=True):
        for i, item in enumerate(group):
            answers[item] = reply if isinstance(reply, StoreError) else reply[i]
    return [answers[item] for item in items]


def _failure(client: AnyClient, error: Exception) -> StoreError:
    """The answer to all that was to be renewed."""
    if isinstance(error, StoreError):
        return error
    _log.error("renewals fail for an unexpected reason", exc_info=error)
    return StoreUnavailableError("renew", where(client), repr(error))


def _note(schedule: Schedule, due: Sequence[Item], answers: Sequence[Answer], sent_at: float, now: float) -> None:
    for item, answer in zip(due, answers, strict=True):
        schedule.answered(item, answer, sent_at, now)
    failures = [answer for answer in answers if isinstance(answer, StoreError)]
    if failures:
        _log.warning("renewal of %d of %d leases failed: %s", len(failures), len(due), failures[0])
