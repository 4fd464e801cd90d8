"""One run at a time, on real workers."""

import os
import signal
import time

import pytest
from celery import chord

from qx_cache.embedded import start_server

pytestmark = pytest.mark.worker


def test_another_task_is_skipped_with_a_marker_a_log_line_and_a_signal(shop):
    first = shop.tasks.nightly.delay(gate="go")
    shop.until(lambda: shop.journal("start"))
    marker = shop.tasks.nightly.delay().get(timeout=20)
    shop.open("go")

    assert {"qx_skipped": "lock_held", "lock": "shop.nightly:key:", "holder": first.id} == marker
    assert ["n"] == first.get(timeout=20)
    assert 1 == len(shop.journal("start"))
    assert 1 == len(shop.journal("skipped"))
    assert "skipped: lock_held" in shop.log(0)


def test_the_lock_is_free_again_after_success_failure_and_retry(shop):
    tasks = shop.tasks
    assert ["n"] == tasks.nightly.delay().get(timeout=20)
    with pytest.raises(ValueError, match="f"):
        tasks.nightly.delay("f", fail=1).get(timeout=20)
    assert ["r"] == tasks.nightly.delay("r", retry=True).get(timeout=20)
    assert 4 == len(shop.journal("start"))
    assert [] == shop.journal("skipped")


def test_a_long_run_keeps_its_lock(shop):
    first = shop.tasks.nightly.delay(gate="go")  # its lock lives 2 s without a heartbeat
    start = shop.until(lambda: shop.journal("start"))[0]
    shop.until(lambda: time.time() - start["at"] > 5, what="two and a half lives")

    assert "lock_held" == shop.tasks.nightly.delay().get(timeout=20)["qx_skipped"]
    shop.open("go")
    assert ["n"] == first.get(timeout=20)


def test_a_killed_worker_frees_the_lock_within_its_life(shop):
    shop.tasks.nightly.delay(gate="go")
    start = shop.until(lambda: shop.journal("start"))[0]
    os.kill(start["pid"], signal.SIGKILL)
    killed_at = time.time()

    def again():
        shop.tasks.nightly.delay("later")
        return shop.journal("start", order="later")

    shop.until(again)
    assert time.time() - killed_at < 2 + 8  # its life, and time for a noisy machine


def test_killed_as_its_retry_is_published_and_before_its_result_is_stored_it_runs_again(shop):
    tasks = shop.tasks
    chain = tasks.single_dies.s("a", retry=True) | tasks.add.s("x")
    assert ["a", "x"] == chain.delay().get(timeout=30)
    starts = shop.journal("start", order="a")
    assert [0, 0, 1, 1] == [row["retries"] for row in starts]
    shop.until(shop.idle)
    (ended,) = shop.redis.scan_iter("*single_dies*:e:*")
    assert b"1" == shop.redis.get(ended)  # told: nothing but a number


def test_in_a_chord_the_second_waits_for_the_first(shop):
    tasks = shop.tasks
    result = chord([tasks.nightly.s("a", seconds=0.5), tasks.nightly.s("b", seconds=0.5)])(tasks.collect.s())

    assert ["a", "b"] == result.get(timeout=30)
    assert [] == shop.journal("skipped")
    assert [] == overlaps(shop)


def test_the_body_of_a_chord_waits_as_well(shop):
    tasks = shop.tasks
    first = tasks.nightly.delay("a", gate="go")
    shop.until(lambda: shop.journal("start", order="a"))
    result = chord([tasks.single.si("b"), tasks.single.si("c")])(tasks.nightly.si("body"))
    shop.until(lambda: shop.journal("deferred", id=result.id), what="the body to be put off")
    shop.open("go")

    assert [["a"], ["body"]] == [first.get(timeout=20), result.get(timeout=30)]
    assert [] == shop.journal("skipped")


def test_equal_arguments_share_a_lock_and_others_do_not(shop):
    tasks = shop.tasks
    first, other = tasks.single.delay("a", gate="go"), tasks.single.delay("b", gate="go")
    shop.until(lambda: len(shop.journal("start")) == 2)
    shop.open("go")
    assert [["a"], ["b"]] == [first.get(timeout=20), other.get(timeout=20)]


@pytest.mark.parametrize("name", ["both", "both_reversed"])
def test_both_bases_together_record_and_exclude(shop, name):
    task = getattr(shop.tasks, name)
    first = task.apply_async(("a",), {"gate": "go"}, headers={"idempotency_key": "k"})
    shop.until(lambda: shop.journal("start"))
    assert "lock_held" == task.delay("a").get(timeout=20)["qx_skipped"]
    shop.open("go")

    assert ["a"] == first.get(timeout=20)
    assert ["a"] == task.apply_async(("a",), {"gate": "go"}, headers={"idempotency_key": "k"}).get(timeout=20)
    assert 1 == len(shop.journal("start"))
    assert ["a"] == task.delay("a").get(timeout=20)


def test_a_refused_lock_hands_the_claim_back(shop):
    task = shop.tasks.both_reversed
    first = task.delay("a", gate="go")
    shop.until(lambda: shop.journal("start", order="a"))
    deferred = (task.s("b") | shop.tasks.add.s("x")).delay()  # in a chain, so it waits
    shop.until(lambda: shop.journal("deferred"))
    shop.open("go")

    assert ["a"] == first.get(timeout=20)
    assert ["b", "x"] == deferred.get(timeout=30)
    assert [] == overlaps(shop)


def overlaps(shop):
    """Pairs of runs that were under way at the same time."""
    rows = [(row["at"], row["what"], row["id"]) for row in shop.journal() if row["what"] in {"start", "end"}]
    inside, found = set(), []
    for _, what, task_id in sorted(rows):
        if what == "start":
            found += [(task_id, other) for other in inside]
            inside.add(task_id)
        else:
            inside.discard(task_id)
    return found


def test_one_that_was_acknowledged_early_waits_until_the_broker_takes_its_copy(shop_with):
    with start_server() as store:
        shop = shop_with(qx_cache_backend_url=store.url)
        shop.start(concurrency=2)
        nightly = shop.tasks.nightly
        first = nightly.delay("first", gate="go")
        shop.tasks.plain.delay("plain", gate="room")
        shop.until(lambda: len(shop.journal("start")) == 2, what="two that leave no room")
        second = nightly.apply_async(("second",), on_conflict="defer")
        shop.redis.config_set("maxmemory", 1)  # it takes no message any more
        shop.open("room")
        shop.until(lambda: f"task {second.id} could not be deferred, tried again" in shop.log(0))
        shop.redis.config_set("maxmemory", 0)
        shop.until(lambda: shop.journal("deferred", id=second.id))
        shop.open("go")
        assert [["first"], ["second"]] == [first.get(timeout=20), second.get(timeout=20)]
