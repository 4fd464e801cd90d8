"""Acquire and release with nobody else there; claim and complete of new keys: both twins, the floor, peers."""

import argparse
import itertools
import json
import sys
import uuid
from collections.abc import Callable
from typing import Any

RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
BARE = "return redis.call('SET', KEYS[1], ARGV[1], 'PX', 60000)"
HEADER, RESULT = "h" * 130, "r" * 100


def locks(url: str) -> dict[str, Callable[[], Any]]:
    """``SET NX PX`` and a release script are the floor: no fence, no queue, no window, no safe repetition."""
    import redis
    import redis_lock
    from redis.lock import Lock
    from redlock import Redlock, RedlockConfig

    from qx_cache import SyncDistributedLock

    client = redis.Redis.from_url(url)
    sha = client.script_load(RELEASE)

    def floor() -> None:
        token = uuid.uuid4().hex
        client.set("floor", token, nx=True, px=30_000)
        client.evalsha(sha, 1, "floor", token)

    mine = SyncDistributedLock(client, "bench", ttl_seconds=30)

    def ours() -> None:
        mine.acquire()
        mine.release()

    def redis_py() -> None:
        lock = Lock(client, "redis-py", timeout=30)
        lock.acquire()
        lock.release()

    def python_redis_lock() -> None:
        lock = redis_lock.Lock(client, "python-redis-lock", expire=30)
        lock.acquire()
        lock.release()

    manager = Redlock(RedlockConfig(masters=[url], socket_timeout=5, socket_connect_timeout=5))

    def redlock_ng() -> None:
        manager.release(manager.acquire("redlock-ng", 30_000))

    return {
        "floor": floor,
        "qx_cache": ours,
        "redis-py Lock": redis_py,
        "python-redis-lock": python_redis_lock,
        "redlock-ng": redlock_ng,
    }


def async_locks(url: str) -> dict[str, Callable[[], Any]]:
    """The same with asyncio clients."""
    import redis.asyncio
    from redis.asyncio.lock import Lock

    from qx_cache import DistributedLock

    client = redis.asyncio.Redis.from_url(url)
    script = client.register_script(RELEASE)

    async def floor() -> None:
        token = uuid.uuid4().hex
        await client.set("floor", token, nx=True, px=30_000)
        await client.evalsha(script.sha, 1, "floor", token)

    mine = None

    async def ours() -> None:
        nonlocal mine
        if mine is None:
            await client.script_load(RELEASE)
            mine = DistributedLock(client, "bench", ttl_seconds=30)
        await mine.acquire()
        await mine.release()

    async def redis_py() -> None:
        lock = Lock(client, "redis-py", timeout=30)
        await lock.acquire()
        await lock.release()

    return {"floor": floor, "qx_cache": ours, "redis-py Lock": redis_py}


def claims(url: str) -> dict[str, Callable[[], Any]]:
    """Two bare EVALSHA, each a SET of what the record would say, are the floor."""
    import logging

    import redis
    from aws_lambda_powertools.utilities.idempotency import IdempotencyConfig, idempotent_function
    from aws_lambda_powertools.utilities.idempotency.persistence.redis import RedisCachePersistenceLayer

    from qx_cache import SyncIdempotencyStore

    logging.disable(logging.WARNING)
    client, number = redis.Redis.from_url(url), itertools.count()
    sha = client.script_load(BARE)

    def floor() -> None:
        key = f"floor:{next(number)}"
        client.evalsha(sha, 1, key, HEADER)
        client.evalsha(sha, 1, key, HEADER + RESULT)

    store = SyncIdempotencyStore(client, ttl_seconds=60)

    def ours() -> None:
        store.complete(store.claim(f"ours:{next(number)}"), RESULT)

    def ours_run() -> None:
        store.run(f"run:{next(number)}", str, RESULT)

    @idempotent_function(
        data_keyword_argument="order",
        persistence_store=RedisCachePersistenceLayer(client=client),
        config=IdempotencyConfig(expires_after_seconds=60),
    )
    def powertools_work(order: str) -> str:  # noqa: ARG001  # the key is made of it
        return RESULT

    def powertools() -> None:
        powertools_work(order=f"powertools:{next(number)}")

    return {"floor": floor, "qx_cache": ours, "qx_cache run()": ours_run, "Powertools": powertools}


def async_claims(url: str) -> dict[str, Callable[[], Any]]:
    """The same with asyncio clients."""
    import redis.asyncio
    from idemkit.backends.redis import RedisBackend

    from qx_cache import IdempotencyStore

    client, number = redis.asyncio.Redis.from_url(url), itertools.count()
    script = client.register_script(BARE)
    store = None

    async def floor() -> None:
        key = f"floor:{next(number)}"
        await client.evalsha(script.sha, 1, key, HEADER)
        await client.evalsha(script.sha, 1, key, HEADER + RESULT)

    async def ours() -> None:
        nonlocal store
        if store is None:
            await client.script_load(BARE)
            store = IdempotencyStore(client, ttl_seconds=60)
        await store.complete(await store.claim(f"ours:{next(number)}"), RESULT)

    backend = RedisBackend(client)

    async def idemkit() -> None:
        key = f"idemkit:{next(number)}"
        claimed = await backend.claim(key, "fingerprint", 1, 30)
        await backend.complete(key, claimed.our_claim_token, 200, {}, RESULT.encode(), 60)

    return {"floor": floor, "qx_cache": ours, "idemkit": idemkit}


KINDS = {"lock": locks, "async lock": async_locks, "claim": claims, "async claim": async_claims}


def main() -> None:
    """Measure one kind with one parser, and print the figures as JSON."""
    words = argparse.ArgumentParser()
    words.add_argument("kind", choices=KINDS)
    words.add_argument("--parser", choices=["hiredis", "pure"], default="hiredis")
    words.add_argument("--rounds", type=int, default=40)
    words.add_argument("--times", type=int, default=150)
    said = words.parse_args()
    if said.parser == "pure":
        sys.modules["hiredis"] = None  # type: ignore[assignment]  # before redis-py looks for it

    from benchmarks.harness import acompare
    from benchmarks.server import server

    async def run(url: str) -> dict[str, dict[str, float]]:
        contenders = KINDS[said.kind](url)
        for function in reversed(contenders.values()):  # ours loads the script of the asyncio floor
            for _ in range(100):
                made = function()
                if hasattr(made, "__await__"):
                    await made
        counts = {name: await round_trips(function) for name, function in contenders.items()}
        figures = await acompare(contenders, rounds=said.rounds, times=said.times)
        return {name: {**counts[name], **figures[name]} for name in figures}

    with server() as one, one.client() as admin:

        async def round_trips(function: Callable[[], Any]) -> dict[str, float]:
            before = admin.info("stats")["total_reads_processed"]
            for _ in range(50):
                made = function()
                if hasattr(made, "__await__"):
                    await made
            return {"round_trips": round((admin.info("stats")["total_reads_processed"] - before - 1) / 50, 1)}

        import asyncio

        json.dump(asyncio.run(run(one.url)), sys.stdout)


if __name__ == "__main__":
    main()
