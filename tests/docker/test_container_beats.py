"""Two beats in containers of their own."""

import pytest
from pytest_celery import CeleryTestNode
from yard import host

pytestmark = pytest.mark.docker


@pytest.fixture
def beats(yard, one_beat, other_beat):
    return [CeleryTestNode(one_beat), CeleryTestNode(other_beat)]


def dues(yard):
    """When the ticks were due that have run."""
    return [float(row["tick"].rsplit(" ", 1)[1]) for row in yard.journal("tick")]


def test_ticks_go_on_when_the_leading_beat_is_killed_and_none_comes_twice(yard, beats):
    yard.until(lambda: len(dues(yard)) > 3, what="some ticks")
    leader = next(beat for beat in beats if host(beat) == yard.journal("elected")[-1]["host"])
    killed_at = yard.kill(leader)
    yard.until(lambda: sum(due > killed_at for due in dues(yard)) > 5, what="ticks of another leader")

    assert [host(beat) for beat in sorted(beats, key=lambda beat: beat is not leader)] == [
        row["host"] for row in yard.journal("elected")
    ]
    run = dues(yard)
    assert len(set(run)) == len(run)
