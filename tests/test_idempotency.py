"""The store: every outcome and transition, on both twins."""

import asyncio

import pytest

from qx_cache import (
    Claimed,
    ClaimLostError,
    Corrupt,
    CorruptRecordError,
    Done,
    Ended,
    Failed,
    IdempotencyMismatchError,
    InProgressError,
    Interrupted,
    Mismatch,
    RecordedFailureError,
    ResultEncodingError,
    ResultNotKeptError,
    Running,
    StoreRefusedError,
)


@pytest.fixture
def store(world):
    return world.make("IdempotencyStore", ttl_seconds=60, lease_seconds=5)


async def test_of_many_claims_one_wins(store):
    outcomes = await asyncio.gather(*(store.claim("k") for _ in range(20)))

    assert 1 == sum(isinstance(outcome, Claimed) for outcome in outcomes)
    assert 19 == sum(isinstance(outcome, Running) for outcome in outcomes)


async def test_a_completed_result_is_replayed(store):
    await store.complete(await store.claim("k"), {"paid": True})
    outcome = await store.claim("k")

    assert isinstance(outcome, Done)
    assert ({"paid": True}, True, True) == (outcome.result, outcome.kept, outcome.finalised)
    assert {"paid": True} == await store.get("k")


async def test_a_stored_none_is_told_from_absence(store):
    assert "absent" == await store.get("k", "absent")
    await store.complete(await store.claim("k"), None)
    assert await store.get("k", "absent") is None


async def test_the_first_set_wins(store):
    assert await store.set("k", 1)
    assert not await store.set("k", 2)
    assert 1 == await store.get("k")


async def test_set_leaves_a_live_claim_alone_and_takes_over_a_lapsed_one(store):
    claim = await store.claim("k")
    assert not await store.set("k", 2)
    await store.abandon(claim)
    assert await store.set("k", 2)
    with pytest.raises(ClaimLostError):
        await store.complete(claim, 1)


async def test_a_takeover_counts_the_attempt_and_raises_the_fence(store):
    slow = await store.claim("k")
    assert await store.abandon(slow)
    fast = await store.claim("k")

    assert (True, 2) == (fast.takeover, fast.attempt)
    assert fast.fence > slow.fence
    with pytest.raises(ClaimLostError):
        await store.complete(slow, "late")
    await store.complete(fast, "in time")
    assert "in time" == await store.get("k")


async def test_a_lease_lapses_by_itself(world):
    store = world.make("IdempotencyStore", lease_seconds=0.1)
    first = await store.claim("k")
    while isinstance(outcome := await store.claim("k"), Running):
        await asyncio.sleep(min(0.02, outcome.remaining_seconds))
    assert outcome.takeover
    assert not first.lease.valid()


async def test_an_orderly_hand_back_is_no_attempt(store):
    await store.abandon(await store.claim("k"), counted=False)
    assert 1 == (await store.claim("k")).attempt


async def test_a_dead_process_loses_its_claims_and_no_others(world):
    mine = world.make("IdempotencyStore", owner_prefix="dead01")
    other = world.make("IdempotencyStore", owner_prefix="live01")
    await mine.claim("k", holder="t1")
    await other.claim("l", holder="t1")

    assert await mine.abandon_lost("k", holder="t1", owner_prefix="dead01")
    assert not await mine.abandon_lost("l", holder="t1", owner_prefix="dead01")
    assert not await mine.abandon_lost("l", holder="t2", owner_prefix="live01")
    assert isinstance(await mine.claim("k", holder="t1"), Claimed)
    assert isinstance(await mine.claim("l", holder="t1"), Running)


async def test_takeover_can_be_refused(store):
    await store.abandon(await store.claim("k", holder="t1"))
    outcome = await store.claim("k", takeover=False)
    assert isinstance(outcome, Interrupted)
    assert "t1" == outcome.holder


async def test_a_released_key_is_free_for_others_and_closed_to_redeliveries(store):
    await store.release(await store.claim("k", holder="t1"))

    assert isinstance(await store.claim("k", holder="t1", redelivery=True), Ended)
    retried = await store.claim("k", holder="t1", retries=1, redelivery=True)
    assert isinstance(retried, Claimed)
    await store.release(retried)
    assert isinstance(await store.claim("k", holder="t1", retries=0, redelivery=True), Ended)
    assert isinstance(await store.claim("k", holder="t2"), Claimed)


async def test_a_failure_is_told_to_the_redelivery_of_its_holder_until_it_is_passed_on(store):
    claim = await store.claim("k", holder="t1")
    await store.release(claim, ValueError("no money"))
    ended = await store.claim("k", holder="t1", redelivery=True)
    assert ("builtins.ValueError", "no money") == (ended.failure.error_type, ended.failure.message)
    assert "no money" == (await store.look("k")).failure.message

    assert await store.finalise("k", claim.fence)
    assert (await store.claim("k", holder="t1", redelivery=True)).failure is None
    assert isinstance(await store.claim("k", holder="t2"), Claimed)


async def test_a_failure_that_cannot_be_put_into_words_is_recorded_all_the_same(store):
    class MuteError(Exception):
        def __str__(self):
            raise TypeError("no words")

    await store.release(await store.claim("k", holder="t1"), MuteError())
    assert (await store.claim("k", holder="t1", redelivery=True)).failure.error_type.endswith("MuteError")
    await store.release(await store.claim("l", holder="t1"), ValueError("x" * 20_000))
    assert 10_000 == len((await store.claim("l", holder="t1", redelivery=True)).failure.message)


async def test_a_deliberate_new_publish_of_an_old_id_runs(store):
    await store.release(await store.claim("k", holder="t1"))
    assert isinstance(await store.claim("k", holder="t1"), Claimed)


async def test_an_older_attempt_is_over_while_its_retry_runs(store):
    await store.claim("k", holder="t1", retries=2)
    assert isinstance(await store.claim("k", holder="t1", retries=1, redelivery=True), Ended)
    assert isinstance(await store.claim("k", holder="t1", retries=2, redelivery=True), Running)


async def test_a_kept_failure_is_told_again(store):
    await store.fail(await store.claim("k"), ValueError("no money"))
    outcome = await store.claim("k")

    assert isinstance(outcome, Failed)
    assert ("builtins.ValueError", "no money") == (outcome.error_type, outcome.message)
    with pytest.raises(RecordedFailureError, match="no money"):
        await store.get("k")


async def test_another_fingerprint_is_refused_but_not_to_the_same_holder(store):
    await store.claim("k", holder="t1", fingerprint="a")
    outcome = await store.claim("k", holder="t2", fingerprint="b")

    assert isinstance(outcome, Mismatch)
    assert outcome.recorded != outcome.given
    assert isinstance(await store.claim("k", holder="t1", fingerprint="b"), Running)


async def test_two_unnamed_holders_of_one_process_are_two(store):
    await store.claim("k", fingerprint="a")
    assert isinstance(await store.claim("k", fingerprint="b"), Mismatch)


async def test_finalising_marks_the_result_of_that_run_only(store):
    claim = await store.claim("k")
    await store.complete(claim, 1, finalised=False)
    assert not (await store.claim("k")).finalised
    assert not await store.finalise("k", claim.fence + 1)
    assert await store.finalise("k", claim.fence)
    outcome = await store.claim("k")
    assert (True, 1) == (outcome.finalised, outcome.result)


async def test_each_operation_repeated_after_a_lost_reply_is_recognised(world, store):
    records = world.records(store)
    claim = records.claim("k", holder="t", fingerprint=None, retries=0, redelivery=False, takeover=True)
    first, again = await world.perform(claim), await world.perform(claim)
    assert (first.fence, first.attempt, False) == (again.fence, again.attempt, again.takeover)

    complete, _ = records.complete(first, 7, kept=True, finalised=True, ttl=None)
    await world.perform(complete), await world.perform(complete)
    assert 7 == await store.get("k")

    ended = await store.claim("l")
    release = records.release(ended, None)
    await world.perform(release), await world.perform(release)

    left = await store.claim("m")
    abandon = records.abandon(left, counted=False)
    assert [True, True] == [await world.perform(abandon), await world.perform(abandon)]
    assert 1 == (await store.claim("m")).attempt

    put = records.put("n", 1, ttl=None)
    assert [True, True] == [await world.perform(put), await world.perform(put)]


async def test_a_vanished_record_is_rebuilt(store, world, raw):
    claim = await store.claim("k")
    raw.delete(f"{world.namespace}:idem:1:{{k}}")
    assert not await store.renew(claim)
    await store.complete(claim, 5)
    outcome = await store.claim("k")
    assert (5, claim.fence) == (outcome.result, outcome.fence)


@pytest.mark.parametrize("record", [b"2 done whatever\n", b"garbage", b"1 odd 1 1 1 0 ---- o h -\n"])
async def test_an_unreadable_record_is_reported_and_left_alone(store, world, raw, record):
    key = f"{world.namespace}:idem:1:{{k}}"
    raw.set(key, record, ex=60)

    assert isinstance(await store.claim("k"), Corrupt)
    assert record == raw.get(key)
    if not record.startswith(b"1"):
        with pytest.raises(CorruptRecordError, match="'k'"):
            await store.get("k")
        with pytest.raises(CorruptRecordError):
            await store.set("k", 1)


async def test_a_key_of_another_type_is_refused(store, world, raw):
    key = f"{world.namespace}:idem:1:{{k}}"
    raw.lpush(key, 1)
    raw.expire(key, 60)
    with pytest.raises(StoreRefusedError, match="claim"):
        await store.claim("k")


async def test_a_result_that_cannot_be_serialised_is_refused_before_anything_is_sent(store):
    claim = await store.claim("k")
    with pytest.raises(ResultEncodingError):
        await store.complete(claim, object())
    assert isinstance(await store.claim("k"), Running)
    await store.complete(claim, None, kept=False)
    with pytest.raises(ResultNotKeptError):
        await store.get("k")


async def test_scripts_survive_a_flush(store, raw):
    claim = await store.claim("k")
    raw.script_flush()
    await store.complete(claim, 1)
    assert 1 == await store.get("k")


async def test_run_runs_once_for_two_callers_and_gives_both_the_result(world, store):
    calls = []

    async def work(value):
        calls.append(value)
        await asyncio.sleep(0.1)
        return value * 2

    def blocking(value):
        return asyncio.run(work(value))

    function = work if world.kind == "async" else blocking
    results = await asyncio.gather(store.run("k", function, 21), store.run("k", function, 21))
    assert [42, 42] == results
    assert [21] == calls


async def test_run_releases_when_the_function_raises(world, store):
    async def fail():
        raise ValueError

    def blocking():
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  # ours alone
        await store.run("k", fail if world.kind == "async" else blocking)
    assert isinstance(await store.claim("k"), Claimed)


async def test_what_the_function_raised_is_not_masked_by_a_lost_claim(world, store, raw):
    def lose():
        raw.set(f"{world.namespace}:idem:1:{{k}}", "1 ended 1 1 1 0 ---- another x -\n", ex=60)
        raise ValueError("mine")

    async def alose():
        lose()

    with pytest.raises(ValueError, match="mine") as caught:
        await store.run("k", alose if world.kind == "async" else lose)
    assert isinstance(caught.value.__context__, ClaimLostError)


async def test_a_result_is_recorded_though_its_task_is_cancelled(world, store):
    if world.kind == "sync":
        pytest.skip("a blocking run cannot be cancelled")
    returning = asyncio.Event()

    async def work():
        returning.set()
        return 7

    running = asyncio.create_task(store.run("k", work))
    await returning.wait()  # its completion is under way now
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert 7 == await store.get("k")


async def test_run_says_why_it_cannot(store):
    await store.claim("k", fingerprint="a")
    with pytest.raises(InProgressError):
        await store.run("k", lambda: None, wait_seconds=0)
    with pytest.raises(IdempotencyMismatchError):
        await store.run("k", lambda: None, fingerprint="b")
