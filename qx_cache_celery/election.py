"""Who leads among the beats of an app: one thread that holds, or waits for, their lock."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from qx_cache import CacheError, Lease, LockNotHeldError, StoreError, SyncDistributedLock
from qx_cache_celery.options import beat_lock_ttl
from qx_cache_celery.runtime import runtime_of
from qx_cache_celery.signals import beat_leader_elected, beat_leader_lost

_log = logging.getLogger("qx_cache_celery.beat")
_RETRY_SECONDS = 1.0
_SLICE_SECONDS = 30.0
_HANDOVER_SECONDS = 3.0
_LONGEST_TURN_SECONDS = 30.0


class Election:
    """One thread that stands for leader, for as long as its process lives.

    It waits in line at the lock, so that a leader that stops is followed at once, and stands again after a loss.

    A beat whose turn hangs, in a publish or a query that gets no answer, does not lead: it gives the lead up, and
    does not stand until the turn is over.

    Args:
        app: Its name, or ``qx_cache_namespace``, names the lock.
        turning_for: For how many seconds the present turn of the scheduler has been under way.
    """

    def __init__(self, app: Any, turning_for: Callable[[], float]) -> None:
        self._app = app
        self._turning_for = turning_for
        self._longest_turn_seconds = max(_LONGEST_TURN_SECONDS, 3 * beat_lock_ttl(app))
        self._lease: Lease | None = None
        self._over = threading.Event()
        self._stopping = threading.Event()
        self.settled = threading.Event()
        """Set once it is known who leads at first: until then no tick is given away as a standby's."""
        self._thread = threading.Thread(target=self._stand, name="qx-cache-beat-election", daemon=True)
        self._thread.start()

    @property
    def lease(self) -> Lease | None:
        """What the leader holds, while it surely does; None in a standby."""
        lease = self._lease
        return lease if lease is not None and lease.valid() else None

    def stop(self) -> None:
        """Hand over, and stand no more; safe to repeat.

        It does not wait for ever: the thread may need what a frame below this one, which a signal interrupted,
        still holds.
        """
        self._stopping.set()
        self._over.set()
        if self._lease is not None:
            self._thread.join(_HANDOVER_SECONDS)

    def stop_soon(self, seconds: float) -> None:
        """Stop after ``seconds``, unless that is done by then: for a ``close`` that may hang."""
        later = threading.Timer(seconds, self.stop)
        later.daemon = True
        later.start()

    def _stuck(self) -> bool:
        return self._turning_for() > self._longest_turn_seconds

    def _stand(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._stuck():
                    self._pause()
                else:
                    self._term()
            except CacheError as error:
                _log.warning("no election for now: %s", error)
                self._pause()
            except Exception:  # noqa: BLE001  # whatever it is, beat goes on as a standby
                _log.exception("no election for now")
                self._pause()

    def _pause(self) -> None:
        self.settled.set()
        self._stopping.wait(_RETRY_SECONDS)

    def _term(self) -> None:
        """Wait to be elected, lead, and hand over; or nothing, when nobody made room for long."""
        lock = runtime_of(self._app).lock("beat", ttl=beat_lock_ttl(self._app))
        try:
            lease = lock.acquire(wait_seconds=_SLICE_SECONDS if self.settled.is_set() else 0)
        except TimeoutError:
            self.settled.set()
            return
        self._lead(lock, lease)

    def _lead(self, lock: SyncDistributedLock, lease: Lease) -> None:
        """Until the lock is lost or in doubt, or ``stop`` is called."""
        heartbeat = runtime_of(self._app).heartbeat
        self._over.clear()
        lease.when_lost(self._over.set)
        lease.when_doubtful(self._over.set)
        heartbeat.add(lease)
        self._lease = lease
        self.settled.set()
        _log.info("leads from now on (fence %d)", lease.fence, extra={"qx_event": "elected"})
        try:
            beat_leader_elected.send(sender=self._app, fence=lease.fence)
            while not self._stopping.is_set() and not self._over.wait(_RETRY_SECONDS):
                if self._stuck():
                    _log.error("a turn of the schedule has not ended for %.0f s", self._turning_for())
                    break
        finally:
            reason = "handed over" if lease.valid() else str(lease.state.value)
            self._lease = None
            heartbeat.remove(lease)
            _log.info("leads no more (fence %d)", lease.fence, extra={"qx_event": "demoted"})
            _give_back(lock, lease)
            beat_leader_lost.send(sender=self._app, fence=lease.fence, reason=reason)


def _give_back(lock: SyncDistributedLock, lease: Lease) -> None:
    try:
        lock.release()
    except LockNotHeldError as error:
        _log.warning("was not leader to the end: %s", error)
    except StoreError as error:
        _log.warning("could not hand over, the lock lapses in %g s: %s", lease.ttl_seconds, error)
