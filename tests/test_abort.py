"""The race between a loss and the end of a body: the exception lands in the body or nowhere."""

import queue
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qx_cache.lease import Lease, Renewal, boottime
from qx_cache_celery import LeaseLost, TaskLease
from qx_cache_celery.abort import ABORT_SIGNAL, aborted_when_lost

TIMES = 1000
SWITCH_SECONDS = 0.0005


def lease():
    return Lease(name="k", fence=1, ttl_seconds=60, sent_at=time.monotonic() + 1e6, renewal=Renewal(None, (), ()))


def race(times):
    """Lose a lease just as its body ends; how often that was told, and how often it landed elsewhere.

    The rival asks for the interpreter and gets it a switch interval later, at whatever bytecode this thread has
    come to. It asks a little later after each loss that was told and a little earlier after each that was not, so
    that on any machine the losses come where the body ends.
    """
    dice, told, astray, early = random.Random(7), 0, 0, SWITCH_SECONDS  # noqa: S311  # a repeatable race
    with Rival() as rival:
        for _ in range(times):
            held, end = lease(), time.perf_counter() + 4 * SWITCH_SECONDS
            rival.lose(held, end - early)
            step = dice.uniform(0, 4e-6)
            try:
                try:
                    with aborted_when_lost((held, None)):
                        spin(end, time.perf_counter)
                    early += step
                except LeaseLost:
                    told += 1
                    early -= step
                for _ in range(200):  # our own cleanup: nothing may land here
                    pass
            except LeaseLost:
                astray += 1
            rival.done()
    return told, astray


class Rival:
    """A thread that takes leases away, each at its time."""

    def __init__(self):
        self._work, self._done = queue.SimpleQueue(), queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._work.put(None)
        self._thread.join()

    def lose(self, held, when):
        self._work.put((held, when))

    def done(self):
        self._done.get()

    def _live(self):
        while (task := self._work.get()) is not None:
            held, when = task
            time.sleep(max(0, when - time.perf_counter()))
            held.lose("a test")
            self._done.put(None)


def spin(until, clock=time.monotonic):
    """Apart from the block: CPython 3.13 leaves the end of such a loop out of the block's exception table."""
    while clock() < until:
        pass


@pytest.fixture(autouse=True)
def threads_that_take_turns_untraced():
    """Coverage's tracer takes locks: an exception from outside can land in it, and leave them held."""
    interval, tracer = sys.getswitchinterval(), sys.gettrace()
    sys.setswitchinterval(SWITCH_SECONDS)
    sys.settrace(None)
    yield
    sys.settrace(tracer)
    sys.setswitchinterval(interval)
    signal.signal(ABORT_SIGNAL, signal.SIG_DFL)


def on_another_thread(function, argument):
    """What ``function`` returns there, untraced as here."""
    with ThreadPoolExecutor(1, initializer=sys.settrace, initargs=(None,)) as pool:
        return pool.submit(function, argument).result()


def test_on_the_main_thread_nothing_lands_outside_the_body():
    told, astray = race(TIMES)
    assert 0 == astray
    assert TIMES / 20 < told < TIMES


def test_on_another_thread_nothing_lands_outside_the_body():
    told, astray = on_another_thread(race, TIMES)
    assert 0 == astray
    assert TIMES / 20 < told < TIMES


class Steps:
    """A tracer of ours that stops a thread once, before step ``n`` of abort.py, and calls ``pause`` there."""

    def __init__(self, n, pause):
        self._left, self._pause = n, pause

    def __call__(self, frame, event, _):
        if not frame.f_code.co_filename.endswith("abort.py"):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            self._left -= 1
            if 0 == self._left:
                sys.settrace(None)
                self._pause()
        return self

    @property
    def came(self):
        return self._left <= 0


def ended(held, body):
    """True when the block was ended by the loss, False when it was not; anything else is astray."""
    try:
        try:
            with aborted_when_lost((held, None)):
                body()
        except LeaseLost:
            return True
        finally:
            sys.settrace(None)
        for _ in range(200):
            pass
    except LeaseLost:
        pytest.fail("the loss landed after the block")
    return False


def a_loss_at_step(n):
    """The body has ended, and at step ``n`` of our cleanup another thread takes the lease away."""
    held = lease()
    rival = threading.Thread(target=held.lose, args=("a test",))
    steps = Steps(n, lambda: (rival.start(), rival.join(0.02)))  # it may wait for a mutex that this thread holds
    told = ended(held, lambda: sys.settrace(steps))
    if rival.ident:
        rival.join()
    return steps.came, told


def an_end_at_step(n):
    """A lease is being taken away, and at step ``n`` of that the body ends."""
    held, reached, go_on = lease(), threading.Event(), threading.Event()
    steps = Steps(n, lambda: (reached.set(), go_on.wait(0.02)))

    def lose():
        sys.settrace(steps)
        held.lose("a test")
        sys.settrace(None)
        reached.set()

    rival = threading.Thread(target=lose)
    told = ended(held, lambda: (rival.start(), reached.wait()))
    go_on.set()
    rival.join()
    return steps.came, told


def at_every_step(interleave):
    found = []
    interleave(1_000_000)  # CPython 3.12 does not trace the opcodes of what it is the first to trace
    for n in range(1, 1000):
        came, told = interleave(n)
        if not came:
            return found
        found.append(told)
    raise AssertionError("no end of steps")


@pytest.mark.parametrize("interleave", [a_loss_at_step, an_end_at_step])
@pytest.mark.parametrize("place", ["the main thread", "another thread"])
def test_whichever_comes_between_two_steps_of_the_other(place, interleave):
    if place == "the main thread":
        found = at_every_step(interleave)
    else:
        found = on_another_thread(at_every_step, interleave)
    assert len(found) > 8
    assert {True, False} == set(found)


def test_a_sleep_on_the_main_thread_is_ended():
    held, began = lease(), time.monotonic()
    threading.Timer(0.1, held.lose, ("a test",)).start()
    with pytest.raises(LeaseLost), aborted_when_lost((held, None)):
        time.sleep(20)
    assert time.monotonic() - began < 5


def test_a_handler_of_the_programs_own_stays_and_a_loop_is_ended_all_the_same():
    struck = []
    signal.signal(ABORT_SIGNAL, lambda *_: struck.append(1))
    held, until = lease(), time.monotonic() + 20
    threading.Timer(0.1, held.lose, ("a test",)).start()
    with pytest.raises(LeaseLost), aborted_when_lost((held, None)):
        spin(until)
    signal.raise_signal(ABORT_SIGNAL)
    assert [1] == struck


def test_a_lease_that_is_lost_already_does_not_begin():
    held = lease()
    held.lose("a test")
    began = []
    with pytest.raises(LeaseLost), aborted_when_lost((held, None)):
        began.append(1)
    assert [] == began


@pytest.mark.parametrize("where", ["main", "other"])
def test_a_body_that_learned_of_it_by_asking_is_not_told_again_in_its_cleanup(where):
    def body():
        held = Lease(name="k", fence=1, ttl_seconds=0.2, sent_at=boottime() - 1, renewal=Renewal(None, (), ()))
        told = TaskLease([held])
        loser = threading.Thread(target=lambda: (time.sleep(0.1), held.unconfirmed(), held.lose("a test")))
        with aborted_when_lost((held, 0.0)) as stand_down:
            told.when_told(stand_down)
            with pytest.raises(LeaseLost, match="no renewal was confirmed"):
                told.ensure()
            loser.start()
            loser.join()  # the body's cleanup
            for _ in range(1000):
                pass
        return "cleaned up"

    if where == "main":
        assert "cleaned up" == body()
    else:
        with ThreadPoolExecutor(1) as pool:
            assert "cleaned up" == pool.submit(body).result(timeout=20)
