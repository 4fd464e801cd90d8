"""Locks as values: what each operation sends, how its reply is read, what a holder remembers. No I/O here."""

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from qx_cache._call import Arg, Call, Script, command, script_call, text, timeout_text, word
from qx_cache._schedule import Watch
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.errors import InvalidValueError, LockInUseError, LockNotHeldError, LockTimeoutError
from qx_cache.keys import Keyspace, default_holder, holder_text, owner_token
from qx_cache.lease import Lease, Renewal, boottime

ACQUIRE, RELEASE, RENEW = Script("lock_acquire"), Script("lock_release"), Script("lock_renew")
WATCH, LEAVE, FREE, INFO = Script("lock_watch"), Script("lock_leave"), Script("lock_free"), Script("lock_info")
END = Script("lock_end")
RESERVE_MS = 1000
"""How long a released lock is kept for who waits longest; that one may have died meanwhile."""
WAIT_MS = 12_000
"""How long one who waits is believed to, from its last sign: more than two of a heartbeat's watches."""
LONGEST_BLOCK_SECONDS = 60.0
"""The longest single wait for the baton; asking again costs a place in the queue."""
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


@dataclass(frozen=True, slots=True)
class Superseded:
    """Newer work was published under the lock's name (only where a ``GuardedRun`` has a number)."""

    holder: str
    """Who holds the lock, or did last."""
    latest: int
    """The highest number that was published."""


Attempt = Acquired | Taken | RunEnded | Superseded


@dataclass(frozen=True, slots=True)
class GuardedRun:
    """A run whose end the lock remembers, so that a second delivery of it does not run again.

    Args:
        id: Task id.
        retries: Which attempt of the task this is.
        redelivery: This may be a second delivery.
        remember_seconds: How long the end is remembered; 0: not at all, as something else does.
        number: What ``Publishing.next_number`` gave when it was published; 0: nothing.
        queued: It was claimed when it was published (``Publishing.claim``); its acquire ends that claim.
        refusal_ends: It is over when another holds the lock, and so is its claim.
    """

    id: str
    retries: int
    redelivery: bool
    remember_seconds: float
    number: int = 0
    queued: bool = False
    refusal_ends: bool = False


@dataclass(frozen=True, slots=True)
class LockInfo:
    """What the server says about a lock, for people and for ``release_lock``."""

    state: Literal["free", "held", "reserved", "kept"]
    """``reserved``: released, and kept for who waits longest; ``kept``: released before ``min_hold_seconds``."""
    holder: str = "-"
    """Task id, label, or host and pid of the last holder; ``-`` when nobody is known."""
    fence: int = 0
    since: float = 0.0
    """When it was acquired: seconds since 1970 by the server's clock; 0 when it is free."""
    remaining_seconds: float = 0.0
    """How long it lives without a renewal."""
    waiters: int = 0
    """How many wait for it; one that was killed is counted for some seconds more."""
    queued: str = ""
    """Id of work that was published under its name and has not begun (``Publishing``)."""


class LockCalls:
    """What both twins send and remember: everything but the awaits.

    One token stands for one acquire, from its first try to its release, so that a repeated call is recognised.
    """

    def __init__(
        self,
        name: str,
        *,
        ttl_seconds: Duration,
        namespace: str,
        fair: bool,
        min_hold_seconds: Duration,
        holder: str,
        guarded: GuardedRun | None,
        owner_prefix: str,
    ) -> None:
        keys = Keyspace(namespace)
        self.name = name
        self.ttl_seconds = seconds(ttl_seconds, "ttl_seconds", at_least=0.05)
        self.key = keys.lock(name)
        self._keys = (self.key, keys.fence(name), keys.waiting(name), keys.baton(name))
        self._queued = keys.queued(name)
        self._ended = (keys.ended(name, guarded.id),) if guarded else ()
        self._guarded = guarded
        self._reserve_ms = RESERVE_MS if fair else 0
        self._min_hold_ms = round(1000 * seconds(min_hold_seconds, "min_hold_seconds", at_least=0))
        self._holder = holder_text(holder) if holder else ""
        self._owner_prefix = owner_prefix
        self._ttl_ms = milliseconds(self.ttl_seconds)
        self._memory_ms = milliseconds(max(_FENCE_MEMORY_SECONDS, 2 * self.ttl_seconds))
        self._token = ""
        self._lease: Lease | None = None

    def begin(self) -> None:
        """Note that this object is about to acquire.

        Raises:
            LockInUseError: It holds the lock, or is acquiring it, already.
        """
        if self._token and not (self._lease and self._lease.inherited):
            raise LockInUseError(
                f"this lock object holds or awaits {self.name!r} already; make one for each holder"
            )
        self._token = owner_token(self._owner_prefix)

    def ask(self, *, waiting: bool = False, grant: str = "") -> Call[Attempt]:
        token = self._token
        sent_at = boottime()

        def parse(reply: Any) -> Attempt:
            if word(reply) == "acquired":
                self._lease = Lease(
                    name=self.name,
                    fence=int(reply[1]),
                    ttl_seconds=self.ttl_seconds,
                    sent_at=sent_at,
                    renewal=Renewal(RENEW, self._keys[:2], (token, self._ttl_ms, self._memory_ms)),
                )
                return Acquired(self._lease)
            if word(reply) == "taken":
                return Taken(text(reply[3]), max(0, int(reply[1])) / 1000, int(reply[2]))
            if word(reply) == "superseded":
                return Superseded(text(reply[2]), int(reply[1]))
            return RunEnded(int(reply[1]))

        holder = self._holder or default_holder(token)
        args: tuple[Arg, ...] = (token, self._ttl_ms, holder, self._memory_ms)
        if waiting or self._guarded:
            args = (*args, WAIT_MS if waiting else "", grant)
        run, keys = self._guarded, (*self._keys, *self._ended)
        if run:
            args = (*args, run.retries, int(run.redelivery and run.remember_seconds > 0))
        if run and (run.number or run.queued):
            args = (*args, run.number or "", int(run.refusal_ends))
            keys = (*keys, self._queued) if run.queued else keys
        return script_call(ACQUIRE, keys, args, parse)

    def baton(self, block_seconds: float) -> Call[str]:
        """Wait for who releases the lock; the grant, or nothing when the time is over."""

        def parse(reply: Any) -> str:
            return text(reply[1]) if reply else ""

        return command(parse, "BLPOP", self._keys[3], timeout_text(block_seconds))

    def watch(self) -> Watch:
        lock, _, waiting, baton = self._keys
        return Watch(Renewal(WATCH, (lock, waiting, baton), (self._token, WAIT_MS, RESERVE_MS)))

    def forget(self) -> None:
        """Note that an acquire came to nothing."""
        self._token, self._lease = "", None

    def drop(self) -> None:
        """Note that nobody will try again to give back what is held: it is left to lapse."""
        if self._lease is not None:
            self._lease.end()
        self.forget()

    def leave(self) -> Call[None]:
        """End an acquire that came to nothing; whatever it was given goes to the next."""
        token = self._token
        self.forget()
        return script_call(LEAVE, self._keys, (token, RESERVE_MS, self._memory_ms), lambda _: None)

    def release(self, *, ended: bool, told: bool = True) -> Call[None]:
        lease, token = self.held(), self._token
        remembered = self._guarded if ended and self._guarded and self._guarded.remember_seconds else None

        def parse(reply: Any) -> None:
            self.forget()
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(
                    self.name, "it lapsed before it was given back; others may have worked meanwhile"
                )
            lease.end()

        keys = (*self._keys, *(self._ended if remembered else ()))
        args: tuple[Arg, ...] = (token, self._memory_ms, self._reserve_ms)
        if self._min_hold_ms or remembered:
            args = (*args, self._min_hold_ms)
        if remembered:
            args = (*args, remembered.retries, milliseconds(remembered.remember_seconds), *(() if told else (1,)))
        return script_call(RELEASE, keys, args, parse)

    def end(self) -> Call[None]:
        run = self._guarded
        if run is None or not run.remember_seconds:
            raise InvalidValueError(f"the lock {self.name!r} has no guarded run whose end it is to remember")
        return script_call(END, self._ended, (run.retries, milliseconds(run.remember_seconds)), lambda _: None)

    def extend(self, ttl_seconds: Duration | None) -> Call[None]:
        lease, sent_at = self.held(), boottime()
        ttl = lease.ttl_seconds if ttl_seconds is None else seconds(ttl_seconds, "ttl_seconds", at_least=0.05)
        renewal = Renewal(RENEW, self._keys[:2], (self._token, milliseconds(ttl), self._memory_ms))

        def parse(reply: Any) -> None:
            if word(reply) == "lost":
                lease.lose("another holder took it, or it lapsed")
                raise LockNotHeldError(self.name, "it lapsed before it was extended")
            lease.renewal = renewal
            lease.renewed(sent_at, ttl)

        return script_call(RENEW, renewal.keys, renewal.args, parse)

    def free(self, fence: int) -> Call[bool]:
        args = (fence, RESERVE_MS, owner_token())
        return script_call(FREE, self._keys, args, lambda reply: word(reply) == "freed")

    def free_lost(self, holder: str, owner_prefix: str) -> Call[bool]:
        if not owner_prefix:
            raise InvalidValueError("owner_prefix must not be empty: it says whose lock it is")
        args = ("", RESERVE_MS, owner_token(), owner_prefix, holder_text(holder))
        return script_call(FREE, self._keys, args, lambda reply: word(reply) == "freed")

    def info(self) -> Call[LockInfo]:
        def parse(reply: Any) -> LockInfo:
            waiters, queued = int(reply[1]), unquote(text(reply[2]))
            if word(reply) == "free":
                return LockInfo("free", waiters=waiters, queued=queued)
            state: Any = word(reply)
            remaining, fence = max(0, int(reply[3])) / 1000, int(reply[4])
            return LockInfo(state, unquote(text(reply[5])), fence, fence / 1e6, remaining, waiters, queued)

        return script_call(INFO, (*self._keys[:3], self._queued), (), parse)

    def held(self) -> Lease:
        """The lease.

        Raises:
            LockNotHeldError: Nothing is held by this object in this process.
        """
        if self._lease is None:
            raise LockNotHeldError(self.name, "this lock object has not acquired it")
        if self._lease.inherited:
            raise LockNotHeldError(self.name, "it belongs to the parent of this process, which gives it back")
        return self._lease


def settled(name: str, wait_seconds: float, outcome: Attempt) -> Lease:
    """The lease of a wait that is over, or the error that says why there is none."""
    match outcome:
        case Acquired():
            return outcome.lease
        case Taken():
            raise LockTimeoutError(name, wait_seconds, outcome.holder)
        case RunEnded():
            raise InvalidValueError(f"the run under the lock {name!r} has ended before; it is not run again")
        case Superseded():
            raise InvalidValueError(f"newer work was published under the lock {name!r}; this one is not run")
