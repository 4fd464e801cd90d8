"""A reply that is lost on its way: redis-py sends the command again, and each operation recognises it."""

import time

import pytest
import redis.asyncio
from proxies import Proxy

from qx_cache import Claimed, IdempotencyStore, create_client, create_sync_client
from qx_cache.embedded import start_server


@pytest.fixture
def proxy(qx_redis_url):
    if not qx_redis_url.startswith("unix://"):
        pytest.skip("the proxy stands before the embedded server's socket")
    made = Proxy(qx_redis_url.removeprefix("unix://").partition("?")[0])
    yield made
    made.close()


@pytest.fixture(params=["async", "sync"])
async def shaky(request, proxy, world_of, qx_namespace):
    """The twins on a client whose replies may be lost."""
    url = f"unix://{proxy.path}?db=0"
    if request.param == "async":
        client = await create_client(url)
        yield world_of("async", client, qx_namespace)
        await client.aclose()
    else:
        with create_sync_client(url) as client:
            yield world_of("sync", client, qx_namespace)


async def test_a_claim_whose_reply_was_lost_is_ours(shaky, proxy):
    store = shaky.make("IdempotencyStore")
    await store.release(await store.claim("warm"))  # the server knows the scripts
    proxy.lose_next()
    outcome = await store.claim("k")
    assert 1 == proxy.lost
    assert isinstance(outcome, Claimed)
    assert (1, False) == (outcome.attempt, outcome.takeover)


async def test_a_completion_whose_reply_was_lost_is_no_loss(shaky, proxy):
    store = shaky.make("IdempotencyStore")
    await store.complete(await store.claim("warm"), 1)
    claim = await store.claim("k")
    proxy.lose_next()
    assert await store.complete(claim, 5)
    assert 1 == proxy.lost
    assert 5 == await store.get("k")


class Closed(redis.asyncio.UnixDomainSocketConnection):
    """Closed by another as it is about to send: what the cluster client does when a call to a node fails."""

    armed = False

    async def check_health(self):
        if Closed.armed:
            Closed.armed = False
            await self.disconnect(nowait=True)


async def test_a_call_whose_connection_another_has_closed_is_sent_again():
    with start_server() as server:
        pool = redis.asyncio.ConnectionPool(connection_class=Closed, path=server.socket_path)
        async with redis.asyncio.Redis.from_pool(pool) as client:
            assert await client.ping()
            Closed.armed = True
            assert isinstance(await IdempotencyStore(client).claim("k"), Claimed)
    assert not Closed.armed


async def test_an_acquire_whose_reply_was_lost_holds_the_lock_at_once(shaky, proxy):
    warm = shaky.make("DistributedLock", "warm")
    await warm.acquire()
    await warm.release()
    held = shaky.make("DistributedLock", "l", ttl_seconds=20)
    proxy.lose_next()
    began = time.monotonic()
    lease = await held.acquire(wait_seconds=10)
    assert 1 == proxy.lost
    assert time.monotonic() - began < 8  # others wait for their own ghost until its life ends
    assert lease.fence == (await held.info()).fence
    assert lease.valid()


async def test_a_release_whose_reply_was_lost_is_no_false_alarm(shaky, proxy):
    held = shaky.make("DistributedLock", "l")
    await held.acquire()
    await held.release()
    await held.acquire()
    proxy.lose_next()
    await held.release()
    assert 1 == proxy.lost
    assert "free" == (await held.info()).state
