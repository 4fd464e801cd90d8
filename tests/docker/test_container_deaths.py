"""Workers that are killed with the container that they are in."""

from collections import Counter

import pytest
from yard import host

pytestmark = pytest.mark.docker


def test_a_task_published_twice_under_one_key_runs_once_and_both_get_its_result(yard):
    first = yard.publish("capture", "twice", 1.0)
    yard.runs_in("twice")
    second = yard.publish("capture", "twice", 1.0)

    (here,) = {row["host"] for row in yard.journal("start", order="twice")}
    assert [f"twice by {here}"] * 2 == yard.results([first, second])
    assert 1 == len(yard.journal("start", order="twice"))
    assert 1 == len(yard.journal("effect", order="twice"))


def test_the_task_of_a_killed_worker_runs_again_on_the_other_and_is_recorded_once(yard):
    task = yard.publish("capture", "killed", 1.5)
    victim, other = yard.runs_in("killed")
    yard.kill(victim)

    assert [f"killed by {host(other)}"] == yard.results([task])
    assert [host(victim), host(other)] == [row["host"] for row in yard.journal("start", order="killed")]
    again = yard.publish("capture", "killed", 1.5)
    assert [f"killed by {host(other)}"] == yard.results([again])
    assert [host(other)] == [row["host"] for row in yard.journal("effect", order="killed")]


def test_a_singleton_task_never_overlaps_while_a_worker_is_killed(yard):
    orders = [f"count-{number}" for number in range(6)]
    tasks = [yard.publish("count_stock", order, 1.5) for order in orders]
    yard.until(lambda: yard.journal("end"))
    begun = yard.until(lambda: yard.journal("start")[len(yard.journal("end")) :])[0]
    victim, _ = yard.runs_in(begun["order"])
    killed_at = yard.kill(victim)
    hit = {"order": begun["order"], "host": host(victim)}
    assert (1, 0) == (len(yard.journal("start", **hit)), len(yard.journal("end", **hit))), "it was killed too late"

    assert orders == yard.results(tasks)
    assert [] == overlaps(yard.journal(), host(victim), killed_at)
    assert dict.fromkeys(orders, 1) == Counter(row["order"] for row in yard.journal("end"))


def overlaps(rows, victim, killed_at):
    """Runs that began while another one was not over; one of ``victim`` was at ``killed_at``, at the latest."""
    found, running = [], None
    for row in rows:
        if row["what"] == "start":
            dead = running and running["host"] == victim and killed_at <= row["at"]
            found += [(running, row)] if running and not dead else []
            running = row
        elif row["what"] == "end":
            running = None
    return found
