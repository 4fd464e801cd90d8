"""The lock's scripts against a model of holder and queue, on the real server, for both twins."""

import asyncio

import redis
import redis.asyncio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from qx_cache import Acquired, LockNotHeldError, Taken, _locks
from qx_cache._run import arun, run
from qx_cache._schedule import chunk_call

WHO = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Four holders of one lock.

    ``holder`` has the lock, ``granted`` is served next and has popped the baton already, ``queue`` waits at the
    server in this order, ``stale`` believe that they hold what they have lost.
    """

    url = namespace = ""
    number = 0

    def __init__(self):
        super().__init__()
        Machine.number += 1
        self.name = f"l{Machine.number}"
        options = {"ttl_seconds": 60, "fair": True, "min_hold_seconds": 0, "guarded": None, "owner_prefix": ""}
        self.locks = [
            _locks.LockCalls(self.name, namespace=self.namespace, holder=f"h{i}", **options) for i in range(4)
        ]
        self.holder = self.granted = None
        self.grant = ""
        self.queue, self.stale = [], set()
        self.highest_fence = 0
        self.raw = redis.Redis.from_url(self.url)
        self.open()

    def open(self):
        raise NotImplementedError

    def do(self, call):
        raise NotImplementedError

    def idle(self, who):
        return who != self.holder and who not in self.queue and who not in self.stale

    def free(self):
        return self.holder is None and self.granted is None

    def acquired(self, who, outcome):
        assert isinstance(outcome, Acquired)
        assert outcome.lease.fence > self.highest_fence
        self.highest_fence = outcome.lease.fence
        self.holder = who

    def hand_over(self):
        """What the server does for who waits longest there: it pops the baton."""
        popped = self.raw.lpop(f"{self.namespace}:lock:1:{{{self.name}}}:b")
        assert (popped is not None) == bool(self.queue)
        if popped is not None:
            self.granted, self.grant = self.queue[0], popped.decode()

    @rule(who=WHO, waiting=st.booleans())
    def acquire(self, who, waiting):
        if not self.idle(who):
            return
        self.locks[who].begin()
        outcome = self.do(self.locks[who].ask(waiting=waiting))
        if self.free():
            self.acquired(who, outcome)
        else:
            assert isinstance(outcome, Taken)
            if waiting:
                self.queue.append(who)
            else:
                self.locks[who].forget()

    @precondition(lambda self: self.granted is not None)
    @rule()
    def take_the_turn(self):
        who, self.granted = self.granted, None
        self.queue.remove(who)
        self.acquired(who, self.do(self.locks[who].ask(waiting=True, grant=self.grant)))

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def wait_no_more(self, data):
        who = data.draw(st.sampled_from(self.queue))
        self.queue.remove(who)
        self.do(self.locks[who].leave())
        if who == self.granted:
            self.granted = None
            self.hand_over()
        elif self.granted is not None:  # the baton is pushed again, to be popped in vain
            self.raw.delete(f"{self.namespace}:lock:1:{{{self.name}}}:b")

    @rule(who=WHO)
    def release(self, who):
        if who == self.holder:
            self.do(self.locks[who].release(ended=True))
            self.holder = None
            self.hand_over()
        elif who in self.stale:
            self.stale.remove(who)
            self.refused(self.locks[who].release(ended=True))

    @rule(who=WHO)
    def release_after_a_lost_reply(self, who):
        if who == self.holder:
            call = self.locks[who].release(ended=True)
            self.raw.execute_command(*call.again)  # the reply is lost
            self.holder = None
            self.hand_over()
            self.do(call)

    @rule(who=WHO)
    def acquire_after_a_lost_reply(self, who):
        if self.idle(who) and self.free():
            self.locks[who].begin()
            call = self.locks[who].ask()
            self.raw.execute_command(*call.again)
            self.acquired(who, self.do(call))

    @rule(who=WHO)
    def extend(self, who):
        if who == self.holder:
            self.do(self.locks[who].extend(60))
        elif who in self.stale:
            self.refused(self.locks[who].extend(60))

    @rule(who=WHO)
    def renew(self, who):
        if who == self.holder or who in self.stale:
            (answer,) = self.do(chunk_call([self.locks[who].held()]))
            assert ("renewed" if who == self.holder else "lost") == answer

    @precondition(lambda self: self.holder is not None)
    @rule()
    def lapse(self):
        self.raw.delete(f"{self.namespace}:lock:1:{{{self.name}}}")
        self.stale.add(self.holder)
        self.holder = None

    @rule()
    def watch(self):
        if self.queue:
            (left,) = self.do(chunk_call([self.locks[self.queue[-1]].watch()]))
            assert int(left) > 0
            if self.free():
                self.hand_over()

    @rule(right=st.booleans())
    def free_by_an_operator(self, right):
        held = self.holder is not None
        freed = self.do(self.locks[0].free(self.highest_fence + (not right)))
        assert (held and right) == freed
        if freed:
            self.stale.add(self.holder)
            self.holder = None
            self.hand_over()

    def refused(self, call):
        try:
            self.do(call)
        except LockNotHeldError:
            return
        raise AssertionError("a lock that was lost was not told as lost")

    @invariant()
    def info_agrees(self):
        info = self.do(self.locks[0].info())
        expected = "held" if self.holder is not None else "reserved" if self.granted is not None else "free"
        assert expected == info.state
        assert len(self.queue) == info.waiters
        if self.holder is not None:
            assert (f"h{self.holder}", self.highest_fence) == (info.holder, info.fence)

    @invariant()
    def every_key_ends(self):
        keys = self.raw.keys(f"{self.namespace}:lock:1:{{{self.name}}}*")
        assert all(self.raw.pttl(key) != -1 for key in keys)


class SyncMachine(Machine):
    def open(self):
        pass

    def do(self, call):
        return run(self.raw, call)

    def teardown(self):
        self.raw.close()


class AsyncMachine(Machine):
    def open(self):
        self.runner = asyncio.Runner()
        self.client = redis.asyncio.Redis.from_url(self.url)

    def do(self, call):
        return self.runner.run(arun(self.client, call))

    def teardown(self):
        self.runner.run(self.client.aclose())
        self.runner.close()
        self.raw.close()


def check(machine, url, namespace, monkeypatch):
    monkeypatch.setattr(_locks, "RESERVE_MS", 60_000)  # a slow machine is no part of the model
    monkeypatch.setattr(_locks, "WAIT_MS", 60_000)
    machine.url, machine.namespace = url, namespace
    options = settings(
        max_examples=120,
        stateful_step_count=40,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=options)


def test_the_blocking_lock_agrees_with_the_model(qx_redis_url, qx_namespace, monkeypatch):
    check(SyncMachine, qx_redis_url, qx_namespace, monkeypatch)


def test_the_async_lock_agrees_with_the_model(qx_redis_url, qx_namespace, monkeypatch):
    check(AsyncMachine, qx_redis_url, qx_namespace, monkeypatch)
