"""The record against a dictionary model, on the real server, for both twins."""

import asyncio

import redis
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from qx_cache import Claimed, ClaimLostError, Done, Ended, IdempotencyStore, Running, SyncIdempotencyStore

HOLDERS = st.sampled_from(["t1", "t2", "t3"])


class Machine(RuleBasedStateMachine):
    """One key; ``model`` is what its record should say, ``claims`` all that were ever handed out."""

    url = namespace = ""
    number = 0

    def __init__(self):
        super().__init__()
        Machine.number += 1
        self.key = f"k{Machine.number}"
        self.model = None
        self.claims = []
        self.highest_fence = 0
        self.open()

    def open(self):
        raise NotImplementedError

    def do(self, name, *args, **kwargs):
        raise NotImplementedError

    @rule(holder=HOLDERS, retries=st.integers(0, 2), redelivery=st.booleans())
    def claim(self, holder, retries, redelivery):
        outcome = self.do("claim", self.key, holder=holder, retries=retries, redelivery=redelivery)
        model = self.model
        same = model is not None and model["holder"] == holder
        if same and redelivery and retries < model["retries"]:
            assert isinstance(outcome, Ended)
        elif model is not None and model["state"] == "done":
            assert isinstance(outcome, Done)
            assert model["result"] == outcome.result
        elif model is not None and model["state"] == "running":
            assert isinstance(outcome, Running)
            assert model["claim"].fence == outcome.fence
        elif same and model["state"] == "ended" and redelivery and retries <= model["retries"]:
            assert isinstance(outcome, Ended)
        else:
            self._claimed(outcome, holder, retries, same)

    def _claimed(self, outcome, holder, retries, same):
        assert isinstance(outcome, Claimed)
        lapsed = self.model is not None and self.model["state"] == "lapsed"
        lapsed = lapsed and not (same and retries > self.model["retries"])  # its retry has come
        assert lapsed == outcome.takeover
        assert (self.model["claim"].attempt + 1 if lapsed else 1) == outcome.attempt
        assert outcome.fence > self.highest_fence
        self.highest_fence = outcome.fence
        kept = max(retries, self.model["retries"]) if same else retries
        self.model = {"state": "running", "holder": holder, "retries": kept, "claim": outcome}
        self.claims.append(outcome)

    @rule(data=st.data(), result=st.integers())
    def complete(self, data, result):
        self._finish(data, "complete", "done", result)

    @rule(data=st.data())
    def release(self, data):
        self._finish(data, "release", "ended")

    def _finish(self, data, name, state, *args):
        if not self.claims:
            return
        claim = data.draw(st.sampled_from(self.claims))
        model = self.model
        mine = model is None or (model["claim"] is claim and model["state"] in {"running", "lapsed", state})
        try:
            self.do(name, claim, *args)
        except ClaimLostError:
            assert not mine
            return
        assert mine
        if model is None or model["state"] != state:
            holder, retries = claim.holder, claim.retries
            self.model = {"state": state, "holder": holder, "retries": retries, "claim": claim, "result": args[:1]}
            self.model["result"] = args[0] if args else None

    @rule(data=st.data())
    def abandon(self, data):
        if self.claims:
            claim = data.draw(st.sampled_from(self.claims))
            live = self.model is not None and self.model["claim"] is claim and self.model["state"] == "running"
            if self.do("abandon", claim) and live:
                self.model = {**self.model, "state": "lapsed"}

    @rule()
    def vanish(self):
        self.raw.delete(f"{self.namespace}:idem:1:{{{self.key}}}")
        self.model = None

    @rule(value=st.integers())
    def put(self, value):
        free = self.model is None or self.model["state"] in {"ended", "lapsed"}
        assert free == self.do("set", self.key, value)
        if free:
            self.model = {"state": "done", "holder": "", "retries": 0, "claim": None, "result": value}

    @invariant()
    def get_agrees(self):
        done = self.model is not None and self.model["state"] == "done"
        assert (self.model["result"] if done else "none") == self.do("get", self.key, "none")


class SyncMachine(Machine):
    def open(self):
        self.raw = redis.Redis.from_url(self.url)
        self.store = SyncIdempotencyStore(self.raw, namespace=self.namespace, ttl_seconds=60, lease_seconds=60)

    def do(self, name, *args, **kwargs):
        return getattr(self.store, name)(*args, **kwargs)

    def teardown(self):
        self.raw.close()


class AsyncMachine(Machine):
    def open(self):
        self.raw = redis.Redis.from_url(self.url)
        self.runner = asyncio.Runner()
        self.client = redis.asyncio.Redis.from_url(self.url)
        self.store = IdempotencyStore(self.client, namespace=self.namespace, ttl_seconds=60, lease_seconds=60)

    def do(self, name, *args, **kwargs):
        return self.runner.run(getattr(self.store, name)(*args, **kwargs))

    def teardown(self):
        self.runner.run(self.client.aclose())
        self.runner.close()
        self.raw.close()


def check(machine, url, namespace):
    machine.url, machine.namespace = url, namespace
    options = settings(
        max_examples=60,
        stateful_step_count=25,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=options)


def test_the_blocking_store_agrees_with_the_model(qx_redis_url, qx_namespace):
    check(SyncMachine, qx_redis_url, qx_namespace)


def test_the_async_store_agrees_with_the_model(qx_redis_url, qx_namespace):
    check(AsyncMachine, qx_redis_url, qx_namespace)
