"""What goes wrong around a lock or a claim: processes, networks, memory, clocks. On real servers, both twins."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import pytest
import redis
from proxies import Proxy

from qx_cache import (
    Claimed,
    ClaimLostError,
    LeaseState,
    LockNotHeldError,
    StoreRefusedError,
    SyncDistributedLock,
)
from qx_cache.embedded import start_server

HOLDER = """
import asyncio, sys
from qx_cache import DistributedLock, LockNotHeldError, SyncDistributedLock, create_client, create_sync_client

async def drive(value):
    return await value if asyncio.iscoroutine(value) else value

async def main(twin, url, namespace, ttl, renew):
    client = await create_client(url) if twin == "async" else create_sync_client(url)
    kind = DistributedLock if twin == "async" else SyncDistributedLock
    lock = kind(client, "l", namespace=namespace, ttl_seconds=float(ttl), auto_renew=renew == "renew")
    print("waits", flush=True)
    lease = await drive(lock.acquire())
    print(lease.fence, flush=True)
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, sys.stdin.readline)
    print(lease.valid(), flush=True)
    try:
        await drive(lock.release())
        print("released", flush=True)
    except LockNotHeldError:
        print("lost", flush=True)
    await client.aclose() if twin == "async" else client.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(params=["async", "sync"])
def process(request, qx_redis_url, qx_namespace):
    """Starts processes that take the lock, say its fence, hold it until told by a line, and say how it went."""
    started = []

    def start(ttl=30.0, *, renew=False):
        how = [qx_redis_url, qx_namespace, str(ttl), "renew" if renew else "-"]
        words = [sys.executable, "-c", HOLDER, request.param, *how]
        made = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(made)
        assert "waits" == made.stdout.readline().strip()
        return made

    yield start
    for made in started:
        made.kill()
        made.wait()
        made.stdin.close()
        made.stdout.close()


async def holds(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        await asyncio.sleep(0.005)


async def blocked(raw, number):
    """Wait until so many connections are blocked at the server."""
    await holds(lambda: raw.info("clients")["blocked_clients"] >= number)


async def test_a_killed_holder_is_followed_by_who_waits_longest(process, qx_redis_url, qx_namespace, raw):
    holder = process(ttl=1.0, renew=True)
    first_fence = int(holder.stdout.readline())
    first = process()
    await blocked(raw, 1)
    process()
    await blocked(raw, 2)
    killed_at = time.monotonic()
    holder.kill()
    assert int(first.stdout.readline()) > first_fence
    assert time.monotonic() - killed_at < 1 + 3  # its life; less than a watch
    with redis.Redis.from_url(qx_redis_url) as client:
        assert 1 == SyncDistributedLock(client, "l", namespace=qx_namespace).info().waiters


async def test_a_waiter_killed_at_the_head_of_the_queue_holds_nobody_up(process, qx_redis_url, qx_namespace, raw):
    with redis.Redis.from_url(qx_redis_url) as client:
        held = SyncDistributedLock(client, "l", namespace=qx_namespace, ttl_seconds=30)
        held.acquire()
        first = process()
        await blocked(raw, 1)
        second = process()
        await blocked(raw, 2)
        os.kill(first.pid, signal.SIGSTOP)  # its turn comes while it cannot take it
        released_at = time.monotonic()
        held.release()
        os.kill(first.pid, signal.SIGKILL)
        second.stdout.readline()
        assert time.monotonic() - released_at < 1 + 5 + 1  # the reserve, a watch, a noisy machine


async def test_a_holder_frozen_past_its_ttl_knows_it_when_it_wakes(process):
    frozen = process(ttl=0.5, renew=True)
    fence = int(frozen.stdout.readline())
    os.kill(frozen.pid, signal.SIGSTOP)
    rival = process()
    assert int(rival.stdout.readline()) > fence
    frozen.stdin.write("\n")
    frozen.stdin.flush()
    os.kill(frozen.pid, signal.SIGCONT)
    assert ["False", "lost"] == [frozen.stdout.readline().strip() for _ in range(2)]
    rival.stdin.write("\n")
    rival.stdin.flush()
    assert ["True", "released"] == [rival.stdout.readline().strip() for _ in range(2)]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
async def test_a_forked_child_holds_nothing_and_cannot_release_its_parents(connect, qx_redis_url):
    world = await connect(qx_redis_url)
    held, store = world.make("DistributedLock", "forked"), world.make("IdempotencyStore")
    lease, claim = await held.acquire(), await store.claim("forked")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            release = held.release() if world.kind == "async" else held.blocking.release
            try:
                release.send(None) if world.kind == "async" else release()
            except LockNotHeldError:
                code = 0 if lease.lost and claim.lease.lost else 2
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert lease.valid()
    assert claim.lease.valid()
    await held.release()
    await store.release(claim)


async def test_a_network_that_hangs_makes_it_doubtful_by_the_local_window(connect):
    with start_server() as server, closing(Proxy(server.socket_path)) as proxy:
        world = await connect(proxy.url)
        held = world.make("DistributedLock", "l", ttl_seconds=1, auto_renew=True)
        lease = await held.acquire()
        began = time.monotonic()
        proxy.hang()
        await holds(lambda: lease.state is LeaseState.DOUBTFUL)
        assert 0.5 < time.monotonic() - began < 4  # and not the five seconds of the socket
        with pytest.raises(LockNotHeldError, match="confirmed"):
            lease.ensure()
        with server_client(server) as raw:
            await holds(lambda: not raw.exists("qx:lock:1:{l}"))
        proxy.flow()
        await holds(lambda: lease.lost)  # the server let it lapse meanwhile: the answer is no
        with pytest.raises(LockNotHeldError):
            await held.release()


async def test_a_short_hang_ends_with_a_yes(connect):
    with start_server() as server, closing(Proxy(server.socket_path)) as proxy:
        world = await connect(proxy.url)
        held = world.make("DistributedLock", "l", ttl_seconds=6, auto_renew=True)
        lease = await held.acquire()
        proxy.hang()
        await holds(lambda: lease.remaining() < 3.5)  # one renewal is due
        proxy.flow()
        await holds(lambda: lease.remaining() > 4)
        assert lease.valid()
        await held.release()


async def test_what_memory_pressure_evicts_is_told_as_lost_and_a_result_is_stored_all_the_same(connect):
    with start_server(config={"maxmemory": "3mb", "maxmemory-policy": "allkeys-random"}) as server:
        world = await connect(server.url)
        held = world.make("DistributedLock", "l", ttl_seconds=2, auto_renew=True)
        store = world.make("IdempotencyStore")
        lease, claim = await held.acquire(), await store.claim("k")
        with server_client(server) as raw:
            until = time.monotonic() + 20
            while raw.exists("qx:lock:1:{l}") or raw.exists("qx:idem:1:{k}"):
                assert time.monotonic() < until
                for _ in range(200):
                    raw.set(os.urandom(8), os.urandom(1000), ex=60)
        await holds(lambda: lease.lost)
        with pytest.raises(LockNotHeldError):
            await held.release()
        assert await store.complete(claim, 7)


async def test_a_server_without_room_takes_every_end_and_refuses_beginnings(connect):
    with start_server(config={"maxmemory-policy": "noeviction"}) as server, server_client(server) as raw:
        world = await connect(server.url)
        store = world.make("IdempotencyStore")
        held = world.make("DistributedLock", "l", ttl_seconds=3, auto_renew=True)
        lease = await held.acquire()
        done, ended, back = [await store.claim(key) for key in ("done", "ended", "back")]
        raw.config_set("maxmemory", 1)
        for beginning in (store.claim("new"), world.make("DistributedLock", "other").acquire()):
            with pytest.raises(StoreRefusedError, match="maxmemory"):
                await beginning
        before = lease._valid_until
        await holds(lambda: lease._valid_until > before)  # renewals work
        await store.complete(done, "a result")
        await store.release(ended)
        assert await store.abandon(back)
        await held.release()
        assert await store.set("other", 1)
        assert "a result" == await store.get("done")
        assert not raw.exists("qx:lock:1:{l}")


def server_client(server):
    return redis.Redis.from_url(server.url)


@pytest.mark.parametrize("wrong_by", [3600, -3600])
async def test_a_clock_that_is_wrong_by_an_hour_changes_nothing(connect, qx_redis_url, raw, monkeypatch, wrong_by):
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() + wrong_by)
    world = await connect(qx_redis_url)
    held = world.make("DistributedLock", "clock", ttl_seconds=20)
    store = world.make("IdempotencyStore", lease_seconds=0.3)
    lease, claim = await held.acquire(), await store.claim(f"clock{wrong_by}{world.kind}")
    assert 19_000 < raw.pttl("qx:lock:1:{clock}") <= 20_000
    now = raw.time()[0]
    assert abs(lease.fence / 1e6 - now) < 5
    assert abs(claim.fence / 1e6 - now) < 5
    assert abs((await held.info()).since - now) < 5
    assert lease.valid()
    over = await store.claim(claim.key, wait_seconds=5)
    assert isinstance(over, Claimed)
    with pytest.raises(ClaimLostError):
        await store.complete(claim, 1)
    await held.release()
    await store.release(over)
