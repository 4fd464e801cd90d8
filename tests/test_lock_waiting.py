"""Waiting for the lock: in turn, woken and not polling, and with whatever goes wrong on the way."""

import asyncio
import gc
import threading
import time

import pytest
import redis

from qx_cache import Acquired, LockNotHeldError, LockTimeoutError, SyncDistributedLock, Taken, _locks
from qx_cache.embedded import start_server


@pytest.fixture
def lock(world):
    def make(name="l", **options):
        return world.make("DistributedLock", name, **{"ttl_seconds": 5, **options})

    return make


@pytest.fixture
def long_reserve(monkeypatch):
    """A released lock is kept so long for one that does not come that nobody overlooks it."""
    monkeypatch.setattr(_locks, "RESERVE_MS", 10_000)


async def waiters(lock, number):
    """Wait until so many wait."""
    deadline = time.monotonic() + 10
    while (await lock.info()).waiters != number:
        assert time.monotonic() < deadline, f"waited 10 s in vain for {number} waiters"
        await asyncio.sleep(0.002)


async def blocked(raw, number):
    """Wait until so many connections are blocked at the server."""
    deadline = time.monotonic() + 10
    while raw.info("clients")["blocked_clients"] < number:
        assert time.monotonic() < deadline, f"waited 10 s in vain for {number} blocked clients"
        await asyncio.sleep(0.002)


async def test_waiters_are_served_in_turn(world, lock, raw, qx_redis_url):
    """Each with a client of its own, as in different processes."""
    held, order, tasks = lock(), [], []
    await held.acquire()
    kind = redis.asyncio.Redis if world.kind == "async" else redis.Redis
    clients = [kind.from_url(qx_redis_url) for _ in range(4)]

    async def wait(number):
        mine = type(world)(world.kind, clients[number], world.namespace).make("DistributedLock", "l")
        await mine.acquire(wait_seconds=20)
        order.append(number)
        await mine.release()

    for number in range(len(clients)):
        tasks.append(asyncio.create_task(wait(number)))
        await blocked(raw, number + 1)
    await held.release()
    await asyncio.gather(*tasks)
    assert list(range(len(clients))) == order
    for client in clients:
        await client.aclose() if world.kind == "async" else client.close()


async def test_the_waiters_of_one_async_client_share_a_connection(world, lock, raw):
    if world.kind == "sync":
        pytest.skip("each thread waits by itself")
    held = lock()
    await held.acquire()
    rivals = [lock() for _ in range(20)]
    tasks = [asyncio.create_task(rival.acquire(wait_seconds=20)) for rival in rivals]
    await waiters(held, len(rivals))
    await blocked(raw, 1)
    assert 1 == raw.info("clients")["blocked_clients"]
    await held.release()
    for _ in rivals:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert 1 == len(done)
        await next(rival for rival in rivals if rival._calls._lease is not None).release()


async def test_who_comes_later_does_not_overtake(lock, raw):
    held, late = lock(), lock()
    await held.acquire()
    waiting = asyncio.create_task(lock(holder="first").acquire(wait_seconds=20))
    await blocked(raw, 1)
    await held.release()
    while isinstance(outcome := await late.attempt(), Acquired):
        pytest.fail("overtook who was waiting")
    assert isinstance(outcome, Taken)
    assert (await waiting).valid()


async def test_without_fairness_whoever_comes_first_may_take_it(lock, raw):
    held = lock(fair=False)
    await held.acquire()
    mine = lock(fair=False)
    waiting = asyncio.create_task(mine.acquire(wait_seconds=20))
    await blocked(raw, 1)
    await held.release()
    assert (await waiting).valid()
    await mine.release()
    assert "free" == (await held.info()).state


async def test_waiting_costs_the_server_next_to_nothing(lock, raw):
    held = lock()
    await held.acquire()
    waiting = asyncio.create_task(lock().acquire(wait_seconds=20))
    await blocked(raw, 1)
    before = raw.info("stats")["total_commands_processed"]
    began = time.monotonic()
    await asyncio.sleep(2)
    commands = raw.info("stats")["total_commands_processed"] - before - 1
    assert commands <= 2 * (time.monotonic() - began), commands
    await held.release()
    await waiting


@pytest.mark.usefixtures("long_reserve")
async def test_giving_up_in_time_leaves_the_place_to_the_next(lock):
    held = lock(holder="h")
    await held.acquire()
    with pytest.raises(LockTimeoutError, match="'h'"):
        await lock().acquire(wait_seconds=0.1)
    assert 0 == (await held.info()).waiters
    began = time.monotonic()
    waiting = asyncio.create_task(lock().acquire(wait_seconds=20))
    await waiters(held, 1)
    await held.release()
    await waiting
    assert time.monotonic() - began < 5  # less than a reserve that nobody uses


async def test_a_holder_that_never_releases_is_followed_when_its_life_ends(lock):
    held = lock(ttl_seconds=0.5)
    began = time.monotonic()
    await held.acquire()
    lease = await lock().acquire(wait_seconds=20)
    assert 0.4 < time.monotonic() - began < 10
    assert lease.valid()
    with pytest.raises(LockNotHeldError):
        await held.release()


async def test_a_lock_is_kept_for_its_shortest_hold(lock):
    held = lock(min_hold_seconds=0.4)
    began = time.monotonic()
    await held.acquire()
    await held.release()
    info = await held.info()
    assert "kept" == info.state
    assert 0 < info.remaining_seconds <= 0.4
    assert isinstance(await lock().attempt(), Taken)
    await lock().acquire(wait_seconds=20)
    assert 0.4 <= time.monotonic() - began < 10


async def test_info_says_who_holds_it_and_an_operator_can_free_it(lock, until):
    held, rival = lock(holder="cron@a"), lock(holder="cron@b")
    assert ("free", 0) == ((info := await held.info()).state, info.waiters)
    lease = await held.acquire()
    info = await rival.info()
    assert ("held", "cron@a", lease.fence) == (info.state, info.holder, info.fence)
    assert abs(info.since - time.time()) < 5
    assert 1 < info.remaining_seconds <= 5
    assert not await rival.release_lock(lease.fence - 1)
    waiting = asyncio.create_task(rival.acquire(wait_seconds=20))
    await waiters(held, 1)
    assert await held.release_lock(lease.fence)
    assert (await waiting).fence > lease.fence
    assert not await held.release_lock(lease.fence)
    with pytest.raises(LockNotHeldError):
        await held.release()


async def test_loss_is_told_once(lock, raw, world):
    told = []
    held = lock(ttl_seconds=0.3, auto_renew=True, on_lost=told.append)
    lease = await held.acquire()
    raw.delete(f"{world.namespace}:lock:1:{{l}}")
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    with pytest.raises(LockNotHeldError):
        await held.release()
    assert [lease] == told


@pytest.mark.usefixtures("long_reserve")
@pytest.mark.parametrize("when", ["while it waits", "when its turn has come"])
async def test_a_cancelled_wait_hands_its_turn_on(world, lock, raw, when):
    if world.kind == "sync":
        pytest.skip("a blocking wait cannot be cancelled")
    held = lock()
    await held.acquire()
    cancelled = lock()
    first = asyncio.create_task(cancelled.acquire())
    await blocked(raw, 1)
    second = asyncio.create_task(lock().acquire(wait_seconds=20))
    await waiters(held, 2)
    if when == "when its turn has come":
        await held.release()
        if not first.cancel():  # it was quicker
            await cancelled.release()
    else:
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await held.release()
    began = time.monotonic()
    assert (await second).valid()
    assert time.monotonic() - began < 5  # less than a reserve that nobody uses
    await asyncio.gather(first, return_exceptions=True)


# redis-py leaves a connection open whose opening was cancelled
@pytest.mark.filterwarnings(
    "ignore:unclosed", "ignore:loop is closed", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_a_cancelled_acquire_leaves_no_lock_behind(world, lock):
    if world.kind == "sync":
        pytest.skip("a blocking acquire cannot be cancelled")
    for pauses in range(100):  # cancelled at each point on its way
        acquiring = asyncio.create_task(lock().acquire())
        for _ in range(pauses):
            await asyncio.sleep(0)
        acquiring.cancel()
        outcome = await asyncio.gather(acquiring, return_exceptions=True)
        if isinstance(outcome[0], asyncio.CancelledError):
            after = lock()
            assert isinstance(await after.attempt(), Acquired)
            await after.release()
        else:
            break
    else:
        pytest.fail("never came through")
    gc.collect()


# as above
@pytest.mark.filterwarnings(
    "ignore:unclosed", "ignore:loop is closed", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_a_wait_ends_when_it_is_cancelled_or_its_time_is_over_wherever_it_is(world, lock, raw):
    """The wait_for of Python 3.11 swallows cancellations that come while a connection is opened or written to."""
    held = lock(ttl_seconds=60)
    await held.acquire()
    for number in range(40):
        if world.kind == "async":
            cancelled = asyncio.create_task(lock().acquire())
            await asyncio.sleep(number / 8000)
            cancelled.cancel()
            await asyncio.wait({cancelled}, timeout=3)
            assert cancelled.cancelled()
        timed = asyncio.create_task(lock().acquire(wait_seconds=number / 8000 + 0.0004))
        await asyncio.wait({timed}, timeout=3)
        assert isinstance(timed.exception(), LockTimeoutError)
    assert 0 == (await held.info()).waiters
    await held.release()
    gc.collect()


async def test_a_cancelled_block_is_not_masked_by_a_lost_lock(world, raw):
    if world.kind == "sync":
        pytest.skip("a blocking holder cannot be cancelled")
    inside = asyncio.Event()

    async def hold():
        async with world.make("DistributedLock", "l"):
            raw.delete(f"{world.namespace}:lock:1:{{l}}")
            inside.set()
            await asyncio.sleep(60)

    holding = asyncio.create_task(hold())
    await inside.wait()
    holding.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await holding
    assert isinstance(caught.value.__context__, LockNotHeldError)


def test_threads_wait_in_turn_and_a_thousand_leases_need_one_heartbeat_thread(qx_redis_url, qx_namespace):
    before = set(threading.enumerate())
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        locks = [SyncDistributedLock(client, f"l{n}", ttl_seconds=3, auto_renew=True) for n in range(1000)]
        leases = [lock.acquire() for lock in locks]
        began = time.monotonic()
        while time.monotonic() - began < 7:
            sum(range(100_000))  # a busy main thread
        assert all(lease.valid() for lease in leases)
        assert 1 == len(set(threading.enumerate()) - before)
        assert client.info("clients")["connected_clients"] <= 2
        for lock in locks:
            lock.release()
