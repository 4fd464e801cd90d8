"""One queued at a time: what ``delay()`` does while another task of the name waits, or runs, on real workers."""

import hashlib
import time
import uuid
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from importlib.resources import files

import pytest
from celery import chord
from celery.result import AsyncResult
from conftest import silent
from kombu.exceptions import OperationalError

from qx_cache import InvalidValueError, SyncPublishing
from qx_cache_celery import AlreadyQueuedError, KeyArgumentError

pytestmark = pytest.mark.worker
MODES = ["executing", "executed", "executing_and_while"]


@pytest.fixture
def unique(shop_with):
    return shop_with(name="unique")


def queued(unique):
    return unique.redis.llen("celery")


@pytest.mark.parametrize("name", MODES)
def test_a_duplicate_gets_the_result_of_the_one_that_is_queued(unique, name):
    task = getattr(unique.tasks, name)
    first = task.delay("a", gate="go")
    assert [first.id] * 3 == [task.delay("a").id, task.s("a").delay().id, task.apply_async(("a",)).id]
    assert first.id != task.delay("b").id
    assert 2 == queued(unique)
    assert 3 == len(unique.journal("already_queued", holder=first.id))
    assert first.id == task.lock_info("a").queued
    unique.start()
    unique.open("go")
    assert ["a"] == first.get(timeout=20)
    assert 2 == len(unique.until(lambda: len(unique.journal("end")) == 2 and unique.journal("end")))


@pytest.mark.parametrize(
    ("name", "published", "at_once"),
    [("executing", True, 2), ("executed", False, 1), ("executing_and_while", True, 1)],
)
def test_while_one_runs_the_mode_says_whether_another_is_published_and_runs_beside_it(
    unique, name, published, at_once
):
    unique.start()
    task = getattr(unique.tasks, name)
    first = task.delay("a", gate="go")
    unique.until(lambda: unique.journal("start"))
    second = task.apply_async(("a",), {"gate": "go"}, **({} if name == "executing" else {"on_conflict": "defer"}))
    assert published == (second.id != first.id)
    if at_once == 2:
        unique.until(lambda: len(unique.journal("start")) == 2)
    elif published:
        unique.until(lambda: unique.journal("deferred"))
    assert at_once == len(unique.journal("start"))
    unique.open("go")
    assert [["a"], ["a"]] == [first.get(timeout=20), second.get(timeout=20)]


def test_a_duplicate_may_raise_by_option_and_by_call(unique):
    tasks = unique.tasks
    first = tasks.strict.delay("a")
    with pytest.raises(AlreadyQueuedError) as refused:
        tasks.strict.delay("a")
    assert first.id == refused.value.task_id
    assert first.id == tasks.strict.apply_async(("a",), on_duplicate="return").id
    tasks.executed.delay("a")
    with pytest.raises(AlreadyQueuedError):
        tasks.executed.apply_async(("a",), on_duplicate="raise")
    assert 2 == queued(unique)


def test_after_its_end_and_after_a_failure_it_is_published_again(unique):
    unique.start()
    task = unique.tasks.executed
    assert ["a"] == task.delay("a").get(timeout=20)
    with pytest.raises(ValueError, match="a"):
        task.delay("a", fail=1).get(timeout=20)
    assert ["a"] == task.delay("a").get(timeout=20)
    assert 3 == len(unique.journal("start"))


def test_it_is_no_rival_to_its_own_retry_and_holds_up_others_until_that_has_run(unique):
    unique.start()
    task = unique.tasks.executed
    first = task.delay("a", retry=True, retry_after=2)
    unique.until(lambda: task.lock_info("a").queued == first.id and first.state == "RETRY", what="its retry")
    assert first.id == task.delay("a").id
    assert ["a"] == first.get(timeout=20)
    assert [0, 1] == [row["retries"] for row in unique.journal("start")]
    assert "" == task.lock_info("a").queued


def test_the_retry_of_one_that_was_put_off_holds_up_others_as_well(unique):
    unique.start()
    task = unique.tasks.executed
    holder = task.apply_async(("a",), {"gate": "go"}, task_id="holder")
    unique.until(lambda: unique.journal("start"))
    unique.redis.set("unique:lock:1:{unique.executed:key:a}:q", "c put-off", px=60_000)
    first = unique.tasks.app.send_task(
        "unique.executed",
        ("a",),
        {"retry": True, "retry_after": 2},
        task_id="put-off",
        headers={"qx_claim": ["unique", "unique.executed:key:a"], "qx_on_conflict": "defer"},
    )
    unique.until(lambda: unique.journal("deferred", id="put-off"))
    unique.open("go")
    unique.until(lambda: first.state == "RETRY")
    unique.until(lambda: task.lock_info("a").queued == "put-off", seconds=1.5, what="the claim of its retry")
    assert [["a"], ["a"]] == [holder.get(timeout=20), first.get(timeout=20)]


def test_a_retry_goes_before_one_that_was_queued_meanwhile(unique):
    unique.start(concurrency=1)
    task = unique.tasks.executing_and_while
    first = task.delay("a", retry=True, gate="go")
    unique.until(lambda: unique.journal("start"))
    second = task.apply_async(("a",), on_conflict="defer")
    unique.open("go")
    assert [["a"], ["a"]] == [first.get(timeout=20), second.get(timeout=20)]
    assert 3 == len(unique.journal("start"))


CLAIM = "unique:lock:1:{unique.executed:key:a}:q"


def test_one_that_is_revoked_before_it_begins_holds_up_nobody(unique):
    unique.start()
    task = unique.tasks.executed
    first = task.apply_async(("a",), countdown=60)
    unique.until(lambda: first.id in unique.log(0), what="its delivery")
    first.revoke()
    unique.until(lambda: first.state == "REVOKED")
    assert ["a"] == task.delay("a").get(timeout=20)


def test_one_that_is_dropped_as_revoked_frees_its_claim(unique):
    unique.start()
    task = unique.tasks.executed
    first = task.apply_async(("a",), countdown=2)
    unique.until(lambda: first.id in unique.log(0), what="its delivery")
    first.revoke()
    unique.until(lambda: "Discarding revoked task" in unique.log(0))
    unique.until(lambda: task.lock_info("a").queued == "", what="the claim's end")


def test_one_that_expires_holds_up_nobody(unique):
    task = unique.tasks.executed
    first = task.apply_async(("a",), expires=1.0)
    assert 0 < unique.redis.pttl(CLAIM) <= 1000
    unique.redis.pexpire(CLAIM, 60_000)  # were it there for longer
    gone = time.time() + 1.2
    unique.until(lambda: time.time() > gone)
    unique.start()
    unique.until(lambda: first.state == "REVOKED")
    unique.until(lambda: task.lock_info("a").queued == "", what="the claim's end")
    assert ["a"] == task.delay("a").get(timeout=20)


@pytest.mark.parametrize("order", ["dies", "fails"])
def test_one_that_falls_before_it_reaches_its_lock_holds_up_nobody(unique, order):
    unique.start()
    task = unique.tasks.falling
    first = task.delay(order)
    unique.until(lambda: unique.idle() and task.lock_info(order).queued == "", what="the claim's end")
    assert first.id != task.delay(order).id
    unique.until(lambda: unique.journal("end"))


@pytest.mark.parametrize("name", ["quiet", "quiet_executing"])
@pytest.mark.parametrize("policy", ["raise", "run", "defer"])
def test_redis_away_when_it_begins_leaves_no_claim(shop_with, records, name, policy):
    unique = shop_with(name="unique", qx_cache_backend_url=records.url, qx_cache_on_store_error=policy)
    unique.start()
    task = getattr(unique.tasks, name)
    assert "" == task.lock_info("a").queued
    first = task.apply_async(("a",), countdown=0.5)
    assert first.id == task.lock_info("a").queued
    with silent(records):
        unique.until(lambda: f"{first.id}] received" in unique.log(0) and eta_is_over(first))
        if policy == "defer" and name == "quiet":
            unique.until(lambda: unique.journal("deferred"))
        else:
            gone = time.time() + 3  # whatever it does without Redis, it is under way
            unique.until(lambda: time.time() > gone)
    unique.until(unique.idle, seconds=60)
    unique.until(lambda: task.lock_info("a").queued == "", seconds=40, what="the claim's end")


def eta_is_over(result, began=time.time):
    result.qx_due = getattr(result, "qx_due", began() + 1)
    return began() > result.qx_due


def test_a_tick_that_is_published_again_after_its_end_holds_up_nobody(unique):
    unique.start()
    task, tick = unique.tasks.quiet, {"task_id": "tick-1", "headers": {"qx_tick": "t 1", "qx_copy": 0}}
    task.apply_async(("a",), **tick)
    unique.until(lambda: unique.journal("end") and unique.idle())
    task.apply_async(("a",), **tick)  # by a leader that followed
    unique.until(lambda: "is not run again" in unique.log(0) and unique.idle())
    assert "" == task.lock_info("a").queued
    assert 1 == len(unique.journal("start"))


def test_a_tick_that_waits_is_not_published_twice(unique):
    task, tick = unique.tasks.quiet, {"task_id": "tick-1", "headers": {"qx_tick": "t 1", "qx_copy": 0}}
    assert ["tick-1"] * 2 == [task.apply_async(("a",), **tick).id for _ in range(2)]
    assert 1 == queued(unique)


def test_a_claim_under_another_name_ends_as_well(unique):
    """The publisher is of another version, and has another idea of the key."""
    unique.start()
    task = unique.tasks.quiet
    publishing = known(unique)
    publishing.claim("older name", "a", or_running=True)
    publishing.confirm("older name", "a", life_seconds=60)
    task.apply_async(("a",), task_id="a", headers={"qx_claim": ["unique", "older name"]})
    unique.until(lambda: unique.journal("end") and unique.idle())
    assert publishing.claim("older name", "b", or_running=True) is None


def test_a_message_that_has_no_key_and_expires_harms_no_worker(unique):
    send = unique.tasks.app.send_task
    lost = [send("unique.executed", (), expires=0.01), send("unique.unkeyed", ("x",), expires=0.01)]
    gone = time.time() + 0.1
    unique.until(lambda: time.time() > gone)
    worker = unique.start()
    unique.until(lambda: all(one.state == "REVOKED" for one in lost))
    assert ["a"] == unique.tasks.executed.delay("a").get(timeout=20)
    assert worker.poll() is None


def test_a_call_with_a_key_or_a_link_of_its_own_is_always_published(unique):
    tasks = unique.tasks
    first = tasks.recorded.delay("a")
    assert first.id == tasks.recorded.delay("a").id
    assert first.id != tasks.recorded.apply_async(("a",), idempotency_key="another").id
    assert first.id != tasks.recorded.apply_async(("a",), None, None, None, tasks.collect.s()).id


def test_what_the_whole_app_says_is_checked_as_well(shop_with):
    unique = shop_with(name="unique", qx_cache_lock_mode="until_executed")
    with pytest.raises(InvalidValueError, match="'keep_latest' publishes every call"):
        unique.tasks.newest.delay("a")


def test_one_that_was_queued_because_another_runs_runs_after_it(unique):
    unique.start()
    task = unique.tasks.executing_and_while
    first = task.delay("a", gate="go")
    unique.until(lambda: unique.journal("start"))
    second = task.delay("a")
    assert second.id == task.delay("a").id != first.id
    unique.until(lambda: unique.journal("deferred"))
    unique.open("go")
    assert [["a"], ["a"]] == [first.get(timeout=20), second.get(timeout=20)]


def test_one_that_could_not_be_published_holds_up_nobody(unique):
    app, task = unique.tasks.app, unique.tasks.executed
    before = app.conf.broker_url, app.conf.broker_transport_options
    options = {"retry": False, "connection": app.connection("redis://127.0.0.1:1/0")}
    with pytest.raises((OperationalError, ConnectionError)):
        task.apply_async(("a",), **options)
    assert before == (app.conf.broker_url, app.conf.broker_transport_options)
    assert "" == task.lock_info("a").queued
    first = task.delay("a")
    assert first.id == task.delay("a").id


def test_how_long_one_may_wait_follows_its_countdown_and_its_expiry(unique):
    task, key = unique.tasks.executed, "unique:lock:1:{unique.executed:key:%s}:q"
    at = datetime.now(timezone.utc)  # noqa: UP017  # as users write it
    waits = {
        "plain": ({}, 3600),
        "countdown": ({"countdown": 100}, 3700),
        "eta": ({"eta": at + timedelta(seconds=200)}, 3800),
        "expires": ({"expires": 50}, 50),
        "expires at": ({"expires": at + timedelta(seconds=70), "countdown": 10}, 70),
    }
    for order, (options, seconds) in waits.items():
        task.apply_async((order,), **options)
        assert seconds - 10 < unique.redis.pttl(key % order) / 1000 <= seconds + 1, order


def test_what_a_purge_leaves_is_freed_by_hand(unique):
    task = unique.tasks.executed
    first = task.delay("a")
    unique.redis.delete("celery")
    assert first.id == task.delay("a").id
    assert not task.release_lock("a", queued="another")
    with pytest.raises(InvalidValueError, match="release_lock needs the fence of a run, or the id"):
        task.release_lock("a")
    assert task.release_lock("a", queued=first.id)
    assert first.id != task.delay("a").id


def test_members_of_a_canvas_and_calls_with_an_id_are_always_published(unique):
    tasks = unique.tasks
    first = tasks.executed.delay("a")
    whole = chord([tasks.executed.s("a"), tasks.executed.s("a")])(tasks.collect.s())
    linked = tasks.executed.apply_async(("a",), link=tasks.collect.s())
    chosen = tasks.executed.apply_async(("a",), task_id="chosen")
    chains = [(tasks.executed.si("a") | tasks.executed.si("a")).delay() for _ in range(2)]
    assert "chosen" == chosen.id
    unique.start()
    assert [["a"], ["a"]] == whole.get(timeout=60)
    for one in (linked, *chains):
        assert ["a"] == one.get(timeout=60)
    for one in (first, chosen):  # each meets the lock, or the run of a member
        assert ["a"] == one.get(timeout=20) or "qx_skipped" in one.get(timeout=20)


def test_the_claim_has_the_name_that_the_delivered_arguments_have(unique):
    task, more = unique.tasks.exact, (uuid.uuid4(), Decimal("1.50"), (1, 2), {"a": {1: "b"}}, datetime(2026, 1, 1))  # noqa: DTZ001
    first = task.delay("a", *more)
    assert first.id == task.delay("a", *more).id
    unique.start()
    first.get(timeout=20)
    assert [] == [key for key in unique.redis.keys("unique:lock:*") if key.endswith(b":q")]
    with pytest.raises(KeyArgumentError, match=r"unique\.exact: missing a required argument"):
        task.delay()


def test_with_a_record_a_replay_frees_the_claim_as_well(unique):
    unique.start()
    task = unique.tasks.recorded
    for _ in range(3):
        assert ["a"] == task.delay("a").get(timeout=20)
        assert "" == task.lock_info("a").queued
    assert 1 == len(unique.journal("start"))


def test_a_redis_that_hangs_costs_a_moment_and_then_nothing(shop_with, records):
    unique = shop_with(name="unique", qx_cache_backend_url=records.url)
    unique.tasks.executed.delay("a")  # all connections are open
    with silent(records):
        began = time.monotonic()
        unique.tasks.executed.delay("b")
        once_hung = time.monotonic() - began
        for number in range(20):
            unique.tasks.executed.delay(f"c{number}")
        assert once_hung < 4
        assert time.monotonic() - began < once_hung + 5
    assert 22 == queued(unique)


@pytest.mark.parametrize("name", ["executed", "newest"])
def test_without_its_redis_a_task_is_published_all_the_same_with_a_warning(shop_with, records, caplog, name):
    unique = shop_with(name="unique", qx_cache_backend_url=records.url, qx_cache_on_store_error="run")
    records.stop()
    task = getattr(unique.tasks, name)
    began = time.monotonic()
    results = [task.delay("a") for _ in range(2)]
    assert time.monotonic() - began < 10
    assert 2 == len({result.id for result in results}) == queued(unique)
    assert 2 == sum("published unchecked" in record.message for record in caplog.records)
    unique.start()
    assert [["a"], ["a"]] == [result.get(timeout=60) for result in results]


def test_an_unconfirmed_claim_of_a_publisher_that_died_costs_nothing(unique):
    task = unique.tasks.executed
    known(unique).claim("unique.executed:key:a", "died", or_running=True)
    first = task.delay("a")
    assert "died" != first.id
    assert first.id == task.delay("a").id


def known(unique):
    return SyncPublishing(unique.redis, namespace="unique")


def test_scripts_a_run_two_a_skip_one_a_unique_publication_two_a_duplicate_one(shop_with):
    unique = shop_with(name="unique", qx_cache_lock_ttl=600)  # no heartbeat comes between
    unique.start()
    tasks = unique.tasks
    for task in (tasks.noop, tasks.noop_unique):  # now the server knows the scripts
        task.delay(0)
    ended(unique, 2)
    count = counted(unique)
    with count(2 * 50):
        for number in range(50):
            tasks.noop.delay(number)
        ended(unique, 52)
    with count(2 * 50 + 2 * 50):  # at publication, and at the run
        for number in range(50):
            tasks.noop_unique.delay(number)
        ended(unique, 102)
    holder = tasks.executed.delay("a", gate="go")
    unique.until(lambda: unique.journal("start"))
    with count(1):
        assert holder.id == tasks.executed.delay("a").id
    with count(1):
        skipped = tasks.executed.apply_async(("a",), task_id="another")
        assert "lock_held" == skipped.get(timeout=20)["qx_skipped"]
    unique.open("go")
    holder.get(timeout=20)


def ended(unique, number):
    unique.until(
        lambda: unique.log(0).count("succeeded in") >= number and unique.idle(), seconds=60, what=f"{number} ends"
    )


OURS = {
    hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest().encode()
    for path in files("qx_cache").joinpath("scripts").iterdir()
}


def counted(unique):
    """Counts our scripts; kombu has some of its own."""
    unique.redis.config_set("slowlog-max-len", 100_000)
    unique.redis.config_set("slowlog-log-slower-than", 0)

    def calls():
        words = [entry["command"].split()[:2] for entry in unique.redis.slowlog_get(100_000)]
        return sum(word[0] == b"EVAL" or word[1] in OURS for word in words if word[0] in {b"EVAL", b"EVALSHA"})

    @contextmanager
    def count(expected):
        unique.redis.slowlog_reset()
        yield
        unique.until(lambda: calls() >= expected, what=f"{expected} scripts")
        assert expected == calls()

    return count


def test_the_result_of_a_duplicate_is_a_handle_on_the_first(unique):
    unique.start()
    first = unique.tasks.executed.delay("a", seconds=0.5)
    duplicate = unique.tasks.executed.delay("a")
    assert isinstance(duplicate, AsyncResult)
    assert ["a"] == duplicate.get(timeout=20)
    assert first.id == duplicate.id
