"""A body whose lease is lost is ended, in each pool, and its task is not."""

import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.worker
HEARTBEAT_SECONDS = 0.5
ROOT = Path(__file__).parents[2]


def lose(shop):
    """Take the record away under the run, and say when."""
    shop.until(lambda: shop.journal("start"))
    key = shop.until(lambda: list(shop.redis.scan_iter("shop:idem:*")))[0]
    shop.redis.delete(key)
    return time.time()


def rows_of_the_docs():
    """What docs/lost-leases.md promises: pool, what the body does, when it is ended."""
    lines = (ROOT / "docs" / "lost-leases.md").read_text().splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| ")]
    assert ("pool", "the body", "is ended") == rows[0]
    return rows[1:]


@pytest.mark.parametrize(("pool", "how", "when"), [row for row in rows_of_the_docs() if "never" not in row[2]])
def test_a_body_whose_lease_is_lost_is_ended_as_the_docs_say_and_its_copy_runs(shop_with, pool, how, when):
    shop = shop_with()
    shop.start(pool=pool)
    result = shop.tasks.losing.delay("a", how)
    lost_at = lose(shop)
    (aborted,) = shop.until(lambda: shop.journal("aborted"), seconds=15)
    assert "LeaseLost" == aborted["error"]
    took = aborted["at"] - lost_at
    assert ("within 1.5 heartbeats" if took < 1.5 * HEARTBEAT_SECONDS + 1.5 else "over") in when, (
        took
    )  # noisy machines
    assert "a" == result.get(timeout=20)  # by the copy
    assert 2 == len(shop.journal("start"))
    assert 1 == len(shop.journal("lost"))
    assert [] == shop.journal("end")


@pytest.mark.parametrize(("pool", "how", "when"), [row for row in rows_of_the_docs() if "never" in row[2]])
def test_a_body_that_cannot_be_ended_is_recorded_where_no_other_run_began(shop_with, pool, how, when):
    assert "never: only its end is checked" == when
    shop = shop_with()
    shop.start(pool=pool)
    result = shop.tasks.losing.delay("a", how)
    lose(shop)
    assert "a" == result.get(timeout=20)
    assert [] == shop.journal("aborted")
    assert 1 == len(shop.journal("start"))
    assert 1 == len(shop.journal("end"))


def test_a_body_may_be_left_alone(shop):
    result = shop.tasks.losing_on.delay("a")
    lose(shop)
    shop.until(lambda: shop.journal("end"))
    assert "a" == result.get(timeout=20)
    assert [] == shop.journal("aborted")
