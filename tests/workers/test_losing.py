"""A body whose lease is lost is ended, in each pool, and its task is not."""

import time

import pytest

pytestmark = pytest.mark.worker
HEARTBEAT_SECONDS = 0.5


def lose(shop):
    """Take the record away under the run, and say when."""
    shop.until(lambda: shop.journal("start"))
    key = shop.until(lambda: list(shop.redis.scan_iter("shop:idem:*")))[0]
    shop.redis.delete(key)
    return time.time()


@pytest.mark.parametrize(
    ("pool", "how", "most"),
    [("prefork", "sleep", 1.5), ("prefork", "loop", 1.5), ("solo", "sleep", 1.5), ("solo", "loop", 1.5),
     ("threads", "loop", 1.5)],
)  # fmt: skip
def test_a_body_is_ended_soon_after_its_lease_is_lost_and_its_copy_runs(shop_with, pool, how, most):
    shop = shop_with()
    shop.start(pool=pool)
    result = shop.tasks.losing.delay("a", how)
    lost_at = lose(shop)
    (aborted,) = shop.until(lambda: shop.journal("aborted"), seconds=15)
    assert "LeaseLost" == aborted["error"]
    assert aborted["at"] - lost_at < most * HEARTBEAT_SECONDS + 0.5  # half a second for a noisy machine
    assert "a" == result.get(timeout=20)  # by the copy
    assert 2 == len(shop.journal("start"))
    assert 1 == len(shop.journal("lost"))
    assert [] == shop.journal("end")


def test_a_sleep_on_a_thread_ends_first(shop_with):
    shop = shop_with()
    shop.start(pool="threads")
    result = shop.tasks.losing.delay("a", "sleep")
    lost_at = lose(shop)
    (aborted,) = shop.until(lambda: shop.journal("aborted"), seconds=15)
    assert aborted["at"] - lost_at > 5
    assert "a" == result.get(timeout=20)


def test_a_body_may_be_left_alone(shop):
    result = shop.tasks.losing_on.delay("a")
    lose(shop)
    shop.until(lambda: shop.journal("end"))
    assert "a" == result.get(timeout=20)
    assert [] == shop.journal("aborted")
