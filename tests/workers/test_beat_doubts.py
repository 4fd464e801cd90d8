"""A leader in doubt, a turn that hangs, a publish that is held up: real schedulers, with a clock that is set."""

import time
from datetime import UTC, datetime, timedelta

import beating
import pytest
import redis
from beating import Clock
from celery.schedules import crontab
from clockworks import DAY, THREE, tick_at, turn

from qx_cache_celery import election
from qx_cache_celery.beat import Leading, tick_of


def doubtful(lease):
    """Its renewals stay without an answer, and none has failed yet."""
    lease.renewed(lease._clock() - 2 * lease.ttl_seconds)
    assert not lease.valid()


def test_a_tick_that_fell_into_a_doubt_which_healed_is_made_up_for_in_the_same_term(clockwork):
    leader = clockwork.scheduler()
    turn(leader)
    lease = leader.lease
    doubtful(lease)
    Clock.set("2026-06-11T03:00:00.1Z")
    leader.tick()
    assert [] == clockwork.sent()
    lease.renewed(lease._clock())  # the late answer: yes
    if leader.lease is None:  # the heartbeat was quicker, and unseated it
        clockwork.leads(leader)
    turn(leader)
    turn(leader)
    assert [tick_at(THREE)] == clockwork.sent()


def test_what_was_sent_just_before_a_doubt_is_not_sent_again(clockwork):
    leader = clockwork.scheduler()
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(leader)
    Clock.set("2026-06-12T03:00:00.1Z")
    leader._record.note = lambda _: None  # the answer of the dispatch came when the lock was in doubt
    turn(leader)
    leader._fence = 0
    turn(leader)
    assert [tick_at(THREE), tick_at(THREE + DAY)] == clockwork.sent()


def test_a_publish_that_is_held_up_makes_the_next_tick_no_later(clockwork):
    leader = clockwork.scheduler(qx_cache_beat_catchup="skip")
    sent = leader.send_task

    def slow(*args, **kwargs):
        Clock.set("2026-06-11T03:00:40Z")
        return sent(*args, **kwargs)

    leader.send_task = slow
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(leader)
    leader.send_task = sent
    Clock.set("2026-06-12T03:00:00.5Z")
    turn(leader)
    assert [tick_at(THREE), tick_at(THREE + DAY)] == clockwork.sent()


def test_a_leader_whose_turn_hangs_gives_the_lead_up_and_stands_again_when_it_is_over(
    clockwork, monkeypatch, said
):
    monkeypatch.setattr(election, "_LONGEST_TURN_SECONDS", 0.5)
    leader = clockwork.scheduler()
    other = clockwork.scheduler()
    meanwhile = []

    def hangs(*args, **kwargs):
        clockwork.leads(other)
        meanwhile.append(leader.lease)

    leader.send_task = hangs
    Clock.set("2026-06-11T03:00:00.1Z")
    leader.tick()
    assert [None] == meanwhile
    assert any("has not ended for" in line for line in said())
    other.close()
    clockwork.leads(leader)


@pytest.mark.parametrize("error", [redis.ConnectionError("away"), ConnectionResetError("gone")])
def test_a_scheduler_that_loses_its_own_redis_goes_on(clockwork, monkeypatch, said, error):
    leader = clockwork.scheduler()
    asked = []

    def fails(self):
        asked.append(1)
        raise error

    monkeypatch.setattr(Leading, "_turn", fails)
    assert 0 < leader.tick() <= 1
    assert [1] == asked
    assert any("another follows" in line for line in said())


def test_an_entry_with_a_long_past_is_looked_at_quickly(clockwork):
    leader = clockwork.scheduler()
    Clock.set("2026-06-15T00:00:30Z")  # a Monday, before any turn of it
    entry = leader.Entry(
        name="office",
        task="t",
        schedule=crontab(minute="*/5", hour="9-17", day_of_week="mon-fri", app=leader.app, nowfun=beating.now),
        last_run_at=datetime.now(UTC) - timedelta(days=30 * 365),
        app=leader.app,
    )
    began = time.monotonic()
    tick_of(entry)
    assert time.monotonic() - began < 2
