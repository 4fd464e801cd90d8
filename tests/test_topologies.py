"""The package on every kind of server: Redis 7.0, RESP2 and RESP3, TLS, Sentinel, Cluster; and their failovers."""

import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import servers
import trustme

from qx_cache import (
    Claimed,
    Done,
    LeaseState,
    LockNotHeldError,
    StoreUnavailableError,
    diagnose,
    diagnose_sync,
)

pytestmark = pytest.mark.servers
PASSWORD = "p:w/d"  # noqa: S105  # of servers that live for seconds
QUOTED = "p%3Aw%2Fd"


async def until(condition, seconds=20.0, what="the condition"):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        await asyncio.sleep(0.01)


async def renewal(lease, what="a renewal"):
    before = lease._valid_until
    await until(lambda: lease._valid_until > before, what=what)


class Certificates:
    """A certificate authority, and files of what it signed."""

    def __init__(self, folder):
        self._authority, self._folder = trustme.CA(), folder
        self.authority = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.authority)

    def issue(self, name):
        issued = self._authority.issue_cert(name)
        certificate, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def serving(self, name="127.0.0.1"):
        certificate, key = self.issue(name)
        return {"tls_cert_file": certificate, "tls_key_file": key, "tls_ca_cert_file": self.authority}

    def options(self):
        certificate, key = self.issue("client")
        return f"ssl_ca_certs={self.authority}&ssl_certfile={certificate}&ssl_keyfile={key}"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls"))


def conforms(url, *options):
    """Start the conformance suite; it ends by itself."""
    words = [sys.executable, "-m", "qx_cache.testing", url, "-q", "--tb=short", *options]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/", env=env)


def _embedded(stack, certificates):
    return "embedded://"


def _redis_7_resp2(stack, certificates):
    return stack.enter_context(servers.Server(servers.redis_7())).url + "?protocol=2"


def _redis_7_resp3(stack, certificates):
    return stack.enter_context(servers.Server(servers.redis_7())).url + "?protocol=3"


def _tls(stack, certificates):
    server = stack.enter_context(servers.Server(servers.redis_7(), **certificates.serving()))
    return f"rediss://{server.address}/0?{certificates.options()}"


def _sentinel(stack, certificates):
    _, _, watchers = stack.enter_context(servers.sentinels(None, password=PASSWORD))
    return f"redis+sentinel://:{QUOTED}@{','.join(watcher.address for watcher in watchers)}/mymaster/0"


def _cluster(stack, certificates):
    nodes = stack.enter_context(servers.cluster())
    return f"redis+cluster://{nodes[0].address},{nodes[1].address}"


@pytest.mark.parametrize("kinds", [[_embedded, _redis_7_resp2, _redis_7_resp3], [_tls, _sentinel, _cluster]])
def test_the_conformance_suite_passes_on(kinds, certificates):
    """Three suites at a time, as each mostly waits."""
    with ExitStack() as stack:
        runs = [(kind, conforms(kind(stack, certificates))) for kind in kinds]
        said = {kind.__name__: (run.communicate(timeout=100)[0], run.returncode) for kind, run in runs}
    assert not {name: words for name, (words, status) in said.items() if status}


def test_the_conformance_suite_finds_a_server_that_is_unfit():
    with servers.Server(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        run = conforms(server.url, "-k", "fit")
        said, _ = run.communicate(timeout=60)
    assert 1 == run.returncode
    assert "maxmemory-policy is allkeys-lru" in said
    assert "2 failed" in said


async def test_tls_is_verified_unless_the_url_says_otherwise(connect, certificates):
    with servers.Server(servers.redis_7(), **certificates.serving()) as server:
        mine = certificates.options()
        url = f"rediss://{server.address}/0"
        world = await connect(f"{url}?{mine}")
        assert isinstance(await world.make("IdempotencyStore").claim("k"), Claimed)
        without_authority = mine.partition("&")[2]
        await connect(f"{url}?{without_authority}&ssl_cert_reqs=none&ssl_check_hostname=false")
        with pytest.raises(StoreUnavailableError, match=r"(?i)certificate verify failed"):
            await connect(f"{url}?{without_authority}")
        with pytest.raises(StoreUnavailableError, match=server.address):
            await connect(f"{url}?ssl_ca_certs={certificates.authority}")  # no client certificate
        with pytest.raises(StoreUnavailableError):
            await connect(server.url)


async def test_a_certificate_for_another_host_is_refused(connect, certificates):
    with (
        servers.Server(servers.redis_7(), **certificates.serving("elsewhere.example")) as server,
        pytest.raises(StoreUnavailableError, match=r"(?i)certificate verify failed"),
    ):
        await connect(f"rediss://{server.address}/0?{certificates.options()}")


async def test_a_lock_lives_through_a_failover_of_sentinels(connect):
    with servers.sentinels(None, password=PASSWORD) as (master, replica, watchers):
        hosts = ";".join(f"sentinel://:{QUOTED}@{watcher.address}/0" for watcher in watchers)
        world = await connect(f"{hosts}?master_name=mymaster")
        held = world.make("DistributedLock", "l", ttl_seconds=12, auto_renew=True)
        store = world.make("IdempotencyStore", lease_seconds=12)
        lease = await held.acquire()
        claim = await store.claim("k")
        with master.raw(password=PASSWORD) as raw:
            assert 1 == raw.wait(1, 5000)  # the replica knows
        master.kill()
        with replica.raw(password=PASSWORD) as raw:
            await until(lambda: "master" == raw.info("replication")["role"], what="a new master")
        await renewal(lease, "a renewal by the new master")
        await until_it_works(store.renew, claim)
        assert await store.complete(claim, 5)
        assert isinstance(await store.claim("k"), Done)
        await held.release()
        assert (await held.acquire()).fence > lease.fence
        await held.release()


async def until_it_works(function, *args):
    deadline = time.monotonic() + 20
    while True:
        try:
            return await function(*args)
        except StoreUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def test_a_failover_to_a_stale_replica_is_told_and_the_fence_still_rises(connect):
    with (
        servers.Server(repl_diskless_sync_delay=0) as master,
        servers.Server(replicaof=f"127.0.0.1 {master.port}") as replica,
    ):
        with replica.raw() as raw:
            servers.until_true(lambda: "up" == raw.info("replication")["master_link_status"])
        before = await connect(master.url)
        known = before.make("DistributedLock", "l")
        first = (await known.acquire()).fence
        await known.release()
        with master.raw() as raw:
            assert 1 == raw.wait(1, 5000)
        with replica.raw() as raw:
            raw.replicaof("NO", "ONE")  # from now on it knows nothing new
        held = before.make("DistributedLock", "l")
        lost = await held.acquire()
        assert lost.fence > first
        master.kill()
        after = await connect(replica.url)
        next_one = after.make("DistributedLock", "l")
        assert (await next_one.acquire()).fence > lost.fence
        await next_one.release()


async def test_a_failover_in_a_cluster_costs_only_the_locks_of_its_node_a_pause(connect):
    with servers.cluster(replicas=1) as nodes:
        world = await connect(f"redis+cluster://{nodes[1].address},{nodes[2].address}")
        locks = [world.make("DistributedLock", f"l{i}", ttl_seconds=9, auto_renew=True) for i in range(30)]
        leases = [await lock.acquire() for lock in locks]
        with nodes[0].raw() as raw:
            assert 1 == raw.wait(1, 5000)
        nodes[0].kill()
        with nodes[3].raw() as raw:
            await until(lambda: "master" == raw.info("replication")["role"], what="a new master")
        before = [lease._valid_until for lease in leases]
        await until(
            lambda: all(lease._valid_until > was for lease, was in zip(leases, before, strict=True)),
            what="a renewal of all",
        )
        assert all(lease.valid() for lease in leases)
        for lock in locks:
            await until_it_works(lock.release)


async def test_a_slot_that_moves_takes_its_lock_and_its_waiter_along(connect):
    with servers.cluster() as nodes:
        world = await connect(f"redis+cluster://{nodes[0].address}")
        held = world.make("DistributedLock", "l", ttl_seconds=3, auto_renew=True)
        lease = await held.acquire()
        waiting = asyncio.create_task(world.make("DistributedLock", "l", ttl_seconds=3).acquire(wait_seconds=20))
        raws = [node.raw() for node in nodes]
        await until(lambda: any(raw.info("clients")["blocked_clients"] for raw in raws), what="a waiter")
        move(raws, "qx:lock:1:{l}")
        await renewal(lease, "a renewal by the new node")
        await held.release()
        assert (await waiting).fence > lease.fence
        for raw in raws:
            raw.close()


def move(raws, key):
    """Move the slot of ``key`` to another node, with the keys in it."""
    slot = raws[0].execute_command("CLUSTER KEYSLOT", key)
    names = [raw.execute_command("CLUSTER MYID") for raw in raws]
    source = next(i for i, raw in enumerate(raws) if raw.execute_command("CLUSTER COUNTKEYSINSLOT", slot))
    target = (source + 1) % len(raws)
    raws[target].execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[source])
    raws[source].execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[target])
    while keys := raws[source].execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        port = raws[target].connection_pool.connection_kwargs["port"]
        raws[source].execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
    for raw in [raws[target], raws[source], *raws]:
        raw.execute_command("CLUSTER SETSLOT", slot, "NODE", names[target])


async def test_each_node_of_a_cluster_is_looked_at(connect):
    with servers.cluster() as nodes:
        with nodes[2].raw() as raw:
            raw.config_set("maxmemory", "100mb")
            raw.config_set("maxmemory-policy", "allkeys-lru")
        world = await connect(f"redis+cluster://{nodes[0].address}")
        found = await diagnose(world.client) if world.kind == "async" else diagnose_sync(world.client)
        assert [str(nodes[2].port)] == [
            str(f).split("at 127.0.0.1:")[1][:5] for f in found if f.name == "eviction"
        ]


@pytest.mark.parametrize("remembers", [True, False])
async def test_a_restart_of_the_server_keeps_what_it_remembers_and_tells_what_it_forgot(connect, remembers):
    kept = {"appendonly": "yes", "appendfsync": "always"} if remembers else {}
    with servers.Server(**kept) as server:
        world = await connect(server.url)
        held = world.make("DistributedLock", "l", ttl_seconds=3, auto_renew=True)
        store = world.make("IdempotencyStore", lease_seconds=3)
        lease, claim = await held.acquire(), await store.claim("k")
        server.kill()
        server.start()
        if remembers:
            await renewal(lease)
            await held.release()
        else:
            await until(lambda: lease.state is LeaseState.LOST, what="the loss")
            with pytest.raises(LockNotHeldError):
                await held.release()
            assert (await held.acquire()).fence > lease.fence
            await held.release()
        assert await store.complete(claim, 7)  # rebuilds a record that vanished
        assert 7 == await store.get("k")
