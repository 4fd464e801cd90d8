"""Clients, URLs and settings."""

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
from qx_cache._connect import resolve
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
    assert made == resolve(given).url


@pytest.mark.parametrize("url", ["http://:secret@h", "secret", "memory://", "sentinel://:secret@a;sentinel://b"])
@pytest.mark.parametrize("create", [create_sync_client, create_client])
async def test_another_scheme_is_refused_without_showing_credentials(create, url):
    with pytest.raises(InvalidValueError, match="redis://") as caught:
        await opened(create, url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:secret@h:port/0", "redis://h:1/0?no_such_option=1"])
def test_a_url_that_cannot_be_read_is_refused(url):
    with pytest.raises(InvalidValueError, match="Redis URL") as caught:
        create_sync_client(url).ping()
    assert "secret" not in str(caught.value)


async def test_nothing_listening_is_told_with_the_host_within_the_connect_timeout():
    settings = CacheSettings(url="redis://:secret@127.0.0.1:1/0", socket_connect_timeout_seconds=1)
    for create in (create_sync_client, create_client):
        began = time.monotonic()
        with pytest.raises(StoreUnavailableError, match=r"127\.0\.0\.1:1") as caught:
            await opened(create, settings)
        assert time.monotonic() - began < 1
        assert "secret" not in str(caught.value)


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
