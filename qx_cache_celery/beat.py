"""Beat in any number of processes: one leads and dispatches, the others shadow the schedule.

``beat_scheduler = "qx_cache_celery.beat:SingletonScheduler"`` is all that is needed. The leader holds a lock that
a heartbeat renews, not the tick; a leader that dies is followed within the lock's life, one that stops in order at
once. Ticks that were due in between are not made up for.
"""

import copy
import logging
import threading
import uuid
from typing import Any

from celery.beat import PersistentScheduler
from celery.schedules import schedule as interval_schedule

from qx_cache import CacheError, Lease, LockNotHeldError, StoreError
from qx_cache_celery.delivery import COPY
from qx_cache_celery.options import beat_lock_ttl, namespace
from qx_cache_celery.runtime import runtime_of

_log = logging.getLogger("qx_cache_celery.beat")
_NAMESPACE = uuid.UUID("2d5e8c9a-7f0b-5a3e-9c55-8a4f0f6f6d21")
_RETRY_SECONDS = 1.0
_SLICE_SECONDS = 30.0
_SETTLE_SECONDS = 10.0
TICK = "qx_tick"
"""Header of a dispatched task: the entry and the time that it was due."""


class Election:
    """One thread that stands for leader, for as long as its process lives.

    It waits in line at the lock, so that a leader that stops is followed at once, and stands again after a loss.

    Args:
        app: Its name, or ``qx_cache_namespace``, names the lock.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lease: Lease | None = None
        self._over = threading.Event()
        self._stopping = threading.Event()
        self.settled = threading.Event()
        """Set once it is known who leads at first: until then no tick is given away as a standby's."""
        self._thread = threading.Thread(target=self._stand, name="qx-cache-beat-election", daemon=True)
        self._thread.start()

    @property
    def lease(self) -> Lease | None:
        """What the leader holds; None in a standby."""
        return self._lease

    def stop(self) -> None:
        """Hand over, and stand no more."""
        self._stopping.set()
        self._over.set()
        if self._lease is not None:
            self._thread.join()

    def _stand(self) -> None:
        while not self._stopping.is_set():
            try:
                self._term()
            except CacheError as error:
                _log.warning("no election for now: %s", error)
                self.settled.set()
                self._stopping.wait(_RETRY_SECONDS)

    def _term(self) -> None:
        """Wait to be elected, lead, and hand over; or nothing, when nobody made room for long."""
        runtime, ttl = runtime_of(self._app), beat_lock_ttl(self._app)
        lock = runtime.lock("beat", ttl=ttl)
        try:
            lease = lock.acquire(wait_seconds=_SLICE_SECONDS if self.settled.is_set() else 0)
        except TimeoutError:
            self.settled.set()
            return
        self._over.clear()
        lease.when_lost(self._over.set)
        lease.when_doubtful(self._over.set)
        runtime.heartbeat.add(lease)
        self._lease = lease
        self.settled.set()
        _log.info("leads from now on (fence %d)", lease.fence, extra={"qx_event": "elected"})
        try:
            if not self._stopping.is_set():
                self._over.wait()
        finally:
            self._lease = None
            runtime.heartbeat.remove(lease)
            _log.info("leads no more (fence %d)", lease.fence, extra={"qx_event": "demoted"})
            try:
                lock.release()
            except LockNotHeldError as error:
                _log.warning("was not leader to the end: %s", error)
            except StoreError as error:
                _log.warning("could not hand over, the lock lapses in %g s: %s", ttl, error)


class Leading:
    """Mixin for a scheduler of beat: only the leader dispatches, and each tick has an id of its own.

    Put it before any ``celery.beat.Scheduler``; see ``SingletonScheduler``.
    """

    app: Any
    schedule: Any
    _election: Election | None = None

    def __init__(self, *args: Any, lazy: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, lazy=lazy, **kwargs)  # type: ignore[call-arg]  # the scheduler's
        if not lazy:
            self._election = Election(self.app)

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        """One turn of the scheduler, once it is known who leads."""
        if self._election is not None:
            self._election.settled.wait(_SETTLE_SECONDS)
        return super().tick(*args, **kwargs)  # type: ignore[misc]  # the scheduler's

    def is_due(self, entry: Any) -> Any:
        """As the scheduler says; an interval's next turn comes with its next slot, and does not drift."""
        due, following = super().is_due(entry)  # type: ignore[misc]  # the scheduler's
        every = _interval(entry)
        if due and every:
            now = entry.schedule.now()
            following = (every - (now - _epoch(now)) % every).total_seconds()
        return due, following

    def apply_entry(self, entry: Any, producer: Any = None) -> None:
        """Dispatch, in the leader; in a standby nothing: the schedule goes on without."""
        lease = self._election.lease if self._election is not None else None
        if lease is None or not lease.valid():
            return
        super().apply_entry(entry, producer=producer)  # type: ignore[misc]  # the scheduler's

    def apply_async(self, entry: Any, producer: Any = None, advance: bool = True, **kwargs: Any) -> Any:  # noqa: FBT001, FBT002
        """Dispatch one tick, under an id that is the same in every beat.

        Raises:
            LockNotHeldError: This beat leads no more; the next leader dispatches what is due then.
        """
        tick = tick_of(entry)
        if advance:
            entry = self.reserve(entry)
        lease = self._election.lease if self._election is not None else None
        if lease is None:
            raise LockNotHeldError("beat", "another beat leads")
        lease.ensure()
        told = copy.copy(entry)
        headers = {**(entry.options.get("headers") or {}), TICK: tick, COPY: 0}
        task_id = str(uuid.uuid5(_NAMESPACE, f"{namespace(self.app)}\0{tick}"))
        told.options = {"task_id": task_id, **entry.options, "headers": headers}
        return super().apply_async(told, producer=producer, advance=False, **kwargs)  # type: ignore[misc]

    def reserve(self, entry: Any) -> Any:
        """The entry's next turn; an interval's turns are the same in every beat."""
        following = super().reserve(entry)  # type: ignore[misc]  # the scheduler's
        every = _interval(entry)
        if every:
            now = following.last_run_at
            following.last_run_at = now - (now - _epoch(now)) % every
        return following

    def close(self) -> None:
        """Hand over at once."""
        if self._election is not None:
            self._election.stop()
        super().close()  # type: ignore[misc]  # the scheduler's


class SingletonScheduler(Leading, PersistentScheduler):
    """Celery's own scheduler, in any number of processes."""


def tick_of(entry: Any) -> str:
    """Entry and the time that its present turn is due at: equal in every beat that has the entry."""
    now = entry.schedule.now()
    every = _interval(entry)
    if every:
        due = now - (now - _epoch(now)) % every
    else:
        due = now + entry.schedule.remaining_estimate(entry.last_run_at)
    return f"{entry.name} {due.timestamp():.3f}"


def _interval(entry: Any) -> Any:
    """The time between two turns, of an entry that has one."""
    plan: Any = entry.schedule
    return plan.run_every if type(plan) is interval_schedule else None  # type: ignore[attr-defined]


def _epoch(now: Any) -> Any:
    return now.replace(year=1970, month=1, day=1, hour=0, minute=0, second=0, microsecond=0)
