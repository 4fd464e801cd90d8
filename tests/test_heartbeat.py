"""The heartbeat: decisions with a clock of the test's own, and the thread on a real server."""

import asyncio
import os
import signal
import threading
import time

import pytest
import redis

from qx_cache import (
    AsyncHeartbeat,
    DistributedLock,
    Heartbeat,
    InvalidValueError,
    Lease,
    LeaseState,
    LockNotHeldError,
    StoreUnavailableError,
    SyncIdempotencyStore,
    create_client,
    interval_for,
)
from qx_cache._call import Script
from qx_cache._schedule import Schedule
from qx_cache.embedded import start_server
from qx_cache.lease import Renewal


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lease_at(clock, ttl=10.0, name="l"):
    renewal = Renewal(Script("renew"), (b"k",), ())
    return Lease(name=name, fence=1, ttl_seconds=ttl, sent_at=clock(), renewal=renewal, clock=clock)


def test_a_lease_is_held_until_its_window_closes_a_little_before_its_ttl(clock):
    lease = lease_at(clock)
    clock.now += 9.8
    lease.ensure()
    clock.now += 0.15
    assert LeaseState.DOUBTFUL is lease.state
    assert 0.0 == lease.remaining()
    with pytest.raises(LockNotHeldError, match="no renewal was confirmed"):
        lease.ensure()


def test_a_yes_makes_it_held_again_and_a_no_is_final(clock):
    lease, schedule = lease_at(clock), Schedule()
    schedule.add(lease, 3.0, clock())
    clock.now += 11
    assert [lease] == schedule.take(clock())
    schedule.answered(lease, "renewed", clock(), clock())
    assert LeaseState.HELD is lease.state
    schedule.answered(lease, "lost", clock(), clock())
    assert lease.lost
    lease.renewed(clock())
    assert lease.lost
    assert 0 == len(schedule)


def test_nothing_is_renewed_before_one_is_due_and_then_all_within_a_tenth(clock):
    schedule = Schedule()
    first, near, far = (lease_at(clock, name=name) for name in "abc")
    schedule.add(first, 3.0, clock())
    schedule.add(near, 3.0, clock() + 0.2)
    schedule.add(far, 3.0, clock() + 2.0)
    assert [] == schedule.take(clock() + 2.9)
    assert [first, near] == schedule.take(clock() + 3.0)


def test_after_an_error_it_is_tried_again_every_twentieth_of_the_life(clock):
    lease, schedule = lease_at(clock), Schedule()
    schedule.add(lease, 3.0, clock())
    schedule.answered(lease, StoreUnavailableError("renew", "here", "down"), clock(), clock())
    assert clock() + 0.5 == schedule.next_due()


@pytest.mark.parametrize("interval", [0, -1, 5.1, "x"])
def test_an_interval_that_cannot_be_right_is_refused(interval):
    with pytest.raises(InvalidValueError, match="heartbeat_interval"):
        interval_for(10.0, interval)


@pytest.fixture
def beating(qx_redis_url, qx_namespace):
    with redis.Redis.from_url(qx_redis_url) as client:
        heartbeat = Heartbeat(client)
        store = SyncIdempotencyStore(client, namespace=qx_namespace, lease_seconds=2)
        yield store, heartbeat
        heartbeat.stop()


def test_a_lease_is_kept_for_many_lives_and_across_a_script_flush(beating, raw):
    store, heartbeat = beating
    claim = store.claim("k")
    heartbeat.add(claim.lease)
    began = time.monotonic()
    while time.monotonic() - began < 6:
        raw.script_flush()
        assert claim.lease.valid()
        time.sleep(0.05)  # watches all along, hopes for nothing
    heartbeat.remove(claim.lease)


def test_many_leases_are_renewed_in_few_calls(beating, raw, until):
    store, heartbeat = beating
    claims = [store.claim(f"k{number}") for number in range(250)]
    raw.config_resetstat()
    for claim in claims:
        heartbeat.add(claim.lease)

    def calls():
        return raw.info("commandstats").get("cmdstat_evalsha", {"calls": 0})["calls"]

    until(lambda: calls() >= 3, what="three chunks for 250 leases")
    assert calls() <= 2 * 3 + 1  # the second beat may have begun


def test_a_taken_lease_becomes_lost(beating, raw, until, qx_namespace):
    store, heartbeat = beating
    claim = store.claim("k")
    heartbeat.add(claim.lease)
    raw.delete(f"{qx_namespace}:idem:1:{{k}}")
    until(lambda: claim.lease.lost)


def test_a_server_that_hangs_makes_it_doubtful_and_an_answer_makes_it_held_again(until):
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        heartbeat = Heartbeat(client)
        claim = SyncIdempotencyStore(client, lease_seconds=0.6).claim("k")
        heartbeat.add(claim.lease)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            until(lambda: claim.lease.state is LeaseState.DOUBTFUL)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        until(lambda: claim.lease.state is LeaseState.HELD)
        heartbeat.stop()


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_holds_nothing_and_beats_by_itself(beating):
    store, heartbeat = beating
    claim = store.claim("k")
    heartbeat.add(claim.lease)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            own = store.claim("child")
            heartbeat.add(own.lease)
            deadline = time.monotonic() + 4
            while own.lease.valid() and time.monotonic() < deadline:
                time.sleep(0.01)
            code = 0 if own.lease.valid() and claim.lease.lost else 2
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert claim.lease.valid()


class Slow(AsyncHeartbeat):
    """Its beats outlast a release."""

    async def _opened(self):
        client = await super()._opened()
        await client.ping()
        await asyncio.sleep(0.05)
        return client


async def test_a_lock_given_back_during_a_beat_leaves_no_connection(qx_redis_url):
    async with await create_client(qx_redis_url) as client:
        heartbeat = Slow(client)
        lock = DistributedLock(client, "l", ttl_seconds=1.5, auto_renew=True, heartbeat=heartbeat)
        await lock.acquire()
        while heartbeat._sibling is None:
            await asyncio.sleep(0)
        await lock.release()
        assert heartbeat._beating is None
        assert heartbeat._sibling is None


class Unlucky(redis.CredentialProvider):
    """Its source is away once, when the heartbeat asks first."""

    asked = 0

    def get_credentials(self):
        if threading.current_thread() is threading.main_thread():
            return ("default", "any")
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("the token endpoint is away")
        return ("default", "any")


def test_nothing_that_goes_wrong_ends_the_thread_that_all_leases_depend_on(qx_redis_url, qx_namespace, raw, until):
    options = {"credential_provider": Unlucky()}
    with redis.Redis.from_url(qx_redis_url, **options) as client:
        heartbeat = Heartbeat(client)
        store = SyncIdempotencyStore(client, namespace=qx_namespace, lease_seconds=2)
        doomed, kept = store.claim("doomed"), store.claim("kept")
        doomed.lease.when_lost(lambda: 1 / 0)
        heartbeat.add(doomed.lease), heartbeat.add(kept.lease)
        raw.delete(f"{qx_namespace}:idem:1:{{doomed}}")
        until(lambda: doomed.lease.lost)
        began = time.monotonic()
        until(lambda: time.monotonic() - began > 5, what="two and a half lives")
        assert kept.lease.valid()
        heartbeat.stop()


def test_an_answer_may_take_as_long_as_the_shortest_life_allows_and_again_longer_without_it(clock):
    schedule, short = Schedule(), lease_at(clock, ttl=0.15)
    assert 5.0 == schedule.timeout()
    schedule.add(lease_at(clock, ttl=3.0), 1.0, clock())
    schedule.add(short, 0.05, clock())
    assert pytest.approx(0.025) == schedule.timeout()
    schedule.remove(short)
    assert 0.5 == schedule.timeout()


def test_a_yes_to_a_life_that_was_changed_meanwhile_asks_again_at_once(clock):
    lease, schedule = lease_at(clock), Schedule()
    schedule.add(lease, 3.0, clock())
    clock.now += 3
    schedule.take(clock())
    lease.renewal = Renewal(Script("renew"), (b"k",), (300,))
    lease.renewed(clock(), 300.0)
    schedule.answered(lease, "renewed", clock(), clock())
    assert [lease] == schedule.take(clock())
