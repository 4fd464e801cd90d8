"""Locks as values: what each operation sends, how its reply is read, what a holder remembers. No I/O here."""

from dataclasses import dataclass
from typing import Any

from qx_cache._call import Arg, Call, Script, script_call, text, word
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.errors import InvalidValueError, LockInUseError, LockNotHeldError, LockTimeoutError
from qx_cache.keys import Keyspace, default_holder, holder_text, owner_token
from qx_cache.lease import Lease, Renewal, boottime

ACQUIRE, RELEASE, RENEW = Script("lock_acquire"), Script("lock_release"), Script("lock_renew")
_FENCE_MEMORY_SECONDS = 86_400.0


@dataclass(frozen=True, slots=True)
class Acquired:
    """The lock is ours."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Taken:
    """Another holder has the lock."""

    holder: str
    remaining_seconds: float
    fence: int


@dataclass(frozen=True, slots=True)
class RunEnded:
    """This very run has ended under the lock before (only where a ``GuardedRun`` was given)."""

    retries: int


Attempt = Acquired | Taken | RunEnded


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A run whose end the lock remembers, so that a second delivery of it does not run again.

    Args:
        id: Task id.
        retries: Which attempt of the task this is.
        redelivery: This may be a second delivery.
        remember_seconds: How long the end is remembered.
    """

    id: str
    retries: int
    redelivery: bool
    remember_seconds: float


class LockCalls:
    """What both twins send and remember: everything but the awaits."""

    def __init__(
        self,
        name: str,
        *,
        ttl_seconds: Duration,
        namespace: str,
        holder: str,
        guarded: GuardedRun | None,
        owner_prefix: str,
    ) -> None:
        keys = Keyspace(namespace)
        self.name = name
        self.ttl_seconds = seconds(ttl_seconds, "ttl_seconds", at_least=0.05)
        self._lock, self._fence = keys.lock(name), keys.fence(name)
        self._guarded = guarded
        self._ended = [keys.ended(name, guarded.id)] if guarded else []
        self._holder = holder_text(holder) if holder else ""
        self._owner_prefix = owner_prefix
        self.token = ""
        self.lease: Lease | None = None
        self._memory_ms = milliseconds(max(_FENCE_MEMORY_SECONDS, 2 * self.ttl_seconds))

    def attempt(self) -> Call[Attempt]:
        if self.token:
            raise LockInUseError(
                f"this lock object holds or awaits {self.name!r} already; make one for each holder"
            )
        token = owner_token(self._owner_prefix)
        run_args = (self._guarded.retries, int(self._guarded.redelivery)) if self._guarded else (0, 0)
        ttl_ms = milliseconds(self.ttl_seconds)
        sent_at = boottime()

        def parse(reply: Any) -> Attempt:
            if word(reply) == "taken":
                return Taken(text(reply[3]), max(0, int(reply[1])) / 1000, int(reply[2]))
            if word(reply) == "ended":
                return RunEnded(int(reply[1]))
            renewal = Renewal(RENEW, self._lock, (token, ttl_ms))
            self.token = token
            self.lease = Lease(
                name=self.name,
                fence=int(reply[1]),
                ttl_seconds=self.ttl_seconds,
                sent_at=sent_at,
                renewal=renewal,
            )
            return Acquired(self.lease)

        holder = self._holder or default_holder(token)
        args: tuple[Arg, ...] = (token, ttl_ms, holder, self._memory_ms, *run_args)
        return script_call(ACQUIRE, [self._lock, self._fence, *self._ended], args, parse)

    def release(self, *, ended: bool) -> Call[None]:
        lease, token = self.held(), self.token
        remembered = self._guarded if ended else None
        run_args = (remembered.retries, milliseconds(remembered.remember_seconds)) if remembered else (0, 0)

        def parse(reply: Any) -> None:
            self.token, self.lease = "", None
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(
                    self.name, "it lapsed before it was given back; others may have worked meanwhile"
                )
            lease.end()

        keys = [self._lock, self._fence, *(self._ended if remembered else [])]
        return script_call(RELEASE, keys, (token, self._memory_ms, *run_args), parse)

    def extend(self, ttl_seconds: Duration | None) -> Call[None]:
        lease, sent_at = self.held(), boottime()
        ttl = lease.ttl_seconds if ttl_seconds is None else seconds(ttl_seconds, "ttl_seconds", at_least=0.05)

        def parse(reply: Any) -> None:
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(self.name, "it lapsed before it was extended")
            lease.renewal = Renewal(RENEW, self._lock, (self.token, milliseconds(ttl)))
            lease.renewed(sent_at, ttl)

        return script_call(RENEW, [self._lock], (self.token, milliseconds(ttl)), parse)

    def held(self) -> Lease:
        if self.lease is None:
            raise LockNotHeldError(self.name, "this lock object has not acquired it")
        return self.lease

    def deadline(self, wait_seconds: Duration | None) -> float | None:
        return None if wait_seconds is None else seconds(wait_seconds, "wait_seconds", at_least=0)


def settled(name: str, wait_seconds: float | None, outcome: Attempt) -> Lease:
    """The lease of a wait that is over, or the error that says why there is none."""
    match outcome:
        case Acquired():
            return outcome.lease
        case Taken():
            raise LockTimeoutError(name, wait_seconds or 0.0, outcome.holder)
        case RunEnded():
            raise InvalidValueError(f"the run under the lock {name!r} has ended before; it is not run again")
