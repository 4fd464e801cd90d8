"""A reply that is lost on its way: redis-py sends the command again, and each operation recognises it."""

import selectors
import socket
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from qx_cache import Claimed, create_client, create_sync_client


class Proxy:
    """Stands before a server; swallows the reply to the next script when told to, and cuts the connection."""

    def __init__(self, upstream):
        self._folder = tempfile.TemporaryDirectory(prefix="qp-")
        self.path = Path(self._folder.name) / "p.sock"
        self._upstream = str(upstream)
        self._armed = False
        self.lost = 0
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self.path))
        self._door.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next(self):
        self._armed = True

    def close(self):
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._folder.cleanup()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client, server):
        swallow = False
        with client, server, selectors.DefaultSelector() as ready, suppress(OSError):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    if key.fileobj is client and self._armed and b"EVALSHA" in data:
                        self._armed, swallow = False, True
                    if key.fileobj is server and swallow:
                        self.lost += 1
                        return
                    key.data.sendall(data)


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


async def test_an_acquire_whose_reply_was_lost_holds_the_lock_at_once(shaky, proxy):
    warm = shaky.make("DistributedLock", "warm")
    await warm.acquire()
    await warm.release()
    held = shaky.make("DistributedLock", "l", ttl_seconds=20)
    proxy.lose_next()
    began = time.monotonic()
    lease = await held.acquire(wait_seconds=10)
    assert 1 == proxy.lost
    assert time.monotonic() - began < 2  # others wait for their own ghost until its life ends
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
