"""What the preflight finds on real servers that are set up wrongly."""

import os
import signal
import time

import pytest
import redis

from qx_cache import (
    StoreUnavailableError,
    WrongClientError,
    create_client,
    create_sync_client,
    diagnose,
    diagnose_sync,
)
from qx_cache.embedded import start_server


def names(findings):
    return {finding.name: finding.severity for finding in findings}


async def both(url):
    """What both twins find: the same."""
    with create_sync_client(url) as client:
        found = diagnose_sync(client)
    client = await create_client(url)
    assert names(found) == names(await diagnose(client))
    await client.aclose()
    return found


async def test_a_server_that_keeps_what_it_is_told_has_no_findings():
    with start_server(config={"appendonly": "yes"}) as server:
        assert [] == await both(server.url)


async def test_a_server_that_forgets_at_a_restart_is_warned_about():
    with start_server() as server:
        assert {"persistence": "warning"} == names(await both(server.url))


@pytest.mark.parametrize(("limit", "severity"), [("0", "warning"), ("100mb", "error")])
async def test_eviction_is_found_and_says_what_to_set(limit, severity):
    config = {"appendonly": "yes", "maxmemory-policy": "allkeys-lru", "maxmemory": limit}
    with start_server(config=config) as server:
        [finding] = await both(server.url)
        assert ("eviction", severity) == (finding.name, finding.severity)
        assert "allkeys-lru" in str(finding)
        assert "set noeviction" in str(finding)


async def test_a_replica_is_found():
    with start_server(config={"appendonly": "yes"}) as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.replicaof("127.0.0.1", 1)
        assert {"role": "error"} == names(await both(server.url))


async def test_what_a_user_may_not_look_at_or_run_is_said():
    with start_server(config={"appendonly": "yes"}) as server:
        with redis.Redis.from_url(server.url) as raw:
            raw.acl_setuser(
                "small", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-info", "-eval"]
            )
        found = await both(server.url.replace("unix://", "unix://small:pw@"))
        assert {"info": "info", "scripts": "error"} == names(found)


async def test_a_small_pool_is_found():
    config = {"appendonly": "yes"}
    with start_server(config=config) as server, redis.Redis.from_url(server.url, max_connections=3) as client:
        assert {"pool": "warning"} == names(diagnose_sync(client))


async def test_a_server_that_does_not_answer_is_no_finding():
    with start_server() as server, redis.Redis.from_url(server.url, socket_timeout=0.2) as client:
        client.ping()
        os.kill(server.pid, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(StoreUnavailableError):
                diagnose_sync(client)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert time.monotonic() - began < 60


async def test_a_client_of_the_wrong_kind_is_refused_by_name(qx_redis_url):
    with create_sync_client(qx_redis_url) as client, pytest.raises(WrongClientError, match="diagnose_sync"):
        await diagnose(client)
