"""Both twins under one set of tests, on a real server, with bytes and with decoding clients."""

import asyncio
import inspect
import signal
import time

import pytest
import redis
import redis.asyncio
import servers

pytest_plugins = ["qx_cache.testing"]
collect_ignore = ["stack"]  # runs within docker-compose.yml

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts so what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else what the tests start could not be interrupted


class Awaited:
    """A blocking object whose methods can be awaited, so that one test serves both twins."""

    def __init__(self, blocking):
        self.blocking = blocking

    def __getattr__(self, name):
        value = getattr(self.blocking, name)
        if not inspect.ismethod(value):
            return value

        async def method(*args, **kwargs):
            return await asyncio.to_thread(value, *args, **kwargs)

        return method


class World:
    """One of the two worlds: makes the classes of its kind."""

    def __init__(self, kind, client, namespace):
        self.kind, self.client, self.namespace = kind, client, namespace

    def make(self, name, *args, **kwargs):
        import qx_cache

        made = getattr(qx_cache, name if self.kind == "async" else f"Sync{name}")(
            self.client, *args, namespace=self.namespace, **kwargs
        )
        return made if self.kind == "async" else Awaited(made)

    async def perform(self, call):
        from qx_cache._run import arun, run

        return await arun(self.client, call) if self.kind == "async" else run(self.client, call)

    def records(self, store):
        return (store if self.kind == "async" else store.blocking)._records


@pytest.fixture(params=["async", "sync", "async decoding", "sync decoding"])
async def world(request, qx_redis_url, qx_namespace):
    kind, _, decoding = request.param.partition(" ")
    options = {"decode_responses": bool(decoding)}
    if kind == "async":
        async with redis.asyncio.Redis.from_url(qx_redis_url, **options) as client:
            yield World(kind, client, qx_namespace)
    else:
        with redis.Redis.from_url(qx_redis_url, **options) as client:
            yield World(kind, client, qx_namespace)


@pytest.fixture
def world_of():
    """Makes a world of a client that a test has made itself."""
    return World


@pytest.fixture(params=["async", "sync"])
async def connect(request):
    """Opens clients of one kind; they are closed at the end."""
    from qx_cache import create_client, create_sync_client

    made = []

    async def connect(url):
        client = await create_client(url) if request.param == "async" else create_sync_client(url)
        made.append(client)
        return World(request.param, client, "qx")

    yield connect
    for client in made:
        await client.aclose() if request.param == "async" else client.close()


@pytest.fixture
def raw(qx_redis_url):
    with redis.Redis.from_url(qx_redis_url) as client:
        yield client


@pytest.fixture
def until():
    """Wait for a truthy value with a deadline."""

    def wait(condition, seconds=10.0, what="the condition"):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.01)
        return pytest.fail(f"waited {seconds} s in vain for {what}")

    return wait


@pytest.fixture(scope="session")
def postgresql_url():
    with servers.postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.servers)])
def database_url(request, tmp_path):
    """A database of the test's own."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
        return
    yield servers.new_database(request.getfixturevalue("postgresql_url"))
