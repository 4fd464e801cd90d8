"""Waiting for the end of a run, large results, and looking at records."""

import asyncio
import gc
import statistics
import threading
import time

import pytest
import redis
import redis.asyncio

from qx_cache import (
    Claimed,
    CorruptRecordError,
    Done,
    IdempotencyStore,
    InProgressError,
    InvalidValueError,
    ResultNotKeptError,
    Running,
    SyncIdempotencyStore,
)


@pytest.fixture
def store(world):
    return world.make("IdempotencyStore", ttl_seconds=60, lease_seconds=5)


async def blocked(raw, number=1):
    """Wait until so many connections are blocked at the server."""
    deadline = time.monotonic() + 10
    while raw.info("clients")["blocked_clients"] < number:
        assert time.monotonic() < deadline, f"waited 10 s in vain for {number} blocked clients"
        await asyncio.sleep(0.002)


def scripts_run(raw):
    """How many scripts the server has run since its counts were reset."""
    return raw.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]


async def test_a_waiting_claim_gets_the_result(store, raw):
    claim = await store.claim("k")
    waiting = asyncio.create_task(store.claim("k", wait_seconds=20))
    await blocked(raw)
    await store.complete(claim, 5)
    outcome = await waiting
    assert isinstance(outcome, Done)
    assert 5 == outcome.result


@pytest.mark.parametrize("end", ["release", "abandon"])
async def test_a_waiting_claim_takes_over_when_there_is_no_result(store, raw, end):
    claim = await store.claim("k")
    waiting = asyncio.create_task(store.claim("k", wait_seconds=20))
    await blocked(raw)
    await getattr(store, end)(claim)
    outcome = await waiting
    assert isinstance(outcome, Claimed)
    assert outcome.fence > claim.fence


async def test_waiting_ends_in_time_or_with_the_lease(world, store):
    await store.claim("k")
    began = time.monotonic()
    assert isinstance(await store.claim("k", wait_seconds=0.2), Running)
    with pytest.raises(InProgressError):
        await store.wait("k", wait_seconds=0.2)
    assert 0.4 <= time.monotonic() - began < 4
    await world.make("IdempotencyStore", lease_seconds=0.3).claim("short")
    assert (await store.claim("short", wait_seconds=20)).takeover
    await world.make("IdempotencyStore", lease_seconds=0.3).claim("shorter")
    assert "gone" == await store.wait("shorter", "gone")


async def test_wait_gives_the_result_and_never_claims(store, raw):
    assert "none" == await store.wait("k", "none")
    claim = await store.claim("k")
    waiting = asyncio.create_task(store.wait("k"))
    await blocked(raw)
    await store.complete(claim, 5)
    assert 5 == await waiting
    failing = await store.claim("l")
    waiting = asyncio.create_task(store.wait("l", "none"))
    await blocked(raw)
    await store.release(failing)
    assert "none" == await waiting


async def test_all_who_wait_are_woken_at_once(qx_redis_url, qx_namespace):
    """A hundred tasks of one client; none polls."""
    async with redis.asyncio.Redis.from_url(qx_redis_url, max_connections=300) as client:
        store = IdempotencyStore(client, namespace=qx_namespace)
        claim = await store.claim("k")
        woken = []

        async def wait():
            assert 5 == await store.wait("k")
            woken.append(time.monotonic())

        tasks = [asyncio.create_task(wait()) for _ in range(100)]
        while (await client.info("clients"))["blocked_clients"] < 1:
            await asyncio.sleep(0.002)
        await client.config_resetstat()
        await asyncio.sleep(1)
        stats = await client.info("commandstats")
        assert not stats.get("cmdstat_evalsha")
        await store.complete(claim, 5)
        await asyncio.gather(*tasks)
        assert 100 == len(woken)


async def test_three_failing_owners_in_a_row_cost_each_waiter_four_claims(qx_redis_url, qx_namespace, raw):
    number = 20
    async with redis.asyncio.Redis.from_url(qx_redis_url) as client:
        store = IdempotencyStore(client, namespace=qx_namespace, lease_seconds=10)
        owner = await store.claim("k")
        left = asyncio.Queue()

        async def wait():
            outcome = await store.claim("k", wait_seconds=30)
            await left.put(outcome)

        raw.config_resetstat()
        tasks = [asyncio.create_task(wait()) for _ in range(number)]
        while scripts_run(raw) < number:
            await asyncio.sleep(0.002)
        await blocked(raw)
        raw.config_resetstat()
        for failure in range(3):
            await store.release(owner)
            owner = await left.get()
            assert isinstance(owner, Claimed)
            await blocked(raw)
            assert failure + 1 == number - sum(not task.done() for task in tasks)
        await store.complete(owner, "done")
        await asyncio.gather(*tasks)
        assert scripts_run(raw) <= 4 * number


def test_threads_are_woken_too(qx_redis_url, qx_namespace, raw, until):
    with redis.Redis.from_url(qx_redis_url) as client:
        store = SyncIdempotencyStore(client, namespace=qx_namespace)
        claim, latencies, ended_at = store.claim("k"), [], [0.0]

        def wait():
            assert 5 == store.wait("k")
            latencies.append(time.monotonic() - ended_at[0])

        threads = [threading.Thread(target=wait) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: raw.info("clients")["blocked_clients"] >= len(threads))
        ended_at[0] = time.monotonic()
        store.complete(claim, 5)
        for thread in threads:
            thread.join()
        assert statistics.median(latencies) < 1


# redis-py leaves a connection open whose opening was cancelled
@pytest.mark.filterwarnings(
    "ignore:unclosed", "ignore:loop is closed", "ignore::pytest.PytestUnraisableExceptionWarning"
)
async def test_a_cancelled_claim_is_handed_back(world, store):
    if world.kind == "sync":
        pytest.skip("a blocking claim cannot be cancelled")
    for pauses in range(100):  # cancelled at each point on its way
        key = f"k{pauses}"
        claiming = asyncio.create_task(store.claim(key))
        for _ in range(pauses):
            await asyncio.sleep(0)
        claiming.cancel()
        [outcome] = await asyncio.gather(claiming, return_exceptions=True)
        if isinstance(outcome, Claimed):
            break
        info = await store.peek(key)
        assert info is None or info.state == "lapsed"
    else:
        pytest.fail("never came through")
    gc.collect()


@pytest.mark.parametrize("size", [10, 1024, 100_000])
async def test_results_of_any_size_come_back(store, world, raw, size):
    result = "ab" * (size // 2)
    assert await store.complete(await store.claim("k"), result)
    assert result == await store.get("k")
    assert result == (await store.claim("k")).result
    stored = raw.strlen(f"{world.namespace}:idem:1:{{k}}")
    assert stored < 1024 if size >= 1024 else stored > size


async def test_what_compression_does_not_shrink_stays_plain(store, world, raw):
    noise = "".join(chr(33 + hash((n, "x")) % 90) for n in range(1100))
    await store.complete(await store.claim("k"), noise)
    assert noise == await store.get("k")


async def test_a_result_over_the_cap_is_recorded_as_done_and_not_kept(world):
    store = world.make("IdempotencyStore", max_result_bytes=100)
    assert not await store.complete(await store.claim("k"), "x" * 200)
    outcome = await store.claim("k")
    assert isinstance(outcome, Done)
    assert not outcome.kept
    with pytest.raises(ResultNotKeptError):
        await store.get("k")


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "x"])
async def test_a_cap_that_cannot_be_right_is_refused(world, bad):
    with pytest.raises(InvalidValueError, match="max_result_bytes"):
        world.make("IdempotencyStore", max_result_bytes=bad)


async def test_peek_shows_the_header_and_not_the_body(store, world, raw):
    assert await store.peek("k") is None
    claim = await store.claim("k", holder="order desk", fingerprint="f", retries=2)
    info = await store.peek("k")
    assert ("k", "running", claim.fence, 1, 2) == (info.key, info.state, info.fence, info.attempt, info.retries)
    assert "order desk" == info.holder
    assert 1 < info.remaining_seconds <= 5
    await store.abandon(claim)
    assert "lapsed" == (await store.peek("k")).state
    await store.complete(claim, 5)
    info = await store.peek("k")
    assert ("done", True, True) == (info.state, info.kept, info.finalised)
    raw.set(f"{world.namespace}:idem:1:{{bad}}", "2 done\n", ex=60)
    with pytest.raises(CorruptRecordError):
        await store.peek("bad")


async def test_scan_finds_records_by_state_and_age(world, store, raw):
    names = {f"order:{n}/{{ö}} %" for n in range(300)}
    for name in names:
        await store.complete(await store.claim(name), 1)
    await store.release(await store.claim("ended"))
    await store.abandon(await store.claim("lapsed"))
    await store.claim("running")
    raw.set(f"{world.namespace}:idem:1:{{bad}}", "2 done\n", ex=60)
    other = world.make("Cache")
    await other.set("not a record", 1)

    async def found(**options):
        if world.kind == "async":
            return {info.key async for info in store.scan(**options)}
        return {info.key for info in store.blocking.scan(**options)}

    assert names | {"ended", "lapsed", "running"} == await found()
    assert names == await found(state="done")
    assert {"lapsed"} == await found(state="lapsed")
    assert set() == await found(older_than=3600)
    with pytest.raises(InvalidValueError, match="state"):
        await found(state="finished")


async def test_a_records_memory_stays_small(store, world, raw):
    """Under a key of 60 bytes."""
    key = f"{world.namespace}:idem:1:{{{'k' * 9}}}"
    claim = await store.claim("k" * 9, holder="5f0c9e3e-8a53-4d5e-9b53-2a6d5f0c9e3e", fingerprint="f")
    assert 55 <= len(key) <= 60
    assert raw.memory_usage(key) <= 260
    await store.complete(claim, "x" * 98)
    assert raw.memory_usage(key) <= 360
