"""What a Redis that is away, full or spoilt means for a task: nothing lost, nothing silent, no wrong SUCCESS."""

import os
import signal
import time

import pytest
import redis
from conftest import silent

pytestmark = pytest.mark.worker
KEY = "shop:idem:1:{shop.capture:key:a}"
LEASE_SECONDS = 2


@pytest.fixture
def client(records):
    with redis.Redis.from_url(records.url) as client:
        yield client


@pytest.fixture
def open_shop(shop_with, records):
    """A shop whose records can be reached, at first."""
    shop = shop_with(qx_cache_backend_url=records.url, qx_cache_lease_ttl=LEASE_SECONDS)
    shop.start()
    return shop


@pytest.fixture
def store(records):
    """The same, silent."""
    with silent(records):
        yield records


@pytest.fixture
def shop(store, open_shop):
    return open_shop


def test_defer_waits_for_redis_and_then_runs_once(shop, store):
    result = shop.tasks.by_id.delay("a")
    shop.until(lambda: shop.journal("deferred", id=result.id))
    os.kill(store.pid, signal.SIGCONT)

    assert ["a"] == result.get(timeout=60)
    assert 1 == len(shop.journal("start"))


def test_raise_fails_the_task_and_names_the_server(shop, store):
    with pytest.raises(Exception, match="no usable answer from Redis") as caught:
        shop.tasks.store_raise.delay("a").get(timeout=30)
    assert "StoreUnavailableError" == type(caught.value).__name__
    assert str(store.socket_path) in str(caught.value)
    assert [] == shop.journal("start")


def test_run_runs_unguarded_with_a_warning(shop):
    assert ["a"] == shop.tasks.store_run.delay("a").get(timeout=30)
    assert "runs unguarded" in shop.log(0)


def test_a_lock_that_cannot_be_asked_for_defers_too(shop, store):
    result = shop.tasks.single.delay("a")
    shop.until(lambda: shop.journal("deferred", id=result.id))
    os.kill(store.pid, signal.SIGCONT)

    assert ["a"] == result.get(timeout=60)
    assert 1 == len(shop.journal("start"))


def test_an_outage_shorter_than_the_lease_is_not_noticed(open_shop, records):
    result = open_shop.tasks.capture.delay("a", gate="go")
    open_shop.until(lambda: open_shop.journal("start"))
    time.sleep(LEASE_SECONDS / 2)  # the lease is young again
    with silent(records):
        time.sleep(LEASE_SECONDS / 3)
    time.sleep(LEASE_SECONDS)
    open_shop.open("go")
    assert ["a"] == result.get(timeout=30)
    assert 1 == len(open_shop.journal("start"))


def outlast_the_lease(shop, records, result):
    """Redis is away from within the body to two leases later; then the body goes on."""
    shop.until(lambda: shop.journal("start"))
    with silent(records):
        time.sleep(2 * LEASE_SECONDS)
        shop.open("go")
        shop.until(lambda: shop.journal("end") or shop.journal("lost", id=result.id))


def test_after_an_outage_longer_than_the_lease_a_run_that_nobody_took_over_is_recorded(open_shop, records):
    result = open_shop.tasks.capture.delay("a", gate="go")
    outlast_the_lease(open_shop, records, result)
    assert ["a"] == result.get(timeout=30)
    assert ["a"] == open_shop.tasks.capture.delay("a").get(timeout=30)
    assert 1 == len(open_shop.journal("start"))


def test_in_an_outage_longer_than_the_lease_no_effect_begins_that_asks_first(open_shop, records):
    result = open_shop.tasks.capture.delay("a", gate="go", ensure=True)
    outlast_the_lease(open_shop, records, result)
    assert [] == open_shop.journal("end")
    assert ["a"] == result.get(timeout=60)
    assert 2 == len(open_shop.journal("start"))
    assert 1 == len(open_shop.journal("end"))


def test_a_result_waits_for_its_record_while_redis_is_away(open_shop, records):
    result = open_shop.tasks.capture.delay("a", gate="go")
    open_shop.until(lambda: open_shop.journal("start"))
    with silent(records):
        open_shop.open("go")
        open_shop.until(lambda: open_shop.journal("end"))
        time.sleep(2 * LEASE_SECONDS)
    assert ["a"] == result.get(timeout=30)
    assert ["a"] == open_shop.tasks.capture.delay("a").get(timeout=30)
    assert 1 == len(open_shop.journal("start"))


@pytest.mark.parametrize("name", ["capture", "single"])
def test_a_soft_time_limit_that_comes_once_the_body_has_ended_changes_nothing(open_shop, records, name):
    task = getattr(open_shop.tasks, name)
    result = task.apply_async(("a",), {"gate": "go"}, soft_time_limit=2)
    open_shop.until(lambda: open_shop.journal("start"))
    with silent(records):
        open_shop.open("go")
        open_shop.until(lambda: "Soft time limit (2s) exceeded" in open_shop.log(0))
        assert 1 == len(open_shop.journal("end"))
    assert ["a"] == result.get(timeout=30)
    assert ["a"] == task.delay("a").get(timeout=30)
    assert (1 if name == "capture" else 2) == len(open_shop.journal("start"))


def test_a_full_redis_refuses_claims_and_takes_results(open_shop, client):
    first = open_shop.tasks.capture.delay("a", gate="go")
    open_shop.until(lambda: open_shop.journal("start"))
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 1)
    open_shop.open("go")
    assert ["a"] == first.get(timeout=30)
    assert ["a"] == open_shop.tasks.capture.delay("a").get(timeout=30)
    second = open_shop.tasks.capture.delay("b")
    (deferred,) = open_shop.until(lambda: open_shop.journal("deferred", id=second.id))
    assert "memory" in deferred["reason"]
    assert 1 == len(open_shop.journal("start"))
    client.config_set("maxmemory", 0)
    assert ["b"] == second.get(timeout=60)
    assert 2 == len(open_shop.journal("start"))


@pytest.mark.parametrize(
    "spoil", [lambda client: client.rpush(KEY, "not ours"), lambda client: client.set(KEY, "1")]
)
def test_what_is_no_record_is_left_alone_and_the_task_waits(open_shop, client, spoil):
    spoil(client)
    before = client.dump(KEY)
    result = open_shop.tasks.capture.delay("a")
    (deferred, *_) = open_shop.until(lambda: open_shop.journal("deferred", id=result.id))
    assert "store error" in deferred["reason"]
    assert before == client.dump(KEY)
    client.delete(KEY)
    assert ["a"] == result.get(timeout=60)
    assert 1 == len(open_shop.journal("start"))
