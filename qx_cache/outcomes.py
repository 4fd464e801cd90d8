"""What a claim of an idempotency key can find: a closed union, to be read with ``match``."""

from dataclasses import dataclass
from typing import Any, NoReturn

from qx_cache.errors import (
    CorruptRecordError,
    IdempotencyMismatchError,
    InProgressError,
    InterruptedRunError,
    RecordedFailureError,
    ResultNotKeptError,
)
from qx_cache.lease import Lease


@dataclass(frozen=True, slots=True)
class Claimed:
    """The key is ours to work on, for as long as ``lease`` is renewed."""

    key: str
    owner: str
    """Token of this claim: 22 characters that nobody else has."""
    holder: str
    """Who claimed, as the record spells it."""
    fingerprint: str
    fence: int
    """Fencing token, higher than that of every earlier claim of the key."""
    attempt: int
    """1, and one more for each claim before it that lapsed without an end."""
    retries: int
    takeover: bool
    """True when an earlier claim lapsed without an end: its work may have been done, in part or whole."""
    lease: Lease


@dataclass(frozen=True, slots=True)
class Running:
    """Another claim of the key is live."""

    key: str
    remaining_seconds: float
    fence: int
    retries: int
    holder: str


@dataclass(frozen=True, slots=True)
class Done:
    """The key's work was done."""

    key: str
    result: Any
    """The decoded result; None when it was not kept."""
    kept: bool
    finalised: bool
    """True when what was to follow the result has been dispatched as well."""
    fence: int
    retries: int
    holder: str
    age_seconds: float
    mirrored: bool = False
    """True when the result is kept elsewhere as well, in a database that is right where they disagree."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The key's work failed, and the failure was kept."""

    key: str
    error_type: str
    """Import path of the exception's type."""
    message: str
    fence: int
    retries: int
    holder: str
    age_seconds: float


@dataclass(frozen=True, slots=True)
class Ended:
    """This very holder's run ended before, with nothing to replay for others (only if ``redelivery`` was said)."""

    key: str
    fence: int
    retries: int
    holder: str
    age_seconds: float
    failure: Failed | None = None
    """How it ended, where that may not have been passed on: it was released with a failure, and not finalised."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A run began and its end is unknown (only where ``takeover=False`` was said)."""

    key: str
    fence: int
    attempt: int
    holder: str


@dataclass(frozen=True, slots=True)
class Mismatch:
    """The key belongs to a request with another fingerprint."""

    key: str
    recorded: str
    given: str


@dataclass(frozen=True, slots=True)
class Corrupt:
    """The record cannot be read by this version; it was left as it is."""

    key: str
    header: str


@dataclass(frozen=True, slots=True)
class RecordInfo:
    """The header of a record, as ``peek`` and ``scan`` give it: everything but the result."""

    key: str
    """The idempotency key; for one of more than 200 bytes ``~`` and its digest (where ``scan`` found it)."""
    state: str
    """``running``; ``lapsed``, whose lease ended without an end of the run; ``done``, ``failed``, ``ended``,
    ``unknown``."""
    fence: int
    attempt: int
    retries: int
    holder: str
    fingerprint: str
    kept: bool
    finalised: bool
    remaining_seconds: float
    """What is left of a live lease; else 0."""
    age_seconds: float
    """Since the run ended, or since its lease did; 0 while it is live."""


Outcome = Claimed | Running | Done | Failed | Ended | Interrupted | Mismatch | Corrupt


def replayed(done: Done) -> Any:
    """The result of ``done``.

    Raises:
        ResultNotKeptError: There is none to replay.
    """
    if not done.kept:
        raise ResultNotKeptError(done.key)
    return done.result


def refuse(outcome: Outcome) -> NoReturn:
    """Raise the error that says why ``outcome`` gives neither a claim nor a result."""
    match outcome:
        case Running():
            raise InProgressError(outcome.key, outcome.holder, outcome.remaining_seconds)
        case Mismatch():
            raise IdempotencyMismatchError(outcome.key, outcome.recorded, outcome.given)
        case Failed():
            raise RecordedFailureError(outcome.key, outcome.error_type, outcome.message)
        case Interrupted():
            raise InterruptedRunError(outcome.key, outcome.fence, outcome.holder)
        case Corrupt():
            raise CorruptRecordError(outcome.key, outcome.header)
        case Ended():
            raise InterruptedRunError(outcome.key, outcome.fence, outcome.holder)
        case _:
            raise AssertionError(outcome)
