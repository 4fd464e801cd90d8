"""Telling a running task that its lease is gone."""

from collections.abc import Callable, Iterable

from qx_cache import Lease, LeaseLostError, LeaseState


class LeaseLost(BaseException):  # not an error of the task: a reason to end its run
    """Raised by ``self.lease.ensure()`` inside a task whose lease is not surely held.

    It is no ``Exception``, so that neither ``autoretry_for=(Exception,)`` nor ``except Exception`` in the task
    swallows it. Let it pass: the run ends, and a copy of the message insures it. ``__cause__`` is the
    ``ClaimLostError`` or ``LockNotHeldError`` with the details.
    """


class TaskLease:
    """The lease of a running task: its idempotency claim, its lock, or both.

    Outside a guarded run (a direct call, eager mode) it is always valid and ``fence`` is None.

    Example:
        ```python
        @app.task(base=IdempotentTask, bind=True)
        def capture(self, order_id):
            token = prepare(order_id)
            self.lease.ensure()  # ends this run when another may have taken it over
            charge(token)
        ```
    """

    def __init__(self, leases: Iterable[Lease] = ()) -> None:
        self._leases = list(leases)
        self._when_told: list[Callable[[], None]] = []

    def when_told(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` before ``ensure`` raises: the body knows then, and need not be told again."""
        self._when_told.append(listener)

    def hold(self, lease: Lease) -> None:
        """Add what the run holds as well. Called by the guards."""
        self._leases.append(lease)

    def let_go(self) -> None:
        """Hold nothing. Called by the guards."""
        self._leases.clear()

    @property
    def fence(self) -> int | None:
        """Fencing token of the run: of its claim where it has one, else of its lock."""
        return self._leases[0].fence if self._leases else None

    @property
    def lost(self) -> bool:
        """True once it is known that another holder came."""
        return any(lease.state is LeaseState.LOST for lease in self._leases)

    def valid(self) -> bool:
        """True while all of it is surely held. Asks nobody."""
        return all(lease.valid() for lease in self._leases)

    def remaining(self) -> float:
        """Seconds for which all of it is surely held; infinite outside a guarded run."""
        return min((lease.remaining() for lease in self._leases), default=float("inf"))

    def ensure(self) -> None:
        """Do nothing while the lease is surely held; call it right before each effect.

        Raises:
            LeaseLost: It is not; let it pass, and begin no new effect.
        """
        for lease in self._leases:
            try:
                lease.ensure()
            except LeaseLostError as error:
                for listener in self._when_told:
                    listener()
                raise LeaseLost(str(error)) from error
