"""The lock, on both twins."""

import asyncio
import os
import signal
import subprocess
import sys

import pytest
import redis

from qx_cache import (
    Acquired,
    GuardedRun,
    InvalidValueError,
    LeaseState,
    LockInUseError,
    LockNotHeldError,
    LockTimeoutError,
    RunEnded,
    StoreUnavailableError,
    SyncDistributedLock,
    Taken,
)
from qx_cache.embedded import start_server


@pytest.fixture
def lock(world):
    def make(name="l", **options):
        return world.make("DistributedLock", name, **{"ttl_seconds": 5, **options})

    return make


async def test_one_holds_it_and_the_other_learns_who(lock):
    first, second = lock(holder="a"), lock(holder="b")
    assert isinstance(await first.attempt(), Acquired)
    outcome = await second.attempt()
    assert isinstance(outcome, Taken)
    assert "a" == outcome.holder
    await first.release()
    assert await second.try_acquire()
    await second.release()


async def test_the_fence_rises_even_when_the_last_one_is_forgotten(lock, world, raw):
    fences = []
    for _ in range(3):
        held = lock()
        fences.append((await held.acquire()).fence)
        await held.release()
        raw.delete(f"{world.namespace}:lock:1:{{l}}:f")
    assert sorted(set(fences)) == fences


async def test_waiting_ends_when_the_lock_is_free_or_the_time_is_over(lock):
    first = lock(holder="a")
    await first.acquire()
    with pytest.raises(LockTimeoutError, match="'a'"):
        await lock().acquire(wait_seconds=0.05)
    waiting = asyncio.create_task(lock().acquire(wait_seconds=5))
    await first.release()
    assert (await waiting).valid()


async def test_one_object_is_one_holder(lock):
    held = lock()
    await held.acquire()
    with pytest.raises(LockInUseError):
        await held.acquire()


async def test_a_lost_lock_is_told_at_release_and_never_takes_anothers(lock, world, raw):
    first = lock()
    await first.acquire()
    raw.delete(f"{world.namespace}:lock:1:{{l}}")
    second = lock()
    await second.acquire()
    lease = first.lease
    with pytest.raises(LockNotHeldError):
        await first.release()
    assert LeaseState.LOST is lease.state
    await second.extend(10)
    await second.release()


async def test_leaving_the_block_raises_when_it_was_lost_and_masks_no_other_error(world, raw):
    key = f"{world.namespace}:lock:1:{{l}}"

    async def hold(error=None):
        held = world.make("DistributedLock", "l")
        if world.kind == "async":
            async with held:
                raw.delete(key)
                if error:
                    raise error
        else:
            with held.blocking:
                raw.delete(key)
                if error:
                    raise error

    with pytest.raises(LockNotHeldError):
        await hold()
    with pytest.raises(ZeroDivisionError) as caught:
        await hold(ZeroDivisionError())
    assert isinstance(caught.value.__context__, LockNotHeldError)


async def test_what_is_not_held_cannot_be_released_or_extended(lock):
    with pytest.raises(LockNotHeldError):
        await lock().release()
    with pytest.raises(LockNotHeldError):
        await lock().extend()


async def test_an_ended_run_is_not_run_again(lock):
    def run(retries, *, redelivery):
        return lock(guarded=GuardedRun("t1", retries, redelivery, 60))

    first = run(0, redelivery=False)
    await first.attempt()
    await first.release()
    assert isinstance(await run(0, redelivery=True).attempt(), RunEnded)
    retried = run(1, redelivery=True)
    assert isinstance(await retried.attempt(), Acquired)
    await retried.release(ended=False)
    assert isinstance(await run(1, redelivery=True).attempt(), Acquired)


async def test_a_run_whose_end_was_not_told_is_put_off_and_runs_again(lock):
    def run(retries, **how):
        guarded = GuardedRun("t1", retries, redelivery=True, remember_seconds=60)
        return lock(guarded=guarded, holder="t1", **how)

    first = run(0)
    await first.attempt()
    await first.release(told=False)
    found = await run(0).attempt()
    assert "t1" == found.holder
    assert 1 < found.remaining_seconds <= 5
    again = run(0, ttl_seconds=1.5)  # that long after the release nobody tells any more
    async with asyncio.timeout(10):
        while not isinstance(await again.attempt(), Acquired):
            await asyncio.sleep(0.01)
    await again.release(told=False)
    await again.end_run()
    assert isinstance(await run(0).attempt(), RunEnded)


async def test_a_retry_runs_and_ends_its_older_attempt_whether_that_was_told_or_not(lock):
    def run(retries):
        return lock(guarded=GuardedRun("t1", retries, redelivery=True, remember_seconds=60))

    first, retried = run(0), run(1)
    await first.attempt()
    await first.release(told=False)
    await retried.attempt()
    await retried.release()
    assert isinstance(await run(0).attempt(), RunEnded)
    await first.end_run()  # late: the end of the retry stays
    assert isinstance(await run(1).attempt(), RunEnded)
    with pytest.raises(InvalidValueError, match="no guarded run"):
        await lock().end_run()


async def test_a_renewed_lock_outlives_its_ttl(world, raw):
    held = world.make("DistributedLock", "l", ttl_seconds=3, auto_renew=True)
    await held.acquire()
    for _ in range(40):
        await asyncio.sleep(0.1)
        assert held.lease.valid()
    await held.release()


@pytest.mark.parametrize("bad", [0, -1, float("nan"), float("inf"), "5", True, None])
async def test_a_life_that_cannot_be_right_is_refused(lock, bad):
    with pytest.raises(InvalidValueError, match="ttl_seconds"):
        lock(ttl_seconds=bad)


async def test_an_empty_name_is_refused(lock):
    with pytest.raises(InvalidValueError, match="name"):
        lock("")


COUNTER = """
import sys, redis
from qx_cache import SyncDistributedLock
client = redis.Redis.from_url(sys.argv[1])
for _ in range(40):
    with SyncDistributedLock(client, "counter", namespace=sys.argv[2], ttl_seconds=10):
        value = int(client.get(sys.argv[2] + ":n") or 0)
        client.set(sys.argv[2] + ":n", value + 1, ex=60)
"""


def test_an_unguarded_counter_is_safe_under_the_lock(qx_redis_url, qx_namespace, raw):
    words = [sys.executable, "-c", COUNTER, qx_redis_url, qx_namespace]
    processes = [subprocess.Popen(words) for _ in range(4)]
    assert [0] * 4 == [process.wait() for process in processes]
    assert 160 == int(raw.get(f"{qx_namespace}:n"))


async def test_a_shorter_life_is_renewed_in_time(lock, until):
    held = lock(ttl_seconds=6, auto_renew=True)
    await held.acquire()
    await held.extend(1.5)
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 4:
        held.lease.ensure()
        await asyncio.sleep(0.02)  # watches all along
    await held.release()


async def test_a_lock_that_could_not_be_given_back_can_be_taken_again_once_it_has_lapsed(world):
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        held = SyncDistributedLock(client, "l", ttl_seconds=0.3)

        def hold_while_it_hangs():
            with held:
                os.kill(server.pid, signal.SIGSTOP)

        client.connection_pool.connection_kwargs["socket_timeout"] = 0.1
        try:
            with pytest.raises(StoreUnavailableError):
                hold_while_it_hangs()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        with pytest.raises(LockNotHeldError, match="has not acquired"):
            held.lease.ensure()
        held.acquire(wait_seconds=5)
        held.release()
