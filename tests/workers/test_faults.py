"""Workers killed and frozen at the points where others lose a task or run it twice."""

import collections
import os
import signal
import time

import pytest
from celery import chord
from celery.exceptions import ChordError

from qx_cache import RecordedFailureError

pytestmark = pytest.mark.worker


def test_a_redelivery_meets_the_run_is_deferred_and_saves_the_task_when_the_worker_is_killed(shop_with):
    shop = shop_with(visibility_timeout=2, qx_cache_visibility_heartbeat=False)
    shop.start(), shop.start()
    result = shop.tasks.by_id.delay("a", gate="go")
    first = shop.until(lambda: shop.journal("start"))[0]
    shop.until(lambda: shop.journal("deferred", id=result.id), what="the redelivery")
    assert 1 == len(shop.journal("start"))

    shop.group(shop.running_in(first), signal.SIGKILL)
    shop.until(lambda: len(shop.journal("start")) == 2, what="the takeover")
    shop.open("go")

    assert ["a"] == result.get(timeout=20)
    assert 1 == len(shop.journal("end"))
    assert 1 == len(shop.journal("taken_over"))


def test_after_the_kill_of_a_whole_worker_its_task_runs_again_within_lease_and_redelivery_time(shop_with):
    lease, visibility, sweep = 2, 3, 1
    shop = shop_with(visibility_timeout=visibility)
    shop.start(), shop.start()
    shop.tasks.by_id.delay("a", gate="go")
    first = shop.until(lambda: shop.journal("start"))[0]
    killed_at = time.time()
    shop.group(shop.running_in(first), signal.SIGKILL)
    second = shop.until(lambda: shop.journal("start")[1:])[0]
    shop.open("go")

    assert second["at"] - killed_at <= lease + visibility + 2 * sweep + 1  # one second for a noisy machine
    shop.until(shop.idle)


def test_a_lost_pool_child_gives_its_claim_back_at_once(shop_with):
    shop = shop_with(qx_cache_lease_ttl=60)
    shop.start()
    result = shop.tasks.by_id.delay("a", gate="go")
    first = shop.until(lambda: shop.journal("start"))[0]
    os.kill(first["pid"], signal.SIGKILL)
    shop.until(
        lambda: len(shop.journal("start")) == 2, seconds=20, what="the takeover, long before the lease ends"
    )
    shop.open("go")

    assert ["a"] == result.get(timeout=20)
    assert 1 == len(shop.journal("taken_over"))


def test_a_worker_killed_after_complete_leaves_a_result_that_is_replayed(shop_with):
    shop = shop_with(visibility_timeout=2)
    shop.start()

    assert ["a"] == shop.tasks.dying.delay("a").get(timeout=30)
    assert 1 == len(shop.journal("start"))
    assert 1 == len(shop.journal("replayed"))


def test_what_was_to_follow_a_result_is_dispatched_by_the_replay_when_the_worker_was_killed(shop_with):
    shop = shop_with(visibility_timeout=2)
    shop.start()
    tasks = shop.tasks

    assert ["a", "x"] == (tasks.dying.s("a") | tasks.add.s("x")).delay().get(timeout=30)
    assert ["b", "c"] == chord([tasks.dying.s("b"), tasks.by_id.s("c")])(tasks.collect.s()).get(timeout=30)
    assert 3 == len(shop.journal("start"))
    assert 1 == len(shop.journal("add"))
    assert 1 == len(shop.journal("collect"))


def test_a_failure_is_told_by_the_redelivery_when_the_worker_was_killed_before_it_could(shop_with):
    shop = shop_with(visibility_timeout=2)
    shop.start()
    tasks = shop.tasks

    failing = tasks.dying_of_failure.s("a", fail=1).on_error(tasks.told.s())
    result = chord([failing, tasks.by_id.s("b")])(tasks.collect.s())
    with pytest.raises((ChordError, RecordedFailureError), match=r"failed with builtins\.ValueError: a"):
        result.get(timeout=30)
    shop.until(lambda: shop.journal("told"), what="the errback")
    shop.until(shop.idle)
    (start,) = shop.journal("start", order="a")
    failed = tasks.app.AsyncResult(start["id"])
    assert ("FAILURE", "RecordedFailureError") == (failed.state, type(failed.result).__name__)
    assert tasks.dying_of_failure.outcome(failed.result.key).failure is None  # told, and so not again
    assert [] == shop.journal("collect")


@pytest.mark.parametrize("ensure", [True, False], ids=["stopped at ensure", "stopped at the end"])
def test_a_run_frozen_past_its_lease_stores_nothing_and_breaks_no_chord(shop_with, ensure):
    shop = shop_with(visibility_timeout=2)
    shop.start(), shop.start()
    tasks = shop.tasks
    header = [tasks.by_id.s("a", gate="go", ensure=ensure), tasks.by_id.s("b")]
    result = chord(header)(tasks.collect.s())
    first = shop.until(lambda: shop.journal("start", order="a"))[0]
    frozen = shop.running_in(first)
    shop.group(frozen, signal.SIGSTOP)
    shop.until(lambda: shop.journal("taken_over"), what="the takeover")
    shop.open("go")
    assert ["a", "b"] == result.get(timeout=20)

    shop.group(frozen, signal.SIGCONT)
    shop.until(lambda: shop.journal("lost", id=first["id"]), what="the late finisher's notice")
    shop.until(shop.idle)
    assert 1 == len(shop.journal("collect"))
    assert (1 if ensure else 2) == len(shop.journal("end", order="a"))
    assert "SUCCESS" == tasks.app.AsyncResult(first["id"]).state


def test_no_copy_circulates_for_ever(shop_with):
    """Each body takes twice the visibility timeout, so that copies come; in the end the broker holds none."""
    shop = shop_with(
        visibility_timeout=3, qx_cache_visibility_heartbeat=False, qx_cache_lease_ttl=5, qx_cache_lock_ttl=5
    )
    shop.start(concurrency=6), shop.start(concurrency=6)
    names, ends = ["by_id", "single", "both"], {"returns": {}, "fails": {"fail": 1}, "retries": {"retry": True}}
    results = {
        f"{name} {end}": getattr(shop.tasks, name).delay(f"{name} {end}", seconds=6, **how)
        for name in names
        for end, how in ends.items()
    }
    shop.until(lambda: all(one.ready() for one in results.values()) and shop.idle(), what="an end of all")

    starts = collections.Counter(row["order"] for row in shop.journal("start"))
    assert {order: 2 if "retries" in order else 1 for order in results} == starts
    states = {order: result.state for order, result in results.items()}  # no copy has said STARTED after the end
    assert {order: "FAILURE" if "fails" in order else "SUCCESS" for order in results} == states
    assert len(shop.journal("deferred")) > 0


def test_a_hard_time_limit_ends_a_task_for_good(shop):
    result = shop.tasks.limited.delay("a", gate="never")
    with pytest.raises(Exception, match="TimeLimitExceeded"):
        result.get(timeout=20)
    shop.until(shop.idle)
    assert 1 == len(shop.journal("start"))
