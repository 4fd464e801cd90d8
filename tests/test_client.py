"""Clients, URLs and settings."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from qx_cache import (
    Cache,
    CacheSettings,
    IdempotencyStore,
    InvalidValueError,
    StoreUnavailableError,
    SyncDistributedLock,
    SyncIdempotencyStore,
    WrongClientError,
    create_client,
    create_sync_client,
)
from qx_cache._urls import read
from qx_cache.embedded import start_server


async def opened(create, source):
    made = create(source)
    return await made if create is create_client else made


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("redis://h:1/2", "redis://h:1/2"),
        ("valkey://h:1/2", "redis://h:1/2"),
        ("valkeys://h", "rediss://h"),
        ("rediss://h/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://h/0?ssl_cert_reqs=required"),
        ("unix:///tmp/s.sock?db=3", "unix:///tmp/s.sock?db=3"),
        ("redis+socket:///tmp/s.sock?virtual_host=/2", "unix:///tmp/s.sock?db=2"),
        ("redis+socket:///tmp/s.sock", "unix:///tmp/s.sock"),
    ],
)
def test_each_accepted_shape_becomes_one_that_redis_py_takes(given, made):
    assert made == read(given).url


@pytest.mark.parametrize("url", ["http://:secret@h", "secret", "memory://"])
@pytest.mark.parametrize("create", [create_sync_client, create_client])
async def test_another_scheme_is_refused_without_showing_credentials(create, url):
    with pytest.raises(InvalidValueError, match="redis://") as caught:
        await opened(create, url)
    assert "secret" not in str(caught.value)


SENTINELS = ("a:26379", "b:7")


@pytest.mark.parametrize(
    ("given", "url", "sentinel_url"),
    [
        ("sentinel://a;sentinel://b:7?master_name=m", "redis://", "redis://"),
        ("sentinel://:pw@a:26379/2?master_name=m;sentinel://b:7/2", "redis://:pw@/2", "redis://"),
        ("redis+sentinel://:pw@a,b:7/m/2", "redis://:pw@/2", "redis://"),
        ("redis-sentinel://a,b:7/m?sentinel_password=s", "redis://", "redis://?password=s"),
        (
            "rediss+sentinel://a,b:7/m?ssl_ca_certs=ca.pem",
            "rediss://?ssl_ca_certs=ca.pem",
            "rediss://?ssl_ca_certs=ca.pem",
        ),
        (
            "sentinel://a;sentinel://b:7?master_name=m&ssl=true&sentinel_ssl=false&ssl_cert_reqs=CERT_REQUIRED",
            "rediss://?ssl_cert_reqs=required",
            "redis://",
        ),
    ],
)
def test_sentinels_are_named_as_celery_does_it_or_with_the_master_in_the_path(given, url, sentinel_url):
    place = read(given)
    assert ("sentinel", "m", SENTINELS) == (place.kind, place.service, place.nodes)
    assert (url, sentinel_url) == (place.url, place.sentinel_url)


def test_a_cluster_is_named_by_any_of_its_nodes():
    place = read("rediss+cluster://u:pw@h:7000,[::1]:7001?ssl_ca_certs=ca.pem")
    assert ("cluster", ("h:7000", "::1:7001"), "rediss://u:pw@?ssl_ca_certs=ca.pem") == (
        place.kind,
        place.nodes,
        place.url,
    )


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sentinel://:secret@a;sentinel://b", "master_name"),
        ("redis+cluster://:secret@h:7000/3", "database 0"),
        ("redis://:secret@a:1,b:2/0", r"redis\+cluster"),
        ("sentinel://:secret@a:99999/0?master_name=m", "host and port"),
        ("redis+cluster://:secret@a:port", "host and port"),
        ("rediss://:secret@h?ssl_cert_reqs=perhaps", "Redis URL"),
    ],
)
def test_what_a_shape_needs_is_told(url, told):
    with pytest.raises(InvalidValueError, match=told) as caught:
        create_sync_client(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:secret@h:port/0", "redis://h:1/0?no_such_option=1"])
def test_a_url_that_cannot_be_read_is_refused(url):
    with pytest.raises(InvalidValueError, match="Redis URL") as caught:
        create_sync_client(url).ping()
    assert "secret" not in str(caught.value)


async def test_nothing_listening_is_told_with_the_host_within_the_connect_timeout():
    settings = CacheSettings(url="redis://:secret@127.0.0.1:1/0", socket_connect_timeout_seconds=5)
    for create in (create_sync_client, create_client):
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            await opened(create, settings)
        assert time.monotonic() - began < 5
        assert "secret" not in str(caught.value)


def test_a_cluster_of_which_no_node_answers_is_unavailable():
    with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1"):
        create_sync_client("redis+cluster://127.0.0.1:1")


async def test_a_wrong_password_is_told_and_not_shown():
    with start_server(config={"requirepass": "right"}) as server:
        url = f"unix://:wrongsecret@{server.socket_path}?db=0"
        for create in (create_sync_client, create_client):
            with pytest.raises(StoreUnavailableError, match=str(server.socket_path)) as caught:
                await opened(create, url)
            assert "wrongsecret" not in str(caught.value)
        with create_sync_client(f"unix://:right@{server.socket_path}?db=0") as client:
            assert client.ping()


async def test_embedded_starts_a_server():
    client = await create_client("embedded://")
    assert await client.ping()
    server = client.connection_pool.qx_server
    await client.aclose()
    server.stop()


async def test_a_client_of_the_wrong_kind_is_refused_by_name(qx_redis_url):
    blocking, awaited = create_sync_client(qx_redis_url), await create_client(qx_redis_url)
    with pytest.raises(WrongClientError, match="SyncCache"):
        Cache(blocking)
    with pytest.raises(WrongClientError, match="use SyncIdempotencyStore"):
        IdempotencyStore(blocking)
    with pytest.raises(WrongClientError, match="use IdempotencyStore"):
        SyncIdempotencyStore(awaited)
    with pytest.raises(WrongClientError, match="use DistributedLock"):
        SyncDistributedLock(awaited, "l")
    blocking.close()
    await awaited.aclose()


def test_settings_come_from_the_environment_when_made_and_hide_the_url(monkeypatch):
    monkeypatch.setenv("QX_CACHE__URL", "redis://:secret@h/0")
    monkeypatch.setenv("QX_CACHE__MAX_CONNECTIONS", "7")
    settings = CacheSettings()

    assert ("redis://:secret@h/0", 7) == (settings.url.get_secret_value(), settings.max_connections)
    assert "secret" not in repr(settings)
    with pytest.raises(ValueError, match="max_connections") as caught:
        CacheSettings(url="redis://:secret@h", max_connections=0)
    assert "secret" not in str(caught.value)


IMPORT = """
import os, sys
seen = []
sys.addaudithook(lambda event, args: seen.append((event, args)) if event == "socket.connect" else None)
class Recorder(dict):
    def get(self, key, default=None):
        seen.append(key) if str(key).startswith("QX") else None
        return super().get(key, default)
    def __getitem__(self, key):
        seen.append(key) if str(key).startswith("QX") else None
        return super().__getitem__(key)
os.environ = Recorder(os.environ)
import {package}
print(seen, sorted({{"celery", "kombu"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("package", "imported"), [("qx_cache", "[] []"), ("qx_cache_celery", "[] ['celery', 'kombu']")]
)
def test_an_import_reads_no_settings_and_opens_no_connection(package, imported):
    words = [sys.executable, "-c", IMPORT.format(package=package)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env={"QX_CACHE__MAX_CONNECTIONS": "x"}
    )
    assert imported == done.stdout.strip()


async def test_a_server_that_hangs_costs_a_call_no_more_than_its_timeouts(connect):
    with start_server() as server:
        settings = CacheSettings(url=server.url, socket_timeout_seconds=0.2, socket_connect_timeout_seconds=0.2)
        world = await connect(settings)
        store = world.make("IdempotencyStore")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                async with asyncio.timeout(20):
                    await store.claim("k")
            assert time.monotonic() - began < 4 * (0.2 + 0.5) + 2  # four tries, their backoff, a noisy machine
        finally:
            os.kill(server.pid, signal.SIGCONT)
