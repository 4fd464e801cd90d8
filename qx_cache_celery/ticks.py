"""Which turn of an entry of beat's schedule a dispatch is: equal in every beat that has the entry."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from celery.schedules import schedule as interval_schedule
from celery.schedules import solar

_NAMESPACE = uuid.UUID("2d5e8c9a-7f0b-5a3e-9c55-8a4f0f6f6d21")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = datetime.max.replace(tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_MINUTE = timedelta(minutes=1)
_LONG_PAST = (timedelta(hours=1), *(timedelta(days=days) for days in (1, 4, 8, 32, 366)))
_YEAR = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class Tick:
    """One turn of one entry. As text it is what the header ``qx_tick`` says."""

    entry: str
    due: float
    """When it was due, in seconds since 1970: with the entry's name, what tells it from any other."""
    late_seconds: float
    """For how long it had been due when it was looked at; below 0 when it was not yet."""

    def __str__(self) -> str:
        return f"{self.entry} {self.due:.3f}"

    def task_id(self, namespace: str) -> str:
        """The id of the task that it is dispatched as."""
        return str(uuid.uuid5(_NAMESPACE, f"{namespace}\0{self}"))


def tick_of(entry: Any) -> Tick:
    """The last turn of ``entry`` up to now, which is due; its next one, where none is."""
    now, since = _utc(entry, entry.schedule.now()), _since(entry)
    if every := interval_of(entry):
        return _tick(entry, slot(now, every), (now - since) % every if since else timedelta())
    due = _latest(entry, since or now - _YEAR)
    if due is _NEVER or (since is None and due > now):
        return _tick(entry, slot(now, _SECOND), timedelta())
    return _tick(entry, due, now - due)


def tick_after(entry: Any, moment: float) -> Tick | None:
    """The last turn of ``entry`` up to now, if it came after ``moment``; None too when its schedule cannot say."""
    now, since = _utc(entry, entry.schedule.now()), datetime.fromtimestamp(moment, UTC)
    every = interval_of(entry)
    due = slot(now, every) if every else _latest(entry, since)
    tick = _tick(entry, due, now - due)
    return tick if moment < tick.due and due <= now else None


def interval_of(entry: Any) -> timedelta | None:
    """The time between two turns, of an entry that has just that."""
    plan: Any = entry.schedule
    if type(plan) is not interval_schedule or plan.relative:
        return None
    every: timedelta = plan.run_every  # type: ignore[attr-defined]  # its stub has no attributes
    return every or None


def align(entry: Any) -> None:
    """Let an interval entry's turns come with its slots, the same in every beat."""
    every = interval_of(entry)
    if every and entry.last_run_at is not None:
        last = entry.schedule.maybe_make_aware(entry.last_run_at)
        entry.last_run_at = slot(last.astimezone(UTC), every).astimezone(last.tzinfo)


def until_next_slot(entry: Any) -> float | None:
    """Seconds until the next turn of an interval entry; None for any other."""
    every = interval_of(entry)
    if every is None:
        return None
    now = _utc(entry, entry.schedule.now())
    return (every - (now - _EPOCH) % every).total_seconds()


def now_of(entry: Any) -> float:
    """The time by the entry's own clock, in seconds since 1970."""
    return _utc(entry, entry.schedule.now()).timestamp()


def slot(moment: datetime, every: timedelta) -> datetime:
    """The last whole multiple of ``every`` since 1970, up to ``moment``."""
    return moment - (moment - _EPOCH) % every


def shallow(thing: Any, **changes: Any) -> Any:
    """A copy with other attributes. Entries and schedules cannot all be copied as ``copy.copy`` does it."""
    twin = object.__new__(type(thing))
    twin.__dict__.update(thing.__dict__, **changes)
    return twin


def _latest(entry: Any, since: datetime) -> datetime:
    """The last time up to now that was due after ``since``, without a step for each of a long past.

    The next one where none was, and the end of all time where the schedule cannot say.
    """
    told = entry.schedule.now()
    now = _utc(entry, told)
    plan = shallow(entry.schedule, nowfun=lambda: told)  # as it is now, whatever time passes while it is asked

    def following(moment: datetime) -> datetime:
        try:
            remaining = plan.remaining_estimate(moment)
        except Exception:  # noqa: BLE001  # of the user's own schedule; one entry must not stop beat
            return _NEVER
        return _NEVER if remaining is None else now + remaining

    for back in _LONG_PAST:
        if since < now - back and following(now - back) <= now:
            since = now - back
            break
    due = following(since)
    while due < (later := following(due)) <= now:
        due = later
    return due


def _tick(entry: Any, due: datetime, late: timedelta) -> Tick:
    if isinstance(entry.schedule, solar):  # computed anew each time, to some milliseconds
        due = slot(due, _MINUTE)
    return Tick(entry.name, round(due.timestamp(), 3), late.total_seconds())


def _since(entry: Any) -> datetime | None:
    return None if entry.last_run_at is None else _utc(entry, entry.last_run_at)


def _utc(entry: Any, moment: datetime) -> datetime:
    aware: datetime = entry.schedule.maybe_make_aware(moment)
    return aware.astimezone(UTC)
