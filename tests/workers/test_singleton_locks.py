"""Whose lock it is, when its holder dies, loses it, or is thrown out, on real workers."""

import os
import signal
import time

import pytest
from celery.exceptions import TimeLimitExceeded
from conftest import silent

from qx_cache import InvalidValueError
from qx_cache_celery import AlreadyRunningError

pytestmark = pytest.mark.worker
LOCK = "shop:lock:1:{shop.lasting:key:}"


def test_a_lost_pool_child_gives_its_lock_back_at_once(shop):
    result = shop.tasks.lasting.delay(gate="go")
    first = shop.until(lambda: shop.journal("start"))[0]
    os.kill(first["pid"], signal.SIGKILL)
    shop.until(
        lambda: len(shop.journal("start")) == 2, seconds=20, what="the run again, long before its lock ends"
    )
    shop.open("go")
    assert ["l"] == result.get(timeout=20)


def test_a_hard_time_limit_frees_the_lock(shop):
    with pytest.raises(TimeLimitExceeded):
        shop.tasks.lasting.apply_async((), {"gate": "never"}, time_limit=1).get(timeout=20)
    shop.until(lambda: not shop.redis.exists(LOCK), what="the lock to be free")
    assert ["l"] == shop.tasks.lasting.delay().get(timeout=20)


def test_a_revocation_that_terminates_frees_the_lock(shop):
    result = shop.tasks.lasting.delay(gate="never")
    shop.until(lambda: shop.journal("start"))
    result.revoke(terminate=True, signal="SIGKILL")
    shop.until(lambda: not shop.redis.exists(LOCK), what="the lock to be free")
    assert ["l"] == shop.tasks.lasting.delay().get(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_shutdown_leaves_no_lock(shop, number):
    shop.tasks.lasting.delay(seconds=1)
    shop.until(lambda: shop.journal("start"))
    os.kill(shop.workers[0].pid, number)
    shop.workers[0].wait(timeout=30)
    assert not shop.redis.exists(LOCK)


def test_a_run_keeps_its_lock_for_the_shortest_time_that_it_is_to(shop):
    assert ["s"] == shop.tasks.seldom.delay().get(timeout=20)
    began = shop.journal("start")[0]["at"]
    assert "lock_held" == shop.tasks.seldom.delay().get(timeout=20)["qx_skipped"]
    shop.until(lambda: time.time() - began > 3.2)
    assert ["s"] == shop.tasks.seldom.delay().get(timeout=20)


def test_a_body_whose_lock_is_lost_is_ended_and_its_copy_runs(shop):
    result = shop.tasks.losing_lock.delay("a")
    shop.until(lambda: shop.journal("start"))
    shop.redis.delete("shop:lock:1:{shop.losing_lock:key:}")
    (aborted,) = shop.until(lambda: shop.journal("aborted"), seconds=15)
    assert "LeaseLost" == aborted["error"]
    assert "a" == result.get(timeout=20)
    assert 1 == len(shop.journal("lost"))
    assert [] == shop.journal("end")


def test_a_body_whose_lock_is_in_doubt_is_ended_before_another_may_hold_it_for_long(shop_with, records):
    shop = shop_with(qx_cache_backend_url=records.url)
    shop.start()
    result = shop.tasks.losing_lock.delay("a")
    shop.until(lambda: shop.journal("start"))
    cut_at = time.time()
    with silent(records):
        (aborted,) = shop.until(lambda: shop.journal("aborted"), seconds=15)
        assert aborted["at"] - cut_at < 1.5 * 1.2 + 0.5  # its life, a sixth of it, and a noisy machine
    assert "a" == result.get(timeout=40)


def test_what_a_call_does_in_a_conflict_goes_before_what_its_task_does(shop):
    task = shop.tasks.lasting
    first = task.delay(gate="go")
    shop.until(lambda: shop.journal("start"))
    with pytest.raises(AlreadyRunningError, match=first.id):
        task.apply_async(on_conflict="raise").get(timeout=20)
    waiting = task.apply_async(("w",), on_conflict="defer")
    shop.until(lambda: shop.journal("deferred", id=waiting.id))
    with pytest.raises(
        InvalidValueError, match="on_conflict must be one of 'skip', 'defer', 'raise', 'keep_latest', not"
    ):
        task.apply_async(on_conflict="wait")
    shop.open("go")
    assert [["l"], ["w"]] == [first.get(timeout=20), waiting.get(timeout=20)]


def test_an_operator_sees_who_holds_the_lock_and_throws_it_out(shop):
    task = shop.tasks.lasting
    assert "free" == task.lock_info().state
    first = task.delay(gate="go")
    shop.until(lambda: shop.journal("start"))
    seen = task.lock_info("other arguments, same lock")
    assert ("held", first.id) == (seen.state, seen.holder)
    assert not task.release_lock(fence=seen.fence + 1)
    assert task.release_lock(fence=seen.fence)
    assert "free" == task.lock_info().state
    assert ["m"] == task.delay("m").get(timeout=20)
    shop.open("go")
