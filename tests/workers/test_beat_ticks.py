"""Which tick a dispatch is: the same in every beat, whenever it looks and whatever it remembers."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import beating
import pytest
from beating import Clock
from celery import Celery
from celery.beat import ScheduleEntry
from celery.schedules import BaseSchedule, crontab, schedule
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.tzcrontab import TzAwareCrontab

from qx_cache_celery.ticks import align, tick_after, tick_of

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def app():
    return Celery("clockwork", set_as_current=False)


def entry_of(app, plan, last_run_at):
    last = datetime.fromisoformat(last_run_at)
    return ScheduleEntry("job", "task", schedule=plan, last_run_at=last, app=app)


def due_of(tick):
    return datetime.fromtimestamp(tick.due, UTC).isoformat()


NIGHTLY = crontab(minute=0, hour=3, nowfun=beating.now)
MINUTELY = crontab(nowfun=beating.now)
HOURLY = schedule(timedelta(hours=1), nowfun=beating.now)


@pytest.mark.parametrize(
    "last_run_at",
    ["2026-06-10T23:00:00Z", "2026-06-10T03:00:00.3Z", "2026-05-01T00:00:00Z", "2024-01-01T00:00:00Z"],
)
@pytest.mark.parametrize("now", ["2026-06-11T03:00:00.012Z", "2026-06-11T03:00:07Z", "2026-06-12T02:59:59Z"])
def test_beats_with_different_pasts_see_the_same_tick(app, last_run_at, now):
    Clock.set(now)
    tick = tick_of(entry_of(app, NIGHTLY, last_run_at))
    assert "2026-06-11T03:00:00+00:00" == due_of(tick)
    assert (Clock.now - datetime(2026, 6, 11, 3, tzinfo=UTC)).total_seconds() == tick.late_seconds


def test_of_many_that_were_due_it_is_the_last(app):
    Clock.set("2026-06-11T03:17:42Z")
    tick = tick_of(entry_of(app, MINUTELY, "2020-01-01T00:00:00Z"))
    assert "2026-06-11T03:17:00+00:00" == due_of(tick)


def test_intervals_begin_with_their_slots_in_every_beat(app):
    Clock.set("2026-06-11T04:00:00.5Z")
    early, late = entry_of(app, HOURLY, "2026-06-11T02:40:00Z"), entry_of(app, HOURLY, "2026-06-11T02:55:00Z")
    assert tick_of(early).due == tick_of(late).due
    align(early), align(late)
    assert early.last_run_at == late.last_run_at == datetime(2026, 6, 11, 2, tzinfo=UTC)
    assert 0.5 == tick_of(late).late_seconds


def test_an_interval_that_has_its_own_phase_is_not_late_because_of_that(app):
    Clock.set("2026-06-11T10:40:01Z")
    tick = tick_of(entry_of(app, HOURLY, "2026-06-11T09:40:00Z"))
    assert "2026-06-11T10:00:00+00:00" == due_of(tick)
    assert 1 == tick.late_seconds


def test_the_hour_that_comes_twice_in_autumn_has_ticks_of_its_own(app):
    app.conf.timezone = "Europe/Berlin"
    every = schedule(timedelta(minutes=30), nowfun=berlin_now)
    seen = []
    for now in ("2026-10-25T00:00:01Z", "2026-10-25T00:30:01Z", "2026-10-25T01:00:01Z", "2026-10-25T01:30:01Z"):
        Clock.set(now)
        seen.append(tick_of(entry_of(app, every, "2026-10-24T20:00:00Z")).due)
    assert [1800.0] * 3 == [later - earlier for earlier, later in pairwise(seen)]


def test_a_tick_before_the_clocks_change_is_the_same_after(app):
    plan = TzAwareCrontab(minute="59", hour="1", tz=BERLIN, app=app)
    plan.nowfun = berlin_now
    seen = set()
    for now in ("2026-03-29T00:59:00.1Z", "2026-03-29T01:00:30Z"):  # 01:59 and 03:00 in Berlin
        Clock.set(now)
        seen.add(due_of(tick_of(entry_of(app, plan, "2026-03-28T12:00:00Z"))))
    assert {"2026-03-29T00:59:00+00:00"} == seen


def test_a_clocked_entry_has_one_tick(app):
    plan = clocked(datetime(2026, 6, 11, 9, 30, 0, 123456, tzinfo=UTC), nowfun=beating.now, app=app)
    seen = set()
    for now, last in (
        ("2026-06-11T09:30:00.2Z", "2026-06-01T00:00:00Z"),
        ("2026-06-11T09:31:00Z", "2026-06-11T09:00Z"),
    ):
        Clock.set(now)
        seen.add(str(tick_of(entry_of(app, plan, last))))
    assert {"job 1781170200.123"} == seen


class Vague(BaseSchedule):
    """Says only whether it is due, as ``remaining_estimate`` is left out."""

    def is_due(self, last_run_at):  # noqa: ARG002  # Celery's signature
        return True, 60


def test_a_schedule_that_cannot_say_when_has_a_tick_a_second(app):
    Clock.set("2026-06-11T09:30:00.7Z")
    tick = tick_of(entry_of(app, Vague(nowfun=beating.now), "2026-06-01T00:00:00Z"))
    assert "2026-06-11T09:30:00+00:00" == due_of(tick)


@pytest.mark.parametrize("plan", [NIGHTLY, HOURLY])
def test_what_came_after_a_tick_is_the_last_one_if_there_was_one(app, plan):
    entry = entry_of(app, plan, "2026-06-11T12:00:00Z")
    Clock.set("2026-06-11T03:00:00.1Z")
    first = tick_after(entry, (Clock.now - timedelta(hours=30)).timestamp())
    assert "2026-06-11T03:00:00+00:00" == due_of(first)
    assert tick_after(entry, first.due) is None
    Clock.set("2026-06-12T03:00:01Z")
    second = tick_after(entry, first.due)
    assert "2026-06-12T03:00:00+00:00" == due_of(second)
    assert 1 == second.late_seconds


def test_of_a_schedule_that_cannot_say_when_nothing_is_made_up_for(app):
    Clock.set("2026-06-11T09:30:00.7Z")
    assert tick_after(entry_of(app, Vague(nowfun=beating.now), "2026-06-01T00:00:00Z"), 0.0) is None


def test_an_entry_that_never_ran_has_the_last_tick_before_now(app):
    Clock.set("2026-06-11T09:30:00Z")
    entry = entry_of(app, NIGHTLY, "2026-06-01T00:00:00Z")
    entry.last_run_at = None
    assert "2026-06-11T03:00:00+00:00" == due_of(tick_of(entry))


def test_the_id_of_a_tick_is_of_its_entry_time_and_app(app):
    Clock.set("2026-06-11T03:00:00.1Z")
    tick = tick_of(entry_of(app, NIGHTLY, "2026-06-10T03:00:00Z"))
    assert "job 1781146800.000" == str(tick)
    assert tick.task_id("one") != tick.task_id("another")
    assert tick.task_id("one") == tick_of(entry_of(app, NIGHTLY, "2026-06-09T03:00:00Z")).task_id("one")


def berlin_now():
    return Clock.now.astimezone(BERLIN)
