"""``tx=``: the effects in a database, their record and its row, on SQLite and PostgreSQL, with real workers."""

import signal

import pytest
from celery import chord

from qx_cache import (
    Done,
    Failed,
    IdempotencyMismatchError,
    Interrupted,
    InterruptedRunError,
    RecordedFailureError,
    SyncIdempotencyStore,
)
from qx_cache_celery.inbox.database import database_of
from qx_cache_celery.inbox.rows import Inbox
from qx_cache_celery.rowfirst import entry_of

pytestmark = pytest.mark.worker


def rows(ledger):
    from sqlalchemy import text

    with ledger.tasks.engine.connect() as connection:
        return connection.execute(text("SELECT key, state, attempt, staged FROM qx_inbox")).all()


def test_a_key_published_twice_takes_effect_once(ledger):
    tasks = ledger.tasks
    assert "paid a" == tasks.capture.delay("a", commit=True).get(timeout=20)
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert 1 == tasks.effects("a")
    assert [("ledger:ledger.capture:key:a", "done", 1, None)] == rows(ledger)
    assert 1 == len(ledger.journal("start"))


def test_a_run_costs_three_statements_more_than_its_body_and_a_replay_one(ledger):
    """Two of ours, and the savepoint that a body's own commit ends; on SQLite the bound of the wait as well."""
    tasks = ledger.tasks
    tasks.capture.delay("a").get(timeout=20)
    tasks.capture.delay("a").get(timeout=20)
    first, second = [row["statements"] for row in ledger.journal("sent")]
    ours = ["INSERT qx_inbox", "SAVEPOINT", "INSERT payments", "UPDATE SET"]
    assert ours == [one for one in first if "PRAGMA" not in one]
    assert ["SELECT fence,"] == [one for one in second if "PRAGMA" not in one]


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("point", ["start", "body", "commit", "end"])
def test_a_killed_run_takes_effect_once_and_its_chord_goes_on(ledger, point, forgetful):
    tasks, order = ledger.tasks, f"die-{point}{'-forget' if forgetful else ''}"
    body = chord([tasks.capture.s(order), tasks.capture.s("b")])(tasks.collect.s())
    assert [f"paid {order}", "paid b"] == sorted(body.get(timeout=40), reverse=True)
    assert [1, 1] == [tasks.effects(order), tasks.effects("b")]
    assert 1 == len(ledger.journal("died"))
    assert 1 == len(ledger.journal("collect"))


def test_a_run_frozen_past_its_lease_and_its_rival_take_effect_once(ledger_with):
    ledger = ledger_with(visibility_timeout=2, qx_cache_visibility_heartbeat=False)
    ledger.start(), ledger.start()
    result = ledger.tasks.capture.delay("a", gate="go")
    first = ledger.until(lambda: ledger.journal("start"))[0]
    ledger.group(ledger.running_in(first), signal.SIGSTOP)
    ledger.until(
        lambda: [row for row in ledger.journal("deferred", id=result.id) if "has not ended" in row["reason"]],
        what="the rival's waiting for the row",
    )
    assert 1 == len(ledger.journal("start"))  # the rival waits for the row, and does not begin
    ledger.open("go")
    ledger.group(ledger.running_in(first), signal.SIGCONT)
    assert "paid a" == result.get(timeout=30)
    ledger.until(ledger.idle)
    assert 1 == ledger.tasks.effects("a")


def test_a_failure_leaves_nothing_and_the_next_run_does_it_all(ledger):
    tasks = ledger.tasks
    with pytest.raises(ValueError, match="a"):
        tasks.capture.delay("a", how="fails once").get(timeout=20)
    assert 0 == tasks.effects("a")
    assert [] == rows(ledger)
    assert "paid a" == tasks.capture.delay("a", how="fails once").get(timeout=20)
    assert "paid b" == tasks.capture.delay("b", how="retries once").get(timeout=20)
    assert [1, 1] == [tasks.effects("a"), tasks.effects("b")]
    assert [0, 1] == [row["retries"] for row in ledger.journal("start", order="b")]


def test_a_lock_is_held_until_the_transaction_has_committed(ledger):
    assert "paid locked" == ledger.tasks.both.delay("locked").get(timeout=20)
    assert "paid again" == ledger.tasks.both.delay("again").get(timeout=20)
    assert ["held"] == [row["held"] for row in ledger.journal("committed")]


def test_a_body_with_a_transaction_cannot_go_on_after_its_retry_which_would_write_it_again(ledger):
    tasks = ledger.tasks
    with pytest.raises(Exception, match=r"retry\(throw=False\) would commit"):
        tasks.going_on.delay("a").get(timeout=20)
    assert [0, 1] == [tasks.effects("a"), len(ledger.journal("start", order="a"))]


def test_a_body_with_a_transaction_cannot_be_replaced_which_would_roll_it_back(ledger):
    tasks = ledger.tasks
    with pytest.raises(Exception, match=r"stage what follows by self\.tx\.stage"):
        tasks.replacing.delay("a").get(timeout=20)
    assert [0, 0] == [tasks.effects("a"), tasks.effects("another")]


def test_a_run_that_has_committed_is_replayed_however_often_it_was_interrupted_after_that(ledger):
    tasks = ledger.tasks
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    store, key = SyncIdempotencyStore(ledger.redis, namespace="ledger"), tasks.capture.idempotency_key_for("a")
    store.forget(key, fence=store.peek(key).fence)
    for _ in range(7):
        store.abandon(store.claim(key, holder="killed"))
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert 1 == tasks.effects("a")


def test_what_the_database_could_not_serialise_is_tried_again(ledger):
    """Two runs write what the other has read: one is rolled back by PostgreSQL, and run again by us."""
    if ledger.tasks.engine.dialect.name == "sqlite":
        pytest.skip("its writers come one after the other")
    tasks = ledger.tasks
    tasks.make_counters()
    results = [tasks.swap.delay("a", "b"), tasks.swap.delay("b", "a")]
    assert ["ok", "ok"] == [result.get(timeout=30) for result in results]
    assert [2, 2] == tasks.counters()
    assert len(ledger.journal("start")) > 2  # a deadlock, and one run more


def test_children_are_published_after_the_commit_each_once(ledger):
    tasks = ledger.tasks
    with pytest.raises(ValueError, match="never"):
        tasks.parent.delay("never", fail=True).get(timeout=20)
    ids = tasks.parent.delay("a").get(timeout=20)
    assert ids == tasks.parent.delay("a").get(timeout=20)  # replayed
    ledger.until(lambda: tasks.effects("child of a") == 2)
    ledger.until(ledger.idle)
    assert sorted(ids) == sorted(row["id"] for row in ledger.journal("child"))
    assert [0, 1, 2] == [tasks.effects("never"), tasks.effects("a"), tasks.effects("child of a")]


@pytest.mark.parametrize("point", ["publish", "between", "end"])
def test_a_crash_between_commit_and_publish_loses_no_child_and_doubles_none(ledger, point):
    tasks, order = ledger.tasks, f"die-{point}"
    ids = tasks.parent.delay(order).get(timeout=40)
    ledger.until(lambda: tasks.effects(f"child of {order}") == 2)
    ledger.until(ledger.idle)
    assert [1, 2] == [tasks.effects(order), tasks.effects(f"child of {order}")]
    assert set(ids) == {row["id"] for row in ledger.journal("child")}
    assert 1 == len(ledger.journal("start", order=order))
    assert 1 == len(ledger.journal("died"))
    assert all(staged is None for *_, staged in rows(ledger))


def test_a_body_that_goes_on_after_a_database_error_fails_where_that_broke_the_transaction(ledger):
    result = ledger.tasks.capture.delay("a", how="swallows")
    if ledger.tasks.engine.dialect.name == "sqlite":  # an error there is of one statement only
        assert "paid a" == result.get(timeout=20)
        return
    with pytest.raises(Exception, match="went on after a database error") as caught:
        result.get(timeout=20)
    assert "TransactionBrokenError" == type(caught.value).__name__
    assert 0 == ledger.tasks.effects("a")
    assert [] == rows(ledger)


@pytest.mark.parametrize("how", ["commits", "rolls back"])
def test_a_body_that_ends_the_transaction_past_us_fails_with_a_word_about_it(ledger, how):
    with pytest.raises(Exception, match="ended the transaction itself") as caught:
        ledger.tasks.capture.delay("a", how=how).get(timeout=20)
    assert "TransactionBrokenError" == type(caught.value).__name__
    assert {"commits": 1, "rolls back": 0}[how] == ledger.tasks.effects("a")


def test_a_row_without_an_end_is_an_interrupted_run(ledger):
    """The body has committed past us and then failed: its effect is there, and nobody knows what it means."""
    tasks = ledger.tasks
    task = tasks.once_at_most
    with pytest.raises(Exception, match="the body"):
        task.delay("a", how="commits").get(timeout=20)
    with pytest.raises(InterruptedRunError):
        task.delay("a").get(timeout=20)
    key = task.idempotency_key_for("a")
    seen = task.outcome(key)
    assert isinstance(seen, Interrupted)
    assert not task.resolve(key, "settled", fence=seen.fence + 1)
    assert task.resolve(key, "settled", fence=seen.fence)
    assert "settled" == task.delay("a").get(timeout=20)
    assert 1 == tasks.effects("a")
    assert isinstance(task.outcome(key), Done)
    assert task.forget(key, fence=seen.fence)
    assert task.outcome(key) is None
    assert "paid a" == task.delay("a").get(timeout=20)
    assert 2 == tasks.effects("a")


def test_a_row_without_an_end_may_be_run_again_at_once_under_a_claim_and_a_lock_of_its_own(ledger):
    tasks = ledger.tasks
    with pytest.raises(Exception, match="the body"):
        tasks.resumed.delay("a", how="commits").get(timeout=20)
    assert "paid a" == tasks.resumed.delay("a").get(timeout=20)
    assert [2, 2] == [tasks.effects("a"), len(ledger.journal("start", order="a"))]
    assert [] == ledger.journal("deferred")
    assert "free" == tasks.resumed.lock_info("a").state


def test_an_interrupted_run_whose_transaction_is_still_open_is_settled_when_that_has_ended(ledger):
    """A frozen worker: its lease is gone, its row not committed. Who comes next does not wait in a slot."""
    tasks = ledger.tasks
    task = tasks.once_at_most
    store, key = SyncIdempotencyStore(ledger.redis, namespace="ledger"), task.idempotency_key_for("a")
    claim = store.claim(key, holder="frozen", fingerprint=None)
    inbox = Inbox(database_of(tasks.Ledger), "ledger", 1)
    with inbox.database.begin() as frozen:
        assert inbox.enter(frozen, key, entry_of(claim), takes_over=False) is None
        store.abandon(claim)
        result = task.delay("a")
        ledger.until(lambda: ledger.journal("deferred", id=result.id), what="the task to be put off")
        frozen.execute("DELETE FROM qx_inbox", {})
    with pytest.raises(InterruptedRunError):
        result.get(timeout=20)
    assert ["unknown"] == [row.state for row in rows(ledger)]
    assert [] == ledger.journal("start")


def test_a_result_too_large_for_the_row_rolls_everything_back(ledger):
    with pytest.raises(Exception, match=r"its result has \d+ bytes, a row takes 1048576") as caught:
        ledger.tasks.much.delay("a").get(timeout=20)
    assert "ResultTooLargeError" == type(caught.value).__name__
    assert 0 == ledger.tasks.effects("a")
    assert [] == rows(ledger)


def test_another_request_under_a_key_is_refused_by_the_row_too(ledger):
    task = ledger.tasks.strict
    assert 5 == task.delay("a", 5).get(timeout=20)
    ledger.redis.delete("ledger:idem:1:{ledger.strict:key:a}")
    with pytest.raises(IdempotencyMismatchError):
        task.delay("a", 6).get(timeout=20)
    assert 5 == task.delay("a", 5).get(timeout=20)
    assert 1 == ledger.tasks.effects("a")


def test_a_kept_failure_is_in_the_row_and_its_effects_are_not(ledger):
    task = ledger.tasks.failing
    with pytest.raises(ValueError, match="no a"):
        task.delay("a").get(timeout=20)
    ledger.redis.delete("ledger:idem:1:{ledger.failing:key:a}")
    for _ in range(2):
        with pytest.raises(RecordedFailureError, match="ValueError: no a"):
            task.delay("a").get(timeout=20)
    assert isinstance(task.outcome(task.idempotency_key_for("a")), Failed)
    assert 1 == len(ledger.journal("start"))
    assert 0 == ledger.tasks.effects("a")


def test_where_row_and_redis_disagree_the_row_is_right(ledger):
    from sqlalchemy import text

    tasks = ledger.tasks
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    with tasks.engine.begin() as connection:  # as a backup from before the run would have it
        connection.execute(text("DELETE FROM qx_inbox"))
        connection.execute(text("DELETE FROM payments"))
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert 1 == tasks.effects("a")
    assert 1 == len(ledger.journal("log", qx_event="stale"))


def test_a_missing_table_is_named_with_the_call_that_makes_it(ledger):
    from sqlalchemy import text

    with ledger.tasks.engine.begin() as connection:
        connection.execute(text("DROP TABLE qx_inbox"))
    with pytest.raises(Exception, match=r"qx_inbox is not there.*create_inbox") as caught:
        ledger.tasks.capture.delay("a").get(timeout=20)
    assert "InboxMissingError" == type(caught.value).__name__
    assert 0 == ledger.tasks.effects("a")


def test_a_call_that_no_worker_delivered_has_a_transaction_and_no_row(ledger):
    tasks = ledger.tasks
    assert "paid a" == tasks.capture("a")
    with pytest.raises(ValueError, match="b"):
        tasks.capture("b", how="fails once")
    assert [1, 0] == [tasks.effects("a"), tasks.effects("b")]
    assert [] == rows(ledger)
    assert 2 == len(tasks.parent("c"))
    ledger.until(lambda: tasks.effects("child of c") == 2)
    with pytest.raises(RuntimeError, match="no transaction"):
        _ = tasks.capture.tx


def test_a_task_that_calls_anothers_body_has_it_in_its_own_transaction(ledger):
    tasks = ledger.tasks
    assert "paid a" == tasks.caller.delay("a").get(timeout=20)
    with pytest.raises(ValueError, match="b"):
        tasks.caller.delay("b", fail=True).get(timeout=20)
    assert [1, 0] == [tasks.effects("a"), tasks.effects("b")]
    assert 1 == len(rows(ledger))


def test_a_record_from_before_the_task_had_a_database_is_replayed(ledger):
    from qx_cache import SyncIdempotencyStore
    from qx_cache_celery.results import KombuCodec

    tasks = ledger.tasks
    store = SyncIdempotencyStore(ledger.redis, namespace="ledger", codec=KombuCodec(tasks.app))
    store.complete(store.claim("ledger.capture:key:a"), "paid before")
    assert "paid before" == tasks.capture.delay("a").get(timeout=20)
    assert 0 == tasks.effects("a")
