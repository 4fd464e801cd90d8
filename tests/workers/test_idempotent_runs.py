"""One worker, no faults: what a task's end means for the deliveries after it."""

import json

import pytest
import redis
from celery import chord, group
from celery.exceptions import SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

from qx_cache.embedded import start_server

pytestmark = pytest.mark.worker


def test_a_key_published_twice_runs_once_and_both_get_the_result(shop):
    first = shop.tasks.capture.delay("a", gate="go")
    shop.until(lambda: shop.journal("start", order="a"))
    second = shop.tasks.capture.delay("a", gate="go")
    shop.until(lambda: shop.journal("deferred", id=second.id))
    shop.open("go")

    assert [["a"], ["a"]] == [first.get(timeout=20), second.get(timeout=20)]
    assert 1 == len(shop.journal("start"))
    assert [second.id] == [row["id"] for row in shop.journal("replayed")]


def test_a_duplicate_after_the_end_gets_the_result_at_once(shop):
    assert ["a"] == shop.tasks.capture.delay("a").get(timeout=20)
    assert ["a"] == shop.tasks.capture.delay("a").get(timeout=20)
    assert 1 == len(shop.journal("start"))
    assert [] == shop.journal("deferred")


def test_a_failed_run_leaves_the_key_to_the_next_publish(shop):
    with pytest.raises(ValueError, match="a"):
        shop.tasks.capture.delay("a", fail=1).get(timeout=20)
    assert ["a"] == shop.tasks.capture.delay("a", fail=1).get(timeout=20)
    assert 2 == len(shop.journal("start"))


def test_a_retry_runs_again_and_is_recorded(shop):
    result = shop.tasks.by_id.delay("a", retry=True)

    assert ["a"] == result.get(timeout=20)
    assert [0, 1] == [row["retries"] for row in shop.journal("start")]
    shop.until(shop.idle)


def test_one_that_is_killed_as_it_publishes_its_retry_runs_again_and_retries(shop):
    result = shop.tasks.dying_before_retry.delay("a", retry=True)
    assert ["a"] == result.get(timeout=30)
    assert [0, 0, 1] == [row["retries"] for row in shop.journal("start")]
    shop.until(shop.idle)


@pytest.mark.parametrize("name", ["recorded_unpublished", "single_unpublished"])
def test_a_retry_that_the_broker_does_not_take_is_published_by_a_run_that_comes_again(shop, name):
    task = getattr(shop.tasks, name)
    assert ["a"] == task.delay("a", "away").get(timeout=30)
    assert [0, 0, 1] == [row["retries"] for row in shop.journal("start")]
    (deferred,) = shop.journal("deferred")
    assert "its retry could not be published: away" == deferred["reason"]
    shop.until(shop.idle)

    with pytest.raises(TypeError, match="never"):
        task.delay("b", "never").get(timeout=20)
    assert 1 == len(shop.journal("start", order="b"))
    shop.until(shop.idle)


def test_a_retry_that_begins_before_its_first_attempt_has_ended_is_no_takeover(shop):
    result = shop.tasks.by_id.delay("a", retry=True, retry_after=0)
    assert ["a"] == result.get(timeout=20)
    assert [] == shop.journal("taken_over")


def test_an_attempt_that_is_delivered_again_after_its_retry_does_not_run_again(shop):
    result = shop.tasks.by_id.delay("a", retry=True, gate="go")
    shop.until(lambda: shop.journal("start"))
    [held] = shop.redis.hvals("unacked")
    shop.open("go")
    assert ["a"] == result.get(timeout=20)
    shop.until(shop.idle)

    message, *_ = json.loads(held)
    for place in (message["headers"], message["properties"]["delivery_info"]):
        place["redelivered"] = True  # as the broker puts it back
    shop.redis.lpush("celery", json.dumps(message))
    shop.until(lambda: shop.journal("log", qx_event="ended", task_id=result.id))
    shop.until(shop.idle)
    assert [0, 1] == [row["retries"] for row in shop.journal("start")]


def test_autoretry_runs_until_the_body_succeeds(shop):
    assert ["a"] == shop.tasks.flaky.delay("a", fail=2).get(timeout=20)
    assert [0, 1, 2] == [row["retries"] for row in shop.journal("start")]


def test_a_replay_goes_on_with_its_own_chain_and_chord(shop):
    tasks = shop.tasks
    assert ["a", "x"] == (tasks.capture.s("a") | tasks.add.s("x")).delay().get(timeout=20)
    assert ["a", "y"] == (tasks.capture.s("a") | tasks.add.s("y")).delay().get(timeout=20)
    header = [tasks.capture.s("a"), tasks.capture.s("b"), tasks.capture.s("a")]
    assert ["a", "a", "b"] == chord(header)(tasks.collect.s()).get(timeout=20)
    assert ["a", "b"] == sorted(row["order"] for row in shop.journal("start"))
    assert 1 == len(shop.journal("collect"))


def test_a_key_by_header_reaches_each_member_of_a_group_apart(shop):
    tasks = shop.tasks
    headers = {"idempotency_key": "k"}
    members = group(tasks.by_id.s("a"), tasks.by_id.s("b"))

    assert [["a"], ["b"]] == members.apply_async(headers=headers).get(timeout=20)
    assert ["a"] == tasks.by_id.apply_async(("a",), headers={"idempotency_key": "other"}).get(timeout=20)
    assert ["a"] == tasks.by_id.apply_async(("a",), headers={"idempotency_key": "other"}).get(timeout=20)
    assert 3 == len(shop.journal("start"))


def test_one_key_for_two_requests_fails_the_second_and_says_so(shop):
    assert 5 == shop.tasks.strict.delay("a", 5).get(timeout=20)
    with pytest.raises(Exception, match="another request") as caught:
        shop.tasks.strict.delay("a", 6).get(timeout=20)
    assert "IdempotencyMismatchError" == type(caught.value).__name__
    assert 1 == len(shop.journal("start"))


def test_a_result_that_cannot_be_serialised_fails_the_task_and_is_recorded_as_not_kept(shop):
    headers = {"idempotency_key": "k"}
    with pytest.raises(EncodeError, match="not JSON serializable"):
        shop.tasks.opaque.apply_async(("a",), headers=headers).get(timeout=20)
    with pytest.raises(Exception, match="not kept") as caught:
        shop.tasks.opaque.apply_async(("a",), headers=headers).get(timeout=20)
    assert "ResultNotKeptError" == type(caught.value).__name__
    assert 1 == len(shop.journal("start"))


def test_a_result_that_cannot_be_serialised_is_no_failure_where_results_are_ignored(shop):
    result = shop.tasks.opaque_ignored.delay("a")
    shop.until(lambda: "opaque_ignored[" in shop.log(0) and "succeeded" in shop.log(0))

    key = f"shop:idem:1:{{shop.opaque_ignored:id:{result.id}}}"
    state, flags = shop.redis.get(key).split()[1:7:5]
    assert (b"done", b"fn--") == (state, flags)
    assert 1 == len(shop.journal("start"))


def test_a_task_that_rejects_itself_to_the_queue_runs_again(shop):
    assert "a" == shop.tasks.rejecting.delay("a").get(timeout=20)
    assert 2 == len(shop.journal("start"))
    assert 1 == len(shop.journal("taken_over"))


def test_a_record_of_a_newer_version_is_left_alone_and_the_task_waits(shop):
    key = b"shop:idem:1:{shop.capture:key:a}"
    record = b"2 done future\n"
    shop.redis.set(key, record, ex=60)
    result = shop.tasks.capture.delay("a")
    shop.until(lambda: shop.journal("deferred", id=result.id))
    assert record == shop.redis.get(key)

    shop.redis.delete(key)
    assert ["a"] == result.get(timeout=20)
    assert 1 == len(shop.journal("start"))


def test_a_run_costs_two_scripts_three_where_something_follows_a_replay_one_and_no_heartbeat(shop_with):
    with start_server() as store, redis.Redis.from_url(store.url) as counted:  # kombu runs scripts of its own
        shop = shop_with(qx_cache_backend_url=store.url, qx_cache_lease_ttl=60)  # no renewal, however slow
        shop.start()
        tasks = shop.tasks

        def scripts_of(publish, orders):
            counted.config_resetstat()
            results = [publish(order) for order in orders]
            assert list(orders) == [result.get(timeout=60) for result in results]
            shop.until(shop.idle)
            stats = counted.info("commandstats")
            calls = [stats.get(name, {"calls": 0})["calls"] for name in ("cmdstat_evalsha", "cmdstat_eval")]
            return sum(calls)

        with_link = lambda order: tasks.noop_keyed.apply_async((order,), link=tasks.linked.s())  # noqa: E731
        in_chain = lambda order: (tasks.noop_keyed.s(order) | tasks.same.s()).delay()  # noqa: E731
        with_link(-1).get(timeout=20)  # the server learns the scripts
        shop.until(shop.idle)
        assert 400 == scripts_of(tasks.noop_keyed.delay, range(200))
        assert 200 == scripts_of(tasks.noop_keyed.delay, range(200))
        assert 150 == scripts_of(with_link, range(1000, 1050))
        assert 150 == scripts_of(in_chain, range(2000, 2050))
        shop.stop()


def test_a_soft_time_limit_fails_the_run_and_leaves_the_key_to_the_next_publish(shop):
    with pytest.raises(SoftTimeLimitExceeded):
        shop.tasks.capture.apply_async(("a",), {"seconds": 20}, soft_time_limit=1).get(timeout=20)
    assert ["a"] == shop.tasks.capture.delay("a").get(timeout=20)
    assert 2 == len(shop.journal("start"))
    assert [] == shop.journal("taken_over")
