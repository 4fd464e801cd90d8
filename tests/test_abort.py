"""The race between a loss and the end of a body: the exception lands in the body or nowhere."""

import random
import signal
import sys
import threading
import time

import pytest

from qx_cache.lease import Lease, Renewal
from qx_cache_celery import LeaseLost
from qx_cache_celery.abort import ABORT_SIGNAL, aborted_when_lost

TIMES = 1000


def lease():
    return Lease(name="k", fence=1, ttl_seconds=60, sent_at=time.monotonic() + 1e6, renewal=Renewal(None, (), ()))


def race(times):
    """Lose a lease just as its body ends; how often that was told, and how often it landed elsewhere."""
    dice, told, astray = random.Random(7), 0, 0  # noqa: S311  # a repeatable race
    for _ in range(times):
        held, end = lease(), time.perf_counter() + 0.001
        rival = threading.Thread(target=lose, args=(held, end + dice.uniform(-0.0001, 0.0001)))
        rival.start()
        try:
            try:
                with aborted_when_lost(held):
                    while time.perf_counter() < end:
                        pass
            except LeaseLost:
                told += 1
            for _ in range(200):  # our own cleanup: nothing may land here
                pass
            while rival.is_alive():
                pass
        except LeaseLost:
            astray += 1
        rival.join()
    return told, astray


def lose(held, when):
    while time.perf_counter() < when:
        pass
    held.lose("a test")


def spin(until):
    while time.monotonic() < until:
        pass


@pytest.fixture(autouse=True)
def threads_that_take_turns_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)
    signal.signal(ABORT_SIGNAL, signal.SIG_DFL)


def test_on_the_main_thread_nothing_lands_outside_the_body():
    told, astray = race(TIMES)
    assert 0 == astray
    assert TIMES / 20 < told < TIMES


def test_on_another_thread_nothing_lands_outside_the_body():
    found = []
    thread = threading.Thread(target=lambda: found.append(race(TIMES)))
    thread.start()
    thread.join()
    ((told, astray),) = found
    assert 0 == astray
    assert TIMES / 20 < told < TIMES


def test_a_sleep_on_the_main_thread_is_ended():
    held, began = lease(), time.monotonic()
    threading.Timer(0.1, held.lose, ("a test",)).start()
    with pytest.raises(LeaseLost), aborted_when_lost(held):
        time.sleep(20)
    assert time.monotonic() - began < 5


def test_a_handler_of_the_programs_own_stays_and_a_loop_is_ended_all_the_same():
    struck = []
    signal.signal(ABORT_SIGNAL, lambda *_: struck.append(1))
    held, until = lease(), time.monotonic() + 20
    threading.Timer(0.1, held.lose, ("a test",)).start()
    with pytest.raises(LeaseLost), aborted_when_lost(held):
        spin(until)
    signal.raise_signal(ABORT_SIGNAL)
    assert [1] == struck


def test_a_lease_that_is_lost_already_does_not_begin():
    held = lease()
    held.lose("a test")
    began = []
    with pytest.raises(LeaseLost), aborted_when_lost(held):
        began.append(1)
    assert [] == began
