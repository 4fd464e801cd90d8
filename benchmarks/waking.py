"""A hundred who wait for one result, and what a record weighs."""

import asyncio
import itertools
import json
import sys
import time

import redis.asyncio

from benchmarks.harness import percentile
from benchmarks.server import server
from qx_cache import IdempotencyStore, SyncIdempotencyStore

WAITERS, ROUNDS = 100, 20


async def waking(url: str) -> dict[str, float]:
    """From a completion to each of those who wait for it, in processes' own connections."""
    pauses: list[float] = []
    async with redis.asyncio.Redis.from_url(url) as owner:
        store = IdempotencyStore(owner, ttl_seconds=60)
        for number in range(ROUNDS):
            clients = [redis.asyncio.Redis.from_url(url) for _ in range(WAITERS)]
            claim = await store.claim(f"k{number}")

            async def wait(client: redis.asyncio.Redis, key: str) -> float:
                await IdempotencyStore(client).wait(key, wait_seconds=20)
                return time.perf_counter()

            waiting = [asyncio.create_task(wait(client, f"k{number}")) for client in clients]
            while (await owner.info("clients"))["blocked_clients"] < WAITERS:
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            await store.complete(claim, "done")
            pauses += [1000 * (ended - began) for ended in await asyncio.gather(*waiting)]
            for client in clients:
                await client.aclose()
    return {"p50_ms": round(percentile(pauses, 0.5), 2), "last_ms": round(max(pauses), 2)}


async def waking_tasks(url: str) -> dict[str, float]:
    """The same for a hundred tasks of one client, as in a web server whose caller retries."""
    pauses: list[float] = []
    async with redis.asyncio.Redis.from_url(url) as owner, redis.asyncio.Redis.from_url(url) as other:
        store, waiter = IdempotencyStore(owner, ttl_seconds=60), IdempotencyStore(other)

        async def wait(key: str) -> float:
            await waiter.wait(key, wait_seconds=20)
            return time.perf_counter()

        for number in range(ROUNDS):
            claim = await store.claim(f"tasks{number}")
            waiting = [asyncio.create_task(wait(claim.key)) for _ in range(WAITERS)]
            while (await owner.info("clients"))["blocked_clients"] < 1:
                await asyncio.sleep(0.01)
            began = time.perf_counter()
            await store.complete(claim, "done")
            pauses += [1000 * (ended - began) for ended in await asyncio.gather(*waiting)]
    return {"tasks_p50_ms": round(percentile(pauses, 0.5), 2), "tasks_last_ms": round(max(pauses), 2)}


async def waking_one(url: str) -> dict[str, float]:
    """From a completion to the only one who waits for it."""
    pauses: list[float] = []
    async with redis.asyncio.Redis.from_url(url) as owner, redis.asyncio.Redis.from_url(url) as other:
        store, waiter = IdempotencyStore(owner, ttl_seconds=60), IdempotencyStore(other)
        for number in range(200):
            claim = await store.claim(f"one{number}")
            waiting = asyncio.create_task(waiter.wait(claim.key, wait_seconds=20))
            while (await owner.info("clients"))["blocked_clients"] < 1:
                await asyncio.sleep(0.001)
            began = time.perf_counter()
            await store.complete(claim, "done")
            await waiting
            pauses.append(1000 * (time.perf_counter() - began))
    return {"one_p50_ms": round(percentile(pauses, 0.5), 2)}


def memory(url: str) -> dict[str, float]:
    """``MEMORY USAGE`` of a record with a result of 100 bytes, and of a running one."""
    client = redis.Redis.from_url(url)
    store, numbers = SyncIdempotencyStore(client), itertools.count()
    running = store.claim(f"order:{next(numbers)}")
    done = store.claim(f"order:{next(numbers)}")
    store.complete(done, "r" * 98)
    weights = {
        "running_bytes": client.memory_usage("qx:idem:1:{" + running.key + "}"),
        "done_bytes": client.memory_usage("qx:idem:1:{" + done.key + "}"),
    }
    client.close()
    return weights


if __name__ == "__main__":
    with server() as one:
        figures = {**asyncio.run(waking(one.url)), **asyncio.run(waking_tasks(one.url))}
        figures |= {**asyncio.run(waking_one(one.url)), **memory(one.url)}
    json.dump(figures, sys.stdout)
