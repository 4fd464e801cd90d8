"""What is decided at publication, on both twins: unique work, and the newest work."""

import pytest

from qx_cache import Acquired, AlreadyPublished, GuardedRun, RunEnded, Superseded, Taken

LIFE = 60


@pytest.fixture
def publishing(world):
    return world.make("Publishing", claim_seconds=5)


@pytest.fixture
def lock(world):
    def make(run_id, **run):
        told = {"retries": 0, "redelivery": False, "remember_seconds": 60, **run}
        return world.make("DistributedLock", "n", ttl_seconds=5, holder=run_id, guarded=GuardedRun(run_id, **told))

    return make


async def test_published_work_holds_up_others_until_it_begins(publishing, lock):
    assert await publishing.claim("n", "a") is None
    assert await publishing.confirm("n", "a", life_seconds=LIFE)
    assert AlreadyPublished("a", running=False) == await publishing.claim("n", "b")
    assert "a" == (await lock("z").info()).queued
    held = lock("a", queued=True)
    assert isinstance(await held.attempt(), Acquired)
    assert "" == (await held.info()).queued
    assert await publishing.claim("n", "b") is None
    await held.release()


async def test_work_that_runs_may_count_as_well(publishing, lock):
    held = lock("a")
    await held.attempt()
    assert AlreadyPublished("a", running=True) == await publishing.claim("n", "b", or_running=True)
    assert await publishing.claim("n", "a", or_running=True) is None
    await held.release()
    assert await publishing.claim("n", "b", or_running=True) is None


async def test_a_claim_that_was_never_confirmed_holds_up_nobody(publishing):
    await publishing.claim("n", "died before it published")
    assert await publishing.claim("n", "b") is None
    assert not await publishing.confirm("n", "died before it published", life_seconds=LIFE)
    assert await publishing.confirm("n", "b", life_seconds=LIFE)


async def test_work_that_began_before_it_was_confirmed_is_not_taken_for_queued(publishing, lock):
    await publishing.claim("n", "a")
    held = lock("a", queued=True)
    await held.attempt()
    assert not await publishing.confirm("n", "a", life_seconds=LIFE)
    await held.release()
    assert await publishing.claim("n", "b") is None


async def test_the_same_work_is_not_published_twice_and_only_its_own_claim_is_freed(publishing):
    await publishing.claim("n", "a")
    await publishing.confirm("n", "a", life_seconds=LIFE)
    assert AlreadyPublished("a", running=False) == await publishing.claim("n", "a")  # it was published already
    assert AlreadyPublished("a", running=False) == await publishing.claim("n", "b")
    assert not await publishing.free("n", "b")
    assert await publishing.free("n", "a")
    assert not await publishing.free("n", "a")
    assert await publishing.claim("n", "b") is None


async def test_a_refused_run_ends_its_claim_only_where_that_is_its_end(publishing, lock):
    await publishing.claim("n", "a")
    await publishing.confirm("n", "a", life_seconds=LIFE)
    other = lock("z")
    await other.attempt()
    assert isinstance(await lock("a", queued=True).attempt(), Taken)  # put off
    assert "a" == (await other.info()).queued
    assert isinstance(await lock("a", queued=True, refusal_ends=True).attempt(), Taken)
    assert "" == (await other.info()).queued
    await other.release()


async def test_numbers_rise_even_when_the_last_one_is_forgotten(publishing, world, raw):
    numbers = []
    for _ in range(3):
        numbers.append(await publishing.next_number("n"))
        raw.delete(f"{world.namespace}:lock:1:{{n}}:f")
    numbers += [await publishing.next_number("n") for _ in range(3)]
    assert sorted(set(numbers)) == numbers


async def test_older_work_is_superseded_once_newer_work_was_published(publishing, lock):
    older, newer = await publishing.next_number("n"), await publishing.next_number("n")
    held = lock("a", number=older)
    assert isinstance(await held.attempt(), Acquired)  # the newer one was not published yet
    await held.release()
    assert newer == await publishing.published("n", newer)
    assert newer == await publishing.published("n", older)
    assert Superseded("a", newer) == await lock("b", number=older).attempt()
    newest = lock("c", number=newer)
    assert isinstance(await newest.attempt(), Acquired)
    await newest.release()


async def test_what_was_delivered_supersedes_though_its_publisher_died_before_it_said_so(publishing, lock):
    older, newer = await publishing.next_number("n"), await publishing.next_number("n")
    await publishing.published("n", older)
    held = lock("newer", number=newer)
    assert isinstance(await held.attempt(), Acquired)
    await held.release()
    assert Superseded("newer", newer) == await lock("older", number=older).attempt()


async def test_a_run_that_has_ended_or_is_superseded_leaves_no_claim(publishing, lock):
    number = await publishing.next_number("n")
    held = lock("a", number=number)
    await held.attempt()
    await held.release()
    for run in ({"redelivery": True}, {"number": number - 1}):
        await publishing.claim("n", "a")
        await publishing.confirm("n", "a", life_seconds=LIFE)
        assert isinstance(await lock("a", queued=True, **run).attempt(), RunEnded | Superseded)
        assert await publishing.claim("n", "b") is None


async def test_a_second_confirmation_shortens_nothing(publishing, world, raw):
    await publishing.claim("n", "a")
    await publishing.confirm("n", "a", life_seconds=LIFE)
    await publishing.confirm("n", "a", life_seconds=1)
    assert 50_000 < raw.pttl(f"{world.namespace}:lock:1:{{n}}:q")


async def test_a_run_under_way_or_ended_is_not_superseded(publishing, lock):
    older = await publishing.next_number("n")
    held = lock("a", number=older)
    await held.attempt()
    await publishing.published("n", await publishing.next_number("n"))
    again = {"number": older, "redelivery": True}
    assert isinstance(await lock("a", **again).attempt(), Taken)
    await held.release()
    assert isinstance(await lock("a", **again).attempt(), RunEnded)


async def test_a_run_whose_end_something_else_remembers_leaves_no_trace_of_it(lock, world, raw):
    held = lock("a", queued=True, remember_seconds=0, redelivery=True)
    await held.attempt()
    await held.release()
    assert 0 == raw.exists(f"{world.namespace}:lock:1:{{n}}:e:a")
