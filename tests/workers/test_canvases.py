"""Everything that Celery can do with a task, done with an ``IdempotentTask``; and its duplicates."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

pytestmark = pytest.mark.worker


def test_links_are_dispatched_by_the_first_and_by_its_duplicate_each_its_own(shop):
    tasks = shop.tasks
    for _ in range(2):
        tasks.capture.apply_async(("a",), link=tasks.linked.s()).get(timeout=20)
    shop.until(lambda: len(shop.journal("linked")) == 2)
    assert 1 == len(shop.journal("start"))
    assert [["a"], ["a"]] == [row["value"] for row in shop.journal("linked")]


def test_an_errback_is_called_once_for_each_publish_that_failed(shop):
    tasks = shop.tasks
    result = tasks.throwing.apply_async(("a",), link_error=tasks.failed.s())
    with pytest.raises(KeyError):
        result.get(timeout=20)
    shop.until(lambda: shop.journal("failed"))
    shop.until(lambda: "raised expected" in shop.log(0))  # the errback may run before that is logged
    shop.until(shop.idle)
    assert 1 == len(shop.journal("failed"))


def test_immutable_signatures_stamps_and_nested_canvases(shop):
    tasks = shop.tasks
    steps = chain(tasks.capture.si("a"), tasks.capture.si("b"), tasks.capture.si("a"))
    steps.stamp(who="me")
    assert ["a"] == steps.delay().get(timeout=20)
    nested = chord([tasks.capture.si("a"), chain(tasks.capture.si("b"), tasks.add.s("x"))])(tasks.collect.s())
    assert ["a", "b", "x"] == nested.get(timeout=20)
    assert ["a", "b"] == sorted(row["order"] for row in shop.journal("start"))
    assert 1 == len(shop.journal("collect"))


def test_map_starmap_and_chunks_call_the_body_directly(shop):
    """Their items have no message of their own, so there is nothing to record; they run as in plain Celery."""
    tasks = shop.tasks
    assert [1, 2] == tasks.noop.map([1, 2]).delay().get(timeout=20)
    assert [1, 2] == tasks.noop.starmap([(1,), (2,)]).delay().get(timeout=20)
    assert [[1, 2], [3]] == tasks.noop.chunks([(1,), (2,), (3,)], 2).delay().get(timeout=20)


def test_a_task_may_replace_itself_and_the_replacement_is_recorded_apart(shop):
    assert ["a"] == shop.tasks.replacing.delay("a").get(timeout=20)
    assert ["a"] == shop.tasks.capture.delay("a").get(timeout=20)
    shop.until(shop.idle)
    assert 3 == len(shop.journal("start", order="a"))  # replacing, its replacement (nesting 1), the last one


def test_a_task_that_calls_itself_runs_within_its_own_run(shop):
    assert 6 == shop.tasks.recursive.delay(3).get(timeout=20)
    assert 4 == len(shop.journal("start"))


def test_pydantic_models_go_in_and_come_out_of_a_run_and_of_a_replay(shop):
    for _ in range(2):
        assert {"number": 8} == shop.tasks.typed.delay({"number": 7}).get(timeout=20)
    assert 1 == len(shop.journal("start"))


def test_ignored_results_are_recorded_all_the_same(shop):
    for _ in range(2):
        shop.tasks.quiet.delay("a")
    shop.until(lambda: shop.journal("start"))
    shop.until(shop.idle)
    assert 1 == len(shop.journal("start"))


def test_what_expires_before_it_starts_does_not_run_and_what_was_deferred_does_not_expire(shop):
    tasks = shop.tasks
    late = tasks.by_id.apply_async(("late",), expires=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(TaskRevokedError):
        late.get(timeout=20)
    first = tasks.capture.delay("a", gate="go")
    shop.until(lambda: shop.journal("start"))
    second = tasks.capture.apply_async(("a",), {"gate": "go"}, expires=1)
    shop.until(lambda: shop.journal("deferred", id=second.id))
    time.sleep(1.2)  # its expiry passes while it is put off: it had started in time
    shop.open("go")
    assert [["a"], ["a"]] == [first.get(timeout=30), second.get(timeout=30)]


def test_a_run_that_is_terminated_leaves_its_key_to_the_next_publish(shop):
    result = shop.tasks.capture.delay("a", gate="never")
    shop.until(lambda: shop.journal("start"))
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=20)
    assert ["a"] == shop.tasks.capture.delay("a").get(timeout=30)
    assert 2 == len(shop.journal("start"))
    shop.until(shop.idle)


def test_a_group_in_a_chord_of_duplicates_runs_its_body_once_for_each_chord(shop):
    tasks = shop.tasks
    for _ in range(3):
        members = group(tasks.capture.s("a"), tasks.capture.s("b"), tasks.capture.s("a"))
        assert ["a", "a", "b"] == chord(members)(tasks.collect.s()).get(timeout=30)
    assert ["a", "b"] == sorted(row["order"] for row in shop.journal("start"))
    assert 3 == len(shop.journal("collect"))
