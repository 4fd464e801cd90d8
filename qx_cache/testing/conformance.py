"""The conformance suite: what the package promises of a server, asked of a real one, by both twins.

``python -m qx_cache.testing URL`` runs it; each check is one sentence.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Thread
from typing import Any

import pytest

import qx_cache
from qx_cache import (
    Claimed,
    ClaimLostError,
    Done,
    Ended,
    Failed,
    IdempotencyMismatchError,
    Interrupted,
    LockNotHeldError,
    Mismatch,
    Running,
    StoreRefusedError,
    create_client,
    create_sync_client,
)
from qx_cache._call import command
from qx_cache._run import arun, run

SECONDS = 10.0
MANY = 250


class _Blocking:
    """An async object whose methods block, so that one check serves both twins."""

    def __init__(self, kit: "Kit", awaited: Any) -> None:
        self._kit, self._awaited = kit, awaited

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._awaited, name)
        return self._kit.blocking(value) if inspect.ismethod(value) else value


class Kit:
    """Makes the objects of one twin, all blocking."""

    def __init__(self, url: str, namespace: str, twin: str) -> None:
        self._async, self._namespace, self._pool = twin == "async", namespace, ThreadPoolExecutor(20)
        self._loop = asyncio.new_event_loop()
        Thread(target=self._loop.run_forever, daemon=True).start()
        self.client: Any = self.wait(create_client(url)) if self._async else create_sync_client(url)

    def close(self) -> None:
        if self._async:
            self.wait(self.client.aclose())
        else:
            self.client.close()
        self._pool.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def blocking(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            async def made() -> Any:
                result = function(*args, **kwargs)
                if inspect.isasyncgen(result):
                    return [item async for item in result]
                return await result if inspect.isawaitable(result) else result

            return self.wait(made())

        return call

    def make(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if not self._async:
            return getattr(qx_cache, f"Sync{name}")(self.client, *args, namespace=self._namespace, **kwargs)
        kind = getattr(qx_cache, name)
        return _Blocking(self, self.blocking(kind)(self.client, *args, namespace=self._namespace, **kwargs))

    def store(self, **kwargs: Any) -> Any:
        return self.make("IdempotencyStore", **{"ttl_seconds": 60, "lease_seconds": 5, **kwargs})

    def lock(self, name: str = "lock", **kwargs: Any) -> Any:
        return self.make("DistributedLock", name, **{"ttl_seconds": 5, **kwargs})

    def function(self, value: Any) -> Callable[..., Any]:
        async def awaited() -> Any:
            return value

        return awaited if self._async else lambda: value

    def perform(self, *words: str) -> Any:
        call = command(lambda reply: reply, *words, binary=False)
        return self.wait(arun(self.client, call)) if self._async else run(self.client, call)

    def diagnose(self) -> list[qx_cache.Finding]:
        found: list[qx_cache.Finding] = (
            self.wait(qx_cache.diagnose(self.client)) if self._async else qx_cache.diagnose_sync(self.client)
        )
        return found

    def beside(self, function: Callable[[], Any]) -> "Future[Any]":
        return self._pool.submit(function)


@pytest.fixture(params=["async", "sync"])
def kit(request: pytest.FixtureRequest, qx_redis_url: str, qx_namespace: str) -> Iterator[Kit]:
    """One twin on the server under test."""
    made = Kit(qx_redis_url, qx_namespace, request.param)
    yield made
    made.close()


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_the_server_is_fit(kit: Kit) -> None:
    errors = [str(finding) for finding in kit.diagnose() if finding.severity == "error"]
    assert not errors


def test_one_of_many_claims_wins_and_the_others_get_its_result(kit: Kit) -> None:
    store = kit.store()
    claims = list(kit._pool.map(lambda _: store.claim("k"), range(10)))
    (winner,) = [claim for claim in claims if isinstance(claim, Claimed)]
    assert all(isinstance(claim, Claimed | Running) for claim in claims)
    assert store.complete(winner, {"paid": 1})
    outcome = store.claim("k")
    assert isinstance(outcome, Done)
    assert outcome.result == store.get("k") == {"paid": 1}


def test_a_lapsed_claim_is_taken_over_and_its_late_owner_records_nothing(kit: Kit) -> None:
    store = kit.store(lease_seconds=0.2)
    late = store.claim("k", holder="a")
    over = store.claim("k", holder="b", wait_seconds=SECONDS)
    assert isinstance(over, Claimed)
    assert (over.takeover, over.attempt) == (True, 2)
    assert over.fence > late.fence
    with pytest.raises(ClaimLostError):
        store.complete(late, "late")
    store.complete(over, "kept")
    assert store.get("k") == "kept"


def test_a_lapsed_claim_can_be_reported_instead(kit: Kit) -> None:
    store = kit.store()
    claim = store.claim("k")
    assert store.abandon(claim)
    assert isinstance(store.claim("k", takeover=False), Interrupted)


def test_ends_without_a_result(kit: Kit) -> None:
    store = kit.store()
    store.fail(store.claim("failed"), ValueError("no"))
    assert isinstance(store.claim("failed"), Failed)
    store.release(store.claim("ended", holder="a"))
    assert isinstance(store.claim("ended", holder="a", redelivery=True), Ended)
    assert isinstance(store.claim("ended", holder="b"), Claimed)


def test_a_completion_may_be_sent_again(kit: Kit) -> None:
    store = kit.store()
    claim = store.claim("k")
    assert store.complete(claim, 1)
    assert store.complete(claim, 1)


def test_another_request_under_the_same_key_is_refused(kit: Kit) -> None:
    store = kit.store()
    store.run("k", kit.function(7), fingerprint="a")
    assert isinstance(store.claim("k", fingerprint="b"), Mismatch)
    with pytest.raises(IdempotencyMismatchError):
        store.run("k", kit.function(8), fingerprint="b")
    assert store.run("k", kit.function(8), fingerprint="a") == 7


def test_who_waits_for_a_result_is_woken(kit: Kit) -> None:
    store = kit.store(lease_seconds=30)
    claim = store.claim("k")
    waiting = [kit.beside(lambda: store.wait("k", wait_seconds=SECONDS)) for _ in range(5)]
    time.sleep(0.2)
    began = time.monotonic()
    store.complete(claim, "done")
    assert {future.result(SECONDS) for future in waiting} == {"done"}
    assert time.monotonic() - began < 2


def test_a_large_result_comes_back_and_one_above_the_cap_is_said_to_be_not_kept(kit: Kit) -> None:
    store = kit.store(max_result_bytes=200_000)
    large = ["é" * 1000] * 50
    store.complete(store.claim("large"), large)
    assert store.get("large") == large
    assert store.complete(store.claim("over"), "x" * 300_000) is False
    outcome = store.claim("over")
    assert isinstance(outcome, Done)
    assert not outcome.kept


def test_the_first_of_two_results_is_kept(kit: Kit) -> None:
    store = kit.store()
    assert store.set("k", None)
    assert not store.set("k", 2)
    assert store.get("k", "nothing") is None


def test_records_can_be_listed(kit: Kit) -> None:
    store = kit.store()
    for i in range(20):
        store.claim(f"k{i}", holder=f"task-{i}")
    store.set("done", 1)
    assert {info.key for info in store.scan(state="running")} == {f"k{i}" for i in range(20)}
    assert store.peek("k3").holder == "task-3"


def test_a_lock_has_one_holder_and_a_rising_fence(kit: Kit) -> None:
    first, second = kit.lock(holder="a"), kit.lock(holder="b")
    lease = first.acquire()
    assert second.try_acquire() is None
    assert first.info().holder == "a"
    first.release()
    assert second.acquire(wait_seconds=SECONDS).fence > lease.fence
    second.release()


def test_a_lock_goes_to_who_has_waited_longest(kit: Kit) -> None:
    held, order = kit.lock(), []
    held.acquire()

    def work(name: str) -> None:
        lock = kit.lock(holder=name)
        lock.acquire(wait_seconds=SECONDS)
        order.append(name)
        lock.release()

    waiting = []
    for name in "abc":
        waiting.append(kit.beside(partial(work, name)))
        _until(lambda: held.info().waiters == len(waiting))
        time.sleep(0.1)  # until it waits at the server as well
    began = time.monotonic()
    held.release()
    for future in waiting:
        future.result(SECONDS)
    assert order == ["a", "b", "c"]
    assert time.monotonic() - began < 2


def test_a_lost_lock_is_told_and_is_not_taken_from_its_new_holder(kit: Kit) -> None:
    late, next_one = kit.lock(ttl_seconds=0.2), kit.lock()
    lease = late.acquire()
    next_one.acquire(wait_seconds=SECONDS)
    assert not lease.valid()
    with pytest.raises(LockNotHeldError):
        late.release()
    next_one.release()


def test_an_operator_can_free_a_lock(kit: Kit) -> None:
    held = kit.lock()
    fence = held.acquire().fence
    assert not kit.lock().release_lock(fence + 1)
    assert kit.lock().release_lock(fence)
    with pytest.raises(LockNotHeldError):
        held.release()


def test_a_lock_released_early_is_kept_for_its_shortest_time(kit: Kit) -> None:
    held = kit.lock(min_hold_seconds=0.5)
    began = time.monotonic()
    held.acquire()
    held.release()
    assert kit.lock().try_acquire() is None
    kit.lock().acquire(wait_seconds=SECONDS)
    assert time.monotonic() - began > 0.45


def test_a_heartbeat_keeps_many_leases_alive(kit: Kit) -> None:
    locks = [kit.lock(f"lock-{i}", ttl_seconds=1.5, auto_renew=True) for i in range(MANY)]
    leases = [lock.acquire() for lock in locks]
    if kit._async:
        time.sleep(3)
    else:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            sum(range(1000))  # a busy main thread
    assert all(lease.valid() for lease in leases)
    for lock in locks:
        lock.release()


def test_scripts_that_the_server_forgot_are_sent_again(kit: Kit) -> None:
    held = kit.lock(ttl_seconds=1, auto_renew=True)
    lease = held.acquire()
    try:
        kit.perform("SCRIPT FLUSH")
    except StoreRefusedError as error:
        pytest.skip(f"the server does not let us: {error.reason}")
    store = kit.store()
    store.complete(store.claim("k"), 1)
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        assert lease.valid()
        time.sleep(0.05)
    held.release()


def test_cached_values_keep_their_type(kit: Kit) -> None:
    cache = kit.make("Cache", ttl_seconds=60)
    cache.set("k", {"a": [1, None]})
    assert cache.get("k", dict[str, list[int | None]]) == {"a": [1, None]}
    assert cache.exists("k")
    assert cache.delete("k")
