"""Runs that never ended, failures that are kept, duplicates that meet a run: what each option does, on workers."""

import time

import pytest
from celery import chord

from qx_cache import (
    Done,
    Failed,
    InProgressError,
    Interrupted,
    InterruptedRunError,
    RecordedFailureError,
    RepeatedlyInterruptedError,
)

pytestmark = pytest.mark.worker


def test_a_task_that_kills_its_worker_again_and_again_becomes_a_failure_that_ends_its_chord(shop):
    body = chord([shop.tasks.deadly.s("a"), shop.tasks.by_id.s("b")])(shop.tasks.collect.s())
    with pytest.raises(RepeatedlyInterruptedError, match="2 runs in a row were interrupted"):
        body.get(timeout=60)
    runs = shop.journal("start", order="a")
    assert [1, 2] == [row["attempt"] for row in runs]
    task_id = runs[0]["id"]
    with pytest.raises(RepeatedlyInterruptedError):
        shop.tasks.app.AsyncResult(task_id).get(timeout=20)
    assert [] == shop.journal("collect")


def test_an_interrupted_run_is_not_run_again_where_that_was_said_until_it_is_settled(shop):
    task = shop.tasks.once_at_most
    with pytest.raises(InterruptedRunError):
        task.delay("a").get(timeout=30)
    assert 1 == len(shop.journal("start"))
    assert 1 == len(shop.journal("interrupted"))
    with pytest.raises(InterruptedRunError):  # another publish finds the same
        task.delay("a").get(timeout=30)
    key = task.idempotency_key_for("a")
    seen = task.outcome(key)
    assert isinstance(seen, Interrupted)
    assert not task.resolve(key, "paid", fence=seen.fence + 1)
    assert task.resolve(key, "paid", fence=seen.fence)
    assert "paid" == task.delay("a").get(timeout=30)
    assert 1 == len(shop.journal("start"))
    assert task.forget(key, fence=seen.fence)
    assert task.outcome(key) is None
    assert "a" == task.delay("a").get(timeout=30)


@pytest.mark.parametrize(("order", "result", "starts"), [("x", "paid x", 1), ("rerun", "rerun", 2)])
def test_a_callable_may_settle_an_interrupted_run(shop, order, result, starts):
    assert result == shop.tasks.asking.delay(order).get(timeout=30)
    assert starts == len(shop.journal("start"))
    assert 1 == len(shop.journal("asked"))


def test_a_kept_failure_is_told_to_later_deliveries(shop):
    task = shop.tasks.failing
    with pytest.raises(ValueError, match="no a"):
        task.delay("a").get(timeout=30)
    with pytest.raises(RecordedFailureError, match="ValueError: no a"):
        task.delay("a").get(timeout=30)
    assert 1 == len(shop.journal("start"))
    assert isinstance(task.outcome(task.idempotency_key_for("a")), Failed)


def test_a_failure_is_kept_after_the_last_retry_as_well(shop):
    for error in (ValueError, RecordedFailureError):
        with pytest.raises(error, match="no a"):
            shop.tasks.failing_twice.delay("a").get(timeout=20)
    assert 2 == len(shop.journal("start"))


def test_a_duplicate_publish_may_be_refused_while_the_first_runs(shop):
    first = shop.tasks.impatient.delay("a", gate="go")
    shop.until(lambda: shop.journal("start"))
    with pytest.raises(InProgressError):
        shop.tasks.impatient.delay("a", gate="go").get(timeout=30)
    shop.open("go")
    assert ["a"] == first.get(timeout=30)


def test_a_duplicate_publish_may_wait_for_the_first(shop):
    first = shop.tasks.patient.delay("a", gate="go")
    shop.until(lambda: shop.journal("start"))
    second = shop.tasks.patient.delay("a")
    time.sleep(0.5)  # it waits meanwhile; were it not to, it would be deferred, which is seen below
    shop.open("go")
    assert ["a"] == first.get(timeout=30) == second.get(timeout=30)
    assert 1 == len(shop.journal("start"))
    assert [] == shop.journal("deferred")


def test_a_key_per_call_goes_before_the_tasks_own(shop):
    task = shop.tasks.capture
    assert ["a"] == task.apply_async(("a",), idempotency_key="mine").get(timeout=30)
    assert ["a"] == task.delay("a").get(timeout=30)  # its own key: another record
    assert 2 == len(shop.journal("start"))
    assert isinstance(task.outcome(task.idempotency_key_for("a", idempotency_key="mine")), Done)
    again = shop.tasks.app.send_task("shop.capture", ("a",), headers={"idempotency_key": "mine"})
    assert ["a"] == again.get(timeout=30)
    assert 2 == len(shop.journal("start"))


def test_a_run_knows_its_record_and_a_key_for_others(shop):
    result = shop.tasks.inside.delay("a")
    key, fence, attempt, downstream = result.get(timeout=30)
    seen = shop.tasks.inside.outcome(key)
    assert isinstance(seen, Done)
    assert (result.id, fence, 1) == (seen.holder, seen.fence, attempt)
    assert 36 == len(downstream)
    assert shop.tasks.inside.idempotency is None


def test_a_run_that_waits_for_its_lock_was_not_interrupted(shop):
    first = shop.tasks.both_unknown.delay("a", gate="go")
    shop.until(lambda: shop.journal("start"))
    second = shop.tasks.both_unknown.delay("b")
    shop.until(lambda: len(shop.journal("deferred", id=second.id)) > 1)
    shop.open("go")
    assert [["a"], ["b"]] == [first.get(timeout=30), second.get(timeout=30)]
    assert [] == shop.journal("interrupted")
    assert [] == shop.journal("taken_over")
