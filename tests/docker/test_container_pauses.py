"""Workers that go on after the world has gone on without them."""

import time

import pytest
from yard import host

pytestmark = pytest.mark.docker


def test_what_a_frozen_worker_wanted_to_do_is_refused_once_another_has_taken_over(yard):
    task = yard.publish("stubborn", "frozen", 1.0)
    victim, other = yard.runs_in("frozen")
    with yard.frozen(victim):
        assert [f"frozen by {host(other)}"] == yard.results([task])
    yard.until(lambda: yard.journal("refused", order="frozen"), what="the effect to be refused")

    assert [host(victim)] == [row["host"] for row in yard.journal("refused", order="frozen")]
    assert [host(other)] == [row["host"] for row in yard.journal("effect", order="frozen")]
    assert [f"frozen by {host(other)}"] == yard.results([task])


def test_a_worker_that_is_cut_off_leaves_its_task_to_the_other_and_then_goes_on_with_new_ones(yard):
    task = yard.publish("capture", "cut", 3.0)
    victim, other = yard.runs_in("cut")
    with yard.cut_off(victim):
        assert [f"cut by {host(other)}"] == yard.results([task])
        yard.stop(other)

    def answers():
        """Asked more than once: kombu's Redis loses what it hands to a connection that nobody reads any more."""
        yard.publish("capture", f"after {time.monotonic()}")
        return yard.journal("effect", host=host(victim))

    yard.until(answers, every=1.0, what="the worker that was cut off to go on")
    assert [f"cut by {host(other)}"] == yard.results([task])
    assert [host(other)] == [row["host"] for row in yard.journal("effect", order="cut")]
