"""Looking at records and settling those whose run did not say how it ended: for operators, on both twins."""

import pytest

from qx_cache import Claimed, ClaimLostError, Corrupt, Done, Ended, Failed, Interrupted, Running


@pytest.fixture
def store(world):
    return world.make("IdempotencyStore", ttl_seconds=60, lease_seconds=30)


async def test_a_look_tells_what_a_claim_would_and_claims_nothing(store, world, raw):
    assert await store.look("k") is None
    claim = await store.claim("k", holder="a b")
    seen = await store.look("k")
    assert isinstance(seen, Running)
    assert (claim.fence, "a%20b") == (seen.fence, seen.holder)
    assert 29 < seen.remaining_seconds <= 30
    assert not raw.exists(f"{world.namespace}:idem:1:{{k}}:m")
    await store.abandon(claim)
    assert isinstance(await store.look("k"), Interrupted)
    over = await store.claim("k")
    await store.complete(over, ["result"] * 500)
    done = await store.look("k")
    assert isinstance(done, Done)
    assert (["result"] * 500, True) == (done.result, done.kept)
    await store.fail(await store.claim("f"), ValueError("no"))
    assert isinstance(await store.look("f"), Failed)
    await store.release(await store.claim("e"))
    assert isinstance(await store.look("e"), Ended)
    raw.set(f"{world.namespace}:idem:1:{{c}}", "nonsense", ex=60)
    assert isinstance(await store.look("c"), Corrupt)


async def test_a_lapsed_run_is_marked_unknown_and_then_resolved_by_who_saw_its_fence(store):
    claim = await store.claim("k", holder="a")
    assert not await store.mark_unknown("k", fence=claim.fence)  # it is alive
    assert not await store.resolve("k", 7, fence=claim.fence)
    await store.abandon(claim)
    assert not await store.mark_unknown("k", fence=claim.fence + 1)
    assert await store.mark_unknown("k", fence=claim.fence)
    assert isinstance(await store.claim("k", holder="b"), Interrupted)  # never taken over
    assert "unknown" == (await store.peek("k")).state
    assert not await store.resolve("k", 7, fence=claim.fence + 1)
    assert await store.resolve("k", 7, fence=claim.fence)
    assert await store.resolve("k", 7, fence=claim.fence)  # again, as after a lost reply
    outcome = await store.claim("k", holder="b")
    assert isinstance(outcome, Done)
    assert (7, "a", False) == (outcome.result, outcome.holder, outcome.finalised)


async def test_a_late_owner_cannot_overwrite_what_was_settled(store):
    claim = await store.claim("k")
    await store.abandon(claim)
    await store.resolve("k", "settled", fence=claim.fence)
    await store.complete(claim, "late")  # its own record, and done already: taken for a repetition
    assert "settled" == await store.get("k")
    with pytest.raises(ClaimLostError):
        await store.fail(claim, ValueError())


async def test_a_run_that_is_over_can_be_forgotten_and_then_begins_anew(store):
    claim = await store.claim("k")
    assert not await store.forget("k", fence=claim.fence)
    await store.complete(claim, 1)
    assert not await store.forget("k", fence=claim.fence + 1)
    assert await store.forget("k", fence=claim.fence)
    assert not await store.forget("k", fence=claim.fence)
    again = await store.claim("k")
    assert isinstance(again, Claimed)
    assert again.fence > claim.fence


async def test_an_unknown_run_wakes_who_waits_for_it(store, world):
    import asyncio

    claim = await store.claim("k")
    waiting = asyncio.create_task(store.wait("k", "nothing", wait_seconds=10))
    while not await world.perform(world.records(store).peek("k")):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    await store.abandon(claim)
    assert "nothing" == await waiting
