"""What a holder knows about what it holds, by its own clock and without asking anybody."""

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from qx_cache._call import Arg, Script
from qx_cache.errors import LeaseLostError, LockNotHeldError

_log = logging.getLogger("qx_cache.lease")
Clock = Callable[[], float]
_CLOCK_ID = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds on a clock that never jumps and that runs on while the machine sleeps (Linux, macOS)."""
    return time.clock_gettime(_CLOCK_ID)


class LeaseState(Enum):
    """How sure a holder may be."""

    HELD = "held"
    """Inside the validity window: nobody else can hold it."""
    DOUBTFUL = "doubtful"
    """The window closed without an answer; another may hold it, so no new effect may begin."""
    LOST = "lost"
    """Another holds it, or did. Final."""
    ENDED = "ended"
    """Given back by the holder itself. Final."""


@dataclass(slots=True)  # made with each lease, so not frozen: that costs
class Renewal:
    """What a heartbeat sends for one item: its keys and arguments in a script that takes many."""

    script: Script
    keys: tuple[bytes, ...]
    args: tuple[Arg, ...]


class Lease:
    """A handle on something held for a time: an idempotency claim or a lock.

    The validity window is counted from *before* the last successful acquire or renewal was sent, less a
    grace of 1 % (at least 2 ms), so it closes before the server's own expiry does. A process that was
    frozen or asleep therefore knows at once that it may have lost its lease. What no lease can cover is a
    pause between ``ensure()`` and the effect: hand ``fence`` to whatever stores the effect.

    Args:
        name: Name of what is held; errors say it.
        fence: Fencing token; each later holder of the same name has a higher one.
        ttl_seconds: Life of the lease from a renewal.
        sent_at: ``clock()`` just before the acquire was sent.
        renewal: How a heartbeat renews it.
        lost_error: What ``ensure`` raises.
        clock: Seconds that never jump.

    Example:
        ```python
        lease.ensure()  # raises when the lease is not surely held
        ledger.write(order, fence=lease.fence)
        ```
    """

    def __init__(
        self,
        *,
        name: str,
        fence: int,
        ttl_seconds: float,
        sent_at: float,
        renewal: Renewal,
        lost_error: type[LeaseLostError] = LockNotHeldError,
        clock: Clock = boottime,
    ) -> None:
        self.name = name
        self.fence = fence
        self.ttl_seconds = ttl_seconds
        self.renewal = renewal
        self._lost_error = lost_error
        self._clock = clock
        self._pid = os.getpid()
        self._final: LeaseState | None = None
        self._reason = ""
        self._listeners: list[Callable[[], None]] = []
        self._doubters: list[tuple[float, Callable[[], None]]] = []
        self.renewed(sent_at)

    @property
    def state(self) -> LeaseState:
        """How sure the holder may be, now."""
        if self._final is not None:
            return self._final
        if self.inherited:
            return LeaseState.LOST  # a forked child holds nothing of its parent's
        return LeaseState.HELD if self._clock() < self._valid_until else LeaseState.DOUBTFUL

    @property
    def lost(self) -> bool:
        """True once it is known that another holder came, or that the lease is gone."""
        return self.state is LeaseState.LOST

    @property
    def inherited(self) -> bool:
        """True in a forked child of the process that holds it."""
        return os.getpid() != self._pid

    def remaining(self) -> float:
        """Seconds for which it is surely still held; 0 when it is not."""
        return max(0.0, self._valid_until - self._clock()) if self.state is LeaseState.HELD else 0.0

    def valid(self) -> bool:
        """True while it is surely held. Asks nobody."""
        return self.state is LeaseState.HELD

    def ensure(self) -> None:
        """Do nothing while the lease is surely held; call it right before each effect.

        Raises:
            LeaseLostError: ``LockNotHeldError`` for a lock, ``ClaimLostError`` for a claim: the lease was
                lost, given back, or its renewal was not confirmed in time. Begin no new effect.
        """
        state = self.state
        if state is not LeaseState.HELD:
            raise self._lost_error(self.name, self._why(state))

    def renewed(self, sent_at: float, ttl_seconds: float | None = None) -> None:
        """Note that a renewal sent at ``sent_at`` was confirmed. Called by who renews."""
        self.ttl_seconds = self.ttl_seconds if ttl_seconds is None else ttl_seconds
        grace = max(self.ttl_seconds / 100, 0.002)
        self._valid_until = sent_at + self.ttl_seconds - grace

    def lose(self, reason: str) -> None:
        """Note that it is lost. Called by who was told so; final."""
        if self._final is None:
            self._final, self._reason = LeaseState.LOST, reason
            for listener in self._listeners:
                _tell(listener)

    def when_lost(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` when the lease turns LOST, from whatever thread learns it; it must not block."""
        self._listeners.append(listener)

    def when_doubtful(self, listener: Callable[[], None], after_seconds: float = 0.0) -> None:
        """Call ``listener`` once when the lease has been DOUBTFUL for so long, as ``when_lost`` does.

        It comes from who renews, before a renewal is tried and when one has failed: up to a sixth of the life
        late.
        """
        self._doubters.append((after_seconds, listener))

    def unconfirmed(self) -> None:
        """Note that no renewal was confirmed yet. Called by who renews."""
        if self.state is LeaseState.DOUBTFUL:
            doubtful_for = self._clock() - self._valid_until
            due = [one for one in self._doubters if one[0] <= doubtful_for]
            for one in due:
                self._doubters.remove(one)
                _tell(one[1])

    def end(self) -> None:
        """Note that the holder gave it back; final."""
        if self._final is None:
            self._final = LeaseState.ENDED

    def _why(self, state: LeaseState) -> str:
        if state is LeaseState.DOUBTFUL:
            return f"no renewal was confirmed within its {self.ttl_seconds} s, so another may hold it"
        if state is LeaseState.ENDED:
            return "it was given back"
        return self._reason or "it belongs to the parent of this process"


def _tell(listener: Callable[[], None]) -> None:
    try:
        listener()
    except Exception:  # noqa: BLE001  # who renews has other leases to renew
        _log.exception("a listener of a lease has failed")
