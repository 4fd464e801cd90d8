"""The mixin for a scheduler of beat: only the leader dispatches, and each tick once."""

import logging
import math
import time
from dataclasses import replace
from typing import Any, ClassVar

import redis
from celery.schedules import crontab

from qx_cache import InvalidValueError, Lease
from qx_cache_celery.backend import backend_url
from qx_cache_celery.beat_record import Record
from qx_cache_celery.delivery import COPY
from qx_cache_celery.election import Election
from qx_cache_celery.naming import TICK_HEADER
from qx_cache_celery.options import beat_lock_ttl, namespace
from qx_cache_celery.ticks import Tick, align, now_of, shallow, tick_after, tick_of, until_next_slot

_log = logging.getLogger("qx_cache_celery.beat")
TICK = TICK_HEADER
"""Header of a dispatched task: the entry and the time that it was due."""
_CATCHUP = ("once", "skip")
_LATE_LIVES = 2  # of the lock: a change of leaders alone makes no tick late
_SETTLE_SECONDS = 10.0
_WATCH_SECONDS = 0.25
_RETRY_SECONDS = 1.0
_CLOSE_SECONDS = 3.0


class Leading:
    """Mixin for a scheduler of beat: only the leader dispatches, and each tick has an id of its own.

    Put it before any ``celery.beat.Scheduler``; see ``SingletonScheduler``.

    Example:
        ```python
        class SingletonRedBeatScheduler(Leading, RedBeatScheduler):
            shared_schedule = True
        ```
    """

    app: Any
    shared_schedule: ClassVar[bool] = False
    """True when the scheduler keeps its schedule where other beats see it: a standby then leaves it alone. False:
    each process has its own, and a standby goes through it without dispatching."""
    _election: Election | None = None
    _fence = 0

    def __init__(self, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, lazy=lazy, **kwargs)  # type: ignore[call-arg]  # the scheduler's
        self._catchup = beat_catchup(self.app)
        self._late_seconds = _LATE_LIVES * beat_lock_ttl(self.app)
        backend_url(self.app)
        self._record = Record(self.app)
        self._shadowed: dict[str, Tick] = {}
        self._done: dict[str, float] = {}
        self._sent: Tick | None = None
        self._reserved: Any = None
        self._turn_began: float | None = None
        if not lazy:
            self._election = Election(self.app, self.turning_for)

    @property
    def lease(self) -> Lease | None:
        """What the leader holds, while it surely does; None in a standby."""
        return self._election.lease if self._election is not None else None

    def begin_term(self) -> None:
        """Called when this beat has begun to lead, before it dispatches anything: make up for what nobody did."""
        if not self.shared_schedule:
            self._catch_up()
            self._heap: Any = None

    def turning_for(self) -> float:
        """For how many seconds the present turn has been under way; 0 between turns."""
        began = self._turn_began
        return 0.0 if began is None else time.monotonic() - began

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """One turn of the scheduler, once it is known who leads; soon again in a standby, which may be elected."""
        if self._election is not None:
            self._election.settled.wait(_SETTLE_SECONDS)
        self._turn_began = time.monotonic()
        try:
            return self._turn(*args, **kwargs)
        except (redis.RedisError, OSError) as error:  # of a scheduler that asks Redis, or the broker, by itself
            _log.warning("a turn of the schedule failed, another follows: %r", error)
            return _RETRY_SECONDS
        finally:
            self._turn_began = None

    def _turn(self, *args: Any, **kwargs: Any) -> Any:
        lease = self._held()
        if lease is not None and lease.fence != self._fence:
            self._fence = lease.fence
            self.begin_term()
        if lease is None and self.shared_schedule:
            return _WATCH_SECONDS
        pause = super().tick(*args, **kwargs)  # type: ignore[misc]  # the scheduler's
        if lease is None:
            return min(pause, _WATCH_SECONDS)
        return min(pause, self._late_seconds / _LATE_LIVES) if self.shared_schedule else pause

    def _held(self) -> Lease | None:
        """As ``lease``; once it was in doubt, what follows is a new term, whatever its fence."""
        lease = self.lease
        if lease is None:
            self._fence = 0
        return lease

    def populate_heap(self, *args: Any, **kwargs: Any) -> None:
        """As the scheduler does, with intervals that begin alike in every beat."""
        for entry in self.schedule.values():  # type: ignore[attr-defined]  # the scheduler's
            align(entry)
        super().populate_heap(*args, **kwargs)  # type: ignore[misc]  # the scheduler's

    def is_due(self, entry: Any) -> Any:
        """As the scheduler says; an interval's next turn comes with its next slot, and does not drift."""
        due, following = super().is_due(entry)  # type: ignore[misc]  # the scheduler's
        next_slot = until_next_slot(entry) if due else None
        return due, following if next_slot is None else next_slot

    def reserve(self, entry: Any) -> Any:
        """The entry's next turn; an interval's turns are the same in every beat."""
        following = super().reserve(entry)  # type: ignore[misc]  # the scheduler's
        align(following)
        self._reserved = following
        return following

    def _when(self, entry: Any, next_time_to_run: Any, *args: Any, **kwargs: Any) -> Any:
        """When an entry is due next: counted from now, and not from before its dispatch, which may be long."""
        if entry is self._reserved and not self.shared_schedule:
            due, following = self.is_due(entry)
            next_time_to_run = 0 if due else following
        return super()._when(entry, next_time_to_run, *args, **kwargs)  # type: ignore[misc]  # the scheduler's

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Dispatch, in the leader; in a standby nothing: the schedule goes on without."""
        tick = self._wanted(entry)
        if tick is not None:
            super().apply_entry(self._named(entry, tick), producer=producer)  # type: ignore[misc]  # the scheduler's

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        """Dispatch one tick, under an id that is the same in every beat.

        Returns:
            None when it is not dispatched: this beat does not lead, or the tick was dispatched before.
        """
        named = entry
        if not isinstance(entry.__dict__.get("qx_tick"), Tick):  # of a scheduler that goes without apply_entry
            tick = self._wanted(entry)
            named = None if tick is None else self._named(entry, tick)
        try:
            if named is None or not self._still_leads(named.qx_tick):
                return None
            sent = super().apply_async(named, producer=producer, advance=False, **kwargs)  # type: ignore[misc]
            self._sent = named.qx_tick
            self._note_sent()
            return sent
        finally:
            if advance and self.lease is not None:  # at last: before the dispatch, a death would lose the tick
                self.reserve(entry)

    def sync(self) -> None:
        """As the scheduler does; what is shared is written by the leader alone."""
        if self.lease is not None or not self.shared_schedule:
            super().sync()  # type: ignore[misc]  # the scheduler's

    def close(self) -> None:
        """Hand over at once, whatever hangs."""
        if self._election is not None:
            self._election.stop_soon(_CLOSE_SECONDS)
        try:
            self._note_sent()
            if self.shared_schedule:
                self.sync()
        finally:
            if self._election is not None:
                self._election.stop()
        super().close()  # type: ignore[misc]  # the scheduler's

    def _catch_up(self) -> None:
        for entry in list(self.schedule.values()):  # type: ignore[attr-defined]  # the scheduler's
            if self.lease is None:
                return
            tick = self._missed(entry)
            if tick is not None and self._in_time(tick):
                producer = self.producer  # type: ignore[attr-defined]  # the scheduler's
                super().apply_entry(self._named(entry, tick), producer=producer)  # type: ignore[misc]

    def _wanted(self, entry: Any) -> Tick | None:
        """The tick to dispatch; None in a standby, and for a tick that was dispatched or comes too late."""
        tick = tick_of(entry)
        if self._held() is None:
            self._shadowed[entry.name] = tick
            return None
        last = self._last(entry)
        if last is not None and last >= tick.due:
            _log.info("tick %s was dispatched before", tick)
            return None
        return tick if self._in_time(tick) else None

    def _missed(self, entry: Any) -> Tick | None:
        """The last tick of ``entry`` up to now, when nobody has dispatched it.

        Without a record (the first tick, or a Redis that lost its data) it is the one that passed here while no
        beat can have led, and never an old one.
        """
        shadowed = self._shadowed.pop(entry.name, None)
        last = self._last(entry)
        if last is not None:
            tick = tick_after(entry, last)
            return tick if tick is not None and tick.late_seconds <= self._deadline(entry) else None
        since = math.inf if shadowed is None else now_of(entry) - shadowed.due
        if shadowed is None or since > self._late_seconds:
            return None
        return replace(shadowed, late_seconds=since)

    def _last(self, entry: Any) -> float | None:
        """When the last dispatched tick of ``entry`` was due, as this process or Redis knows; None: not known."""
        known = [self._done.get(entry.name), self._record.last(entry.name)]
        last = max((one for one in known if one is not None), default=None)
        if last is not None and last > now_of(entry) + self._late_seconds:
            _log.warning("the last tick of %s is recorded as in the future: some beat's clock is off", entry.name)
            return None
        return last

    def _deadline(self, entry: Any) -> float:
        """For how long a tick may be made up for, by Celery's own setting."""
        deadline = self.app.conf.beat_cron_starting_deadline if isinstance(entry.schedule, crontab) else None
        return math.inf if deadline is None else float(deadline)

    def _in_time(self, tick: Tick) -> bool:
        if tick.late_seconds <= self._late_seconds:
            return True
        if self._catchup == "once":
            _log.info("tick %s comes %.0f s late", tick, tick.late_seconds)
            return True
        _log.info("tick %s is dropped, %.0f s late (qx_cache_beat_catchup)", tick, tick.late_seconds)
        self._record.note(tick)
        return False

    def _still_leads(self, tick: Tick) -> bool:
        if self._held() is not None:
            return True
        _log.info("tick %s is left to the next leader", tick)
        self._shadowed[tick.entry] = tick
        return False

    def _named(self, entry: Any, tick: Tick) -> Any:
        headers = {**(entry.options.get("headers") or {}), TICK: str(tick), COPY: 0}
        task_id = tick.task_id(namespace(self.app))
        return shallow(entry, options={"task_id": task_id, **entry.options, "headers": headers}, qx_tick=tick)

    def _note_sent(self) -> None:
        """Record what was dispatched; again in ``close``, when a signal came in between."""
        sent, self._sent = self._sent, None
        if sent is None:
            return
        self._done[sent.entry] = sent.due
        if self.lease is not None:
            self._record.note(sent)


def beat_catchup(app: Any) -> str:
    """``qx_cache_beat_catchup``: what becomes of a tick that comes late; ``"once"`` by default.

    Raises:
        InvalidValueError: It is none of the words.
    """
    word = app.conf.get("qx_cache_beat_catchup", "once")
    if word not in _CATCHUP:
        raise InvalidValueError(f"qx_cache_beat_catchup must be 'once' or 'skip', not {word!r}")
    return str(word)
