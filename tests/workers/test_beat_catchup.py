"""What becomes of a tick that comes late, or that nobody dispatched: real schedulers, with a clock that is set."""

import time

import pytest
from beating import Clock
from clockworks import DAY, THREE, tick_at, turn
from conftest import silent

from qx_cache import InvalidValueError
from qx_cache_celery import signals


@pytest.mark.parametrize("catchup", ["once", "skip"])
def test_a_tick_in_time_is_dispatched_once_by_the_leader(clockwork, catchup):
    leader, standby = (clockwork.scheduler(qx_cache_beat_catchup=catchup) for _ in range(2))
    for day in ("11", "12"):
        for time_of_day in ("02:59:59.9", "03:00:00.2", "03:00:01"):
            Clock.set(f"2026-06-{day}T{time_of_day}Z")
            turn(standby, leader)
    assert [tick_at(THREE), tick_at(THREE + DAY)] == clockwork.sent()


@pytest.mark.parametrize("catchup", ["once", "skip"])
def test_a_tick_that_passed_while_none_led_is_dispatched_by_who_leads_next(clockwork, catchup):
    """A change of leaders makes no tick late."""
    leader, standby = (clockwork.scheduler(qx_cache_beat_catchup=catchup) for _ in range(2))
    turn(leader, standby)
    Clock.set("2026-06-11T03:00:00Z")
    turn(standby)  # and the leader is dead by now
    Clock.set("2026-06-11T03:00:01.2Z")
    leader.close()
    clockwork.leads(standby)
    turn(standby)
    turn(standby)
    assert [tick_at(THREE)] == clockwork.sent()


def test_a_standby_looks_soon_again_and_a_leader_sleeps(clockwork):
    leader, standby = clockwork.scheduler(), clockwork.scheduler()
    assert leader.tick() > 60
    assert 0 < standby.tick() <= 0.25


def test_a_leader_that_dispatched_is_not_repeated_by_the_next(clockwork):
    leader, standby = clockwork.scheduler(), clockwork.scheduler()
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(standby, leader)
    leader.close()
    clockwork.leads(standby)
    Clock.set("2026-06-11T03:00:01Z")
    turn(standby)
    assert [tick_at(THREE)] == clockwork.sent()


def test_a_redis_that_lost_its_data_makes_no_nightly_job_run_at_noon(clockwork):
    leader, standby = clockwork.scheduler(), clockwork.scheduler()
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(standby, leader)
    Clock.set("2026-06-11T12:00:00Z")
    clockwork.redis.flushall()
    leader.close()
    clockwork.leads(standby)
    turn(standby)
    assert [] == clockwork.sent()


def test_the_first_tick_of_all_is_made_up_for_too(clockwork):
    """There is no record of an earlier one, and this beat saw it pass."""
    leader, standby = clockwork.scheduler(), clockwork.scheduler()
    Clock.set("2026-06-11T03:00:00.5Z")
    turn(standby)
    assert not clockwork.redis.keys("*qx_beat_tick*")
    leader.close()
    clockwork.leads(standby)
    turn(standby)
    assert [tick_at(THREE)] == clockwork.sent()


@pytest.mark.parametrize("file", ["kept", None])
@pytest.mark.parametrize(("catchup", "expected"), [("once", [tick_at(THREE + 3 * DAY)]), ("skip", [])])
def test_after_days_without_a_beat_the_last_tick_is_run_once_or_dropped(clockwork, said, catchup, expected, file):
    """Whether the schedule file was kept or lost."""
    first = clockwork.scheduler("kept")
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(first)
    first.close()
    clockwork.redis.delete("celery")
    Clock.set("2026-06-14T09:00:00Z")
    turn(clockwork.scheduler(file, qx_cache_beat_catchup=catchup))
    assert expected == clockwork.sent()
    word = {"once": "comes 21600 s late", "skip": "is dropped, 21600 s late"}[catchup]
    assert 1 == len([line for line in said() if word in line])
    clockwork.redis.delete("celery")
    Clock.set("2026-06-15T03:00:00.1Z")
    turn(clockwork.made[-1])
    assert [tick_at(THREE + 4 * DAY)] == clockwork.sent()


def test_a_deadline_of_celerys_own_holds_for_what_is_made_up_for(clockwork):
    first = clockwork.scheduler()
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(first)
    first.close()
    clockwork.redis.delete("celery")
    Clock.set("2026-06-12T09:00:00Z")
    turn(clockwork.scheduler(beat_cron_starting_deadline=3600))
    assert [] == clockwork.sent()


def test_a_stale_schedule_file_replays_nothing(clockwork, said):
    first = clockwork.scheduler("old")
    turn(first)
    first.close()
    second = clockwork.scheduler("new")
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(second)
    second.close()
    Clock.set("2026-06-11T03:00:09Z")
    turn(clockwork.scheduler("old"))
    assert [tick_at(THREE)] == clockwork.sent()
    assert f"tick {tick_at(THREE)} was dispatched before" in said()


def test_a_leader_that_loses_its_lock_at_the_tick_leaves_it_to_the_next_term(clockwork, said):
    beat = clockwork.scheduler()
    turn(beat)
    wanted = beat._wanted

    def lost_in_between(entry):
        tick = wanted(entry)
        beat._election._lease.lose("for the test")
        return tick

    beat._wanted = lost_in_between
    Clock.set("2026-06-11T03:00:00.1Z")
    beat.tick()
    beat._wanted = wanted
    assert [] == clockwork.sent()
    assert f"tick {tick_at(THREE)} is left to the next leader" in said()
    clockwork.leads(beat)
    turn(beat)
    assert [tick_at(THREE)] == clockwork.sent()


def test_a_record_that_cannot_be_read_keeps_no_tick_back(clockwork, said):
    beat = clockwork.scheduler()
    turn(beat)
    clockwork.redis.rpush("clockwork:cache:1:{qx_beat_tick:nightly}", "of another type")
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(beat)
    assert [tick_at(THREE)] == clockwork.sent()
    assert any("no record of the ticks of nightly" in line for line in said())


def test_a_store_that_is_silent_keeps_no_tick_back_while_the_lease_is_valid(clockwork, records, said):
    beat = clockwork.scheduler(qx_cache_backend_url=records.url, qx_cache_beat_lock_ttl=10)
    turn(beat)
    with silent(records):
        Clock.set("2026-06-11T03:00:00.1Z")
        turn(beat)
        assert beat.lease is not None
        assert [tick_at(THREE)] == clockwork.sent()
    assert any(f"tick {tick_at(THREE)} is not recorded" in line for line in said())


def test_a_signal_between_dispatch_and_record_loses_neither(clockwork):
    """Celery's handler closes the scheduler in the middle of whatever it does, and the process ends after that."""
    leader, standby = clockwork.scheduler(), clockwork.scheduler()
    turn(leader, standby)
    note, leader._note_sent = leader._note_sent, lambda: None
    Clock.set("2026-06-11T03:00:00.1Z")
    turn(standby, leader)
    leader._note_sent = note
    leader.close()
    clockwork.leads(standby)
    turn(standby)
    assert [tick_at(THREE)] == clockwork.sent()


@pytest.mark.parametrize("word", ["never", None, True])
def test_a_wrong_word_is_refused_when_the_scheduler_is_made(clockwork, word):
    with pytest.raises(InvalidValueError, match=f"qx_cache_beat_catchup must be 'once' or 'skip', not {word!r}"):
        clockwork.scheduler(qx_cache_beat_catchup=word)


def test_a_wrong_lock_life_and_a_missing_redis_are_refused_as_well(clockwork, monkeypatch):
    with pytest.raises(InvalidValueError, match="qx_cache_beat_lock_ttl"):
        clockwork.scheduler(qx_cache_beat_lock_ttl=0)
    monkeypatch.delenv("QX_CACHE__URL", raising=False)
    with pytest.raises(InvalidValueError, match="qx_cache_backend_url"):
        clockwork.scheduler(broker_url="memory://")


def test_signals_tell_of_each_term(clockwork):
    heard = []

    def elected(sender, fence, **_):
        heard.append(("elected", sender.main, fence))

    def lost(sender, fence, reason, **_):
        heard.append((reason, sender.main, fence))

    signals.beat_leader_elected.connect(elected)
    signals.beat_leader_lost.connect(lost)
    beat = clockwork.scheduler()
    clockwork.leads(beat)
    first = beat.lease.fence
    clockwork.redis.delete("clockwork:lock:1:{beat}")
    deadline = time.monotonic() + 10
    while len(heard) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = beat.lease.fence
    beat.close()
    assert second > first
    assert [
        ("elected", "clockwork", first),
        ("lost", "clockwork", first),
        ("elected", "clockwork", second),
        ("handed over", "clockwork", second),
    ] == heard
