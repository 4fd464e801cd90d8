"""Redis down at the claim: nothing lost, nothing silent."""

import os
import signal

import pytest

from qx_cache.embedded import start_server

pytestmark = pytest.mark.worker


@pytest.fixture
def store():
    """A Redis for records apart from the broker's; frozen, so that nothing answers."""
    with start_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
        yield server
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def shop(shop_with, store):
    shop = shop_with(qx_cache_backend_url=store.url)
    shop.start()
    return shop


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
