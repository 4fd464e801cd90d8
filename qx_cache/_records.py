"""Idempotency records as values: what each operation sends, and how its reply is read. No I/O here."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

from qx_cache._call import Arg, Call, Script, command, script_call, text, timeout_text, word
from qx_cache.codecs import Codec, packed, unpacked
from qx_cache.durations import Duration, milliseconds, patience, seconds
from qx_cache.errors import (
    CacheValueError,
    ClaimLostError,
    CorruptRecordError,
    InvalidValueError,
    RecordedFailureError,
    ResultNotKeptError,
)
from qx_cache.keys import Keyspace, default_holder, digest, holder_text, name_of, owner_token
from qx_cache.lease import Lease, Renewal, boottime
from qx_cache.outcomes import (
    Claimed,
    Corrupt,
    Done,
    Ended,
    Failed,
    Interrupted,
    Mismatch,
    Outcome,
    RecordInfo,
    Running,
)

CLAIM, FINISH, RENEW = Script("claim"), Script("finish"), Script("renew")
ABANDON, FINALISE, PUT, PEEK = Script("abandon"), Script("finalise"), Script("put"), Script("peek")
SETTLE = Script("settle")
WAIT_MS = 6000
"""How long one who waits is believed to, from its last sign: longer than one wait at the server."""
_LONGEST_BLOCK_SECONDS = 5.0
_AFTER_THE_END_SECONDS = 0.01
MAX_RESULT_BYTES = 1 << 20
SCAN_KEYS = 200
STATES = ("running", "lapsed", "done", "failed", "ended", "unknown")
_HEADER_WORDS = 10
_LONGEST_MESSAGE = 10_000
"""Characters of a failure's message that are kept."""


class Wait:
    """How long to wait for the end of a run, in pauses that the server or the end of a lease cuts short.

    Args:
        wait_seconds: As the caller said it; None for as long as it takes.
    """

    def __init__(self, wait_seconds: Duration | None) -> None:
        self._limit = patience(wait_seconds)
        self._until = boottime() + self._limit

    def __bool__(self) -> bool:
        return self._limit > 0

    def pause(self, remaining_seconds: float) -> float:
        """The next pause, where the lease ends in ``remaining_seconds``; 0 when the time is over."""
        left = self._until - boottime()
        return max(0.0, min(left, remaining_seconds + _AFTER_THE_END_SECONDS, _LONGEST_BLOCK_SECONDS))


class Records:
    """Builds the calls of one store; shared by both twins."""

    def __init__(
        self,
        *,
        namespace: str,
        ttl_seconds: Duration,
        lease_seconds: Duration,
        codec: Codec,
        max_result_bytes: int,
        owner_prefix: str,
    ) -> None:
        if type(max_result_bytes) is not int or max_result_bytes < 1:
            raise InvalidValueError(f"max_result_bytes must be a whole number above 0, not {max_result_bytes!r}")
        self._keys = Keyspace(namespace)
        self._ttl_ms = milliseconds(seconds(ttl_seconds, "ttl_seconds"))
        self._lease_seconds = seconds(lease_seconds, "lease_seconds", at_least=0.05)
        self._lease_ms = milliseconds(self._lease_seconds)
        self._codec = codec
        self._max_result_bytes = max_result_bytes
        self._owner_prefix = owner_prefix

    def keys(self, key: str) -> tuple[bytes, bytes, bytes]:
        """Record, mark and wake list; see claim.lua."""
        return self._beside(self._keys.record(key))

    def _of(self, claim: Claimed) -> tuple[bytes, bytes, bytes]:
        return self._beside(claim.lease.renewal.keys[0])

    def _beside(self, record: bytes) -> tuple[bytes, bytes, bytes]:
        return record, self._keys.waited(record), self._keys.wake(record)

    def claim(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        retries: int,
        redelivery: bool,
        takeover: bool,
        owner: str = "",
        waiting: bool = False,
    ) -> Call[Outcome]:
        keys = self.keys(key)
        owner = owner or self.owner()
        holder = _holder(holder, owner)
        given = "-" if fingerprint is None else digest(fingerprint.encode())
        args: tuple[Arg, ...] = (owner, holder, given, self._lease_ms, self._ttl_ms)
        if retries or redelivery or waiting or not takeover:
            args = (*args, retries, int(redelivery), int(takeover), WAIT_MS if waiting else 0)
        sent_at = boottime()

        def claimed(reply: Any) -> Claimed:
            fence, attempt = int(reply[1]), int(reply[2])
            lease = Lease(
                name=key,
                fence=fence,
                ttl_seconds=self._lease_seconds,
                sent_at=sent_at,
                renewal=Renewal(RENEW, keys[:1], (owner, self._lease_ms, self._ttl_ms)),
                lost_error=ClaimLostError,
            )
            over = int(reply[3]) == 1
            return Claimed(key, owner, holder, given, fence, attempt, retries, over, lease)

        def parse(reply: Any) -> Outcome:
            return claimed(reply) if word(reply) == "claimed" else self._other(key, given, reply)

        return script_call(CLAIM, keys, args, parse)

    def finish(
        self,
        claim: Claimed,
        state: str,
        body: bytes = b"",
        *,
        flags: str = "----",
        ttl: Duration | None = None,
    ) -> Call[None]:
        ttl_ms = self._ttl_ms if ttl is None else milliseconds(seconds(ttl, "ttl_seconds"))
        told = f"{flags} {claim.owner} {claim.holder} {claim.fingerprint}"
        before, after = f"1 {state} {claim.fence} ", f" {claim.attempt} {claim.retries} {told}\n"

        def parse(reply: Any) -> None:
            if word(reply) == "lost":
                claim.lease.lose("another holder took it over")
                raise ClaimLostError(claim.key, "another holder took it over, so nothing was recorded")
            claim.lease.end()

        args = (state, claim.owner, ttl_ms, before, after, body)
        return script_call(FINISH, self._of(claim), args, parse)

    def complete(
        self,
        claim: Claimed,
        result: Any,
        *,
        kept: bool,
        finalised: bool,
        ttl: Duration | None,
        mirrored: bool = False,
    ) -> tuple[Call[None], bool]:
        """The call, and whether it keeps the result."""
        flag, body = packed(self._codec, result, self._max_result_bytes) if kept else ("n", b"")
        flags = _flags(flag, finalised=finalised, mirrored=mirrored)
        call = self.finish(claim, "done", body, flags=flags, ttl=ttl)
        return call, flag != "n"

    def fail(self, claim: Claimed, error: BaseException, ttl: Duration | None) -> Call[None]:
        return self.finish(claim, "failed", _told(error), ttl=ttl)

    def release(self, claim: Claimed, failure: BaseException | None) -> Call[None]:
        return self.finish(claim, "ended", b"" if failure is None else _told(failure))

    def abandon(self, claim: Claimed, *, counted: bool) -> Call[bool]:
        def parse(reply: Any) -> bool:
            claim.lease.end()
            return word(reply) != "lost"

        args = (claim.owner, claim.holder, int(counted))
        return script_call(ABANDON, self._of(claim), args, parse)

    def owner(self) -> str:
        """A new token for a claim."""
        return owner_token(self._owner_prefix)

    def undo(self, key: str, *, holder: str, owner: str) -> Call[None]:
        """Hand a claim back whose answer never came."""
        args = (owner, _holder(holder, owner), 0)
        return script_call(ABANDON, self.keys(key), args, lambda _: None)

    def abandon_lost(self, key: str, *, holder: str, owner_prefix: str) -> Call[bool]:
        args = (owner_prefix, holder_text(holder), 1)
        return script_call(ABANDON, self.keys(key), args, lambda reply: word(reply) == "abandoned")

    def finalise(self, key: str, fence: int) -> Call[bool]:
        return script_call(FINALISE, [self._keys.record(key)], (fence,), lambda reply: word(reply) == "finalised")

    def renew(self, claim: Claimed) -> Call[bool]:
        sent_at, renewal = boottime(), claim.lease.renewal

        def parse(reply: Any) -> bool:
            if word(reply) == "renewed":
                claim.lease.renewed(sent_at)
                return True
            claim.lease.lose("another holder took it over, or it has ended")
            return False

        return script_call(RENEW, renewal.keys, renewal.args, parse)

    def put(self, key: str, result: Any, *, ttl: Duration | None) -> Call[bool]:
        ttl_ms = self._ttl_ms if ttl is None else milliseconds(seconds(ttl, "ttl_seconds"))
        owner = self.owner()
        flag, body = packed(self._codec, result, self._max_result_bytes)
        args = (owner, default_holder(owner), ttl_ms, _flags(flag, finalised=True), body)

        def parse(reply: Any) -> bool:
            if word(reply) == "corrupt":
                raise CorruptRecordError(key, text(reply[1]))
            return word(reply) == "stored"

        return script_call(PUT, self.keys(key), args, parse)

    def get(self, key: str, default: Any) -> Call[Any]:
        def parse(reply: bytes | None) -> Any:
            return self.result(key, reply, default)

        return command(parse, "GET", self._keys.record(key))

    def await_end(self, key: str) -> Call[RecordInfo | bytes | None]:
        """Who is at work, to be waited for; or what is stored, for ``result``."""

        def parse(reply: Any) -> RecordInfo | bytes | None:
            if word(reply) == "absent":
                return None
            stored: bytes = reply[1]
            info = _info(key, stored.partition(b"\n")[0], now_ms=int(reply[2]))
            return info if info.state == "running" else stored

        return script_call(PEEK, self.keys(key)[:2], (WAIT_MS,), parse)

    def look(self, key: str) -> Call[Outcome | None]:
        def parse(reply: Any) -> Outcome | None:
            return None if word(reply) == "absent" else self._seen(key, reply[1], int(reply[2]))

        return script_call(PEEK, self.keys(key)[:2], (0,), parse)

    def settle(
        self,
        key: str,
        fence: int,
        state: str,
        body: bytes = b"",
        *,
        flags: str = "----",
        ttl: Duration | None = None,
    ) -> Call[bool]:
        """Write what became of the run ``fence`` that is over; state ``-`` forgets it."""
        ttl_ms = self._ttl_ms if ttl is None else milliseconds(seconds(ttl, "ttl_seconds"))

        def parse(reply: Any) -> bool:
            return word(reply) == "settled"

        return script_call(SETTLE, self.keys(key), (fence, state, ttl_ms, flags, body), parse)

    def resolve(self, key: str, fence: int, result: Any, *, ttl: Duration | None) -> Call[bool]:
        flag, body = packed(self._codec, result, self._max_result_bytes)
        return self.settle(key, fence, "done", body, flags=_flags(flag, finalised=False), ttl=ttl)

    def peek(self, key: str) -> Call[RecordInfo | None]:
        return self._peek(key, (self._keys.record(key),))

    @staticmethod
    def _peek(key: str, keys: Sequence[bytes]) -> Call[RecordInfo | None]:
        def parse(reply: Any) -> RecordInfo | None:
            return None if word(reply) == "absent" else _info(key, reply[1], now_ms=int(reply[2]))

        return script_call(PEEK, keys, (), parse)

    def wake(self, key: str, block_seconds: float) -> Call[None]:
        """Wait for the end of a run that is waited for; the element stays for all others who wait."""
        wake = self._keys.wake(self._keys.record(key))
        words = ("BLMOVE", wake, wake, "LEFT", "RIGHT", timeout_text(block_seconds))
        return command(lambda _: None, *words)

    def pattern(self) -> bytes:
        """What all records of the namespace match, for SCAN."""
        return self._keys.records()

    def peeks(self, found: Sequence[bytes | str]) -> list[Call[RecordInfo | None]]:
        """A look at each key that a scan has found."""
        names = [name_of(key if isinstance(key, bytes) else key.encode()) for key in found]
        keys = [(key,) if isinstance(key, bytes) else (key.encode(),) for key in found]
        return [self._peek(name, key) for name, key in zip(names, keys, strict=True)]

    @staticmethod
    def wanted(state: str | None, older_than: Duration) -> Callable[[Any], list[RecordInfo]]:
        """Sorts out what a scan is to show."""
        if state is not None and state not in STATES:
            raise InvalidValueError(f"state must be one of {', '.join(STATES)}, not {state!r}")
        age = seconds(older_than, "older_than", at_least=0)
        return lambda infos: [
            info
            for info in infos
            if isinstance(info, RecordInfo) and state in {None, info.state} and info.age_seconds >= age
        ]

    def _seen(self, key: str, stored: bytes, now_ms: int) -> Outcome:
        """What a look finds, as a claim would tell it."""
        header, _, body = stored.partition(b"\n")
        try:
            info = _info(key, header, now_ms=now_ms)
        except CorruptRecordError:
            return Corrupt(key, header[:60].decode(errors="replace"))
        holder = holder_text(info.holder)
        match info.state:
            case "running":
                return Running(key, info.remaining_seconds, info.fence, info.retries, holder)
            case "done":
                flags = text(header.split(b" ")[6])
                rest = (info.fence, info.retries, info.age_seconds * 1000, flags, holder, body)
                return self._done(key, rest)
            case "failed":
                return _failed(key, body, info.fence, info.retries, holder, info.age_seconds)
            case "ended":
                return _ended(key, info.finalised, body, info.fence, info.retries, holder, info.age_seconds)
            case _:
                return Interrupted(key, info.fence, info.attempt, holder)

    def result(self, key: str, stored: bytes | None, default: Any) -> Any:
        """What a stored record says came of the work; ``default`` where it says nothing."""
        if stored is None:
            return default
        header, _, body = stored.partition(b"\n")
        words = header.split(b" ")
        if len(words) != _HEADER_WORDS or words[0] != b"1":
            raise CorruptRecordError(key, header[:60].decode(errors="replace"))
        if words[1] == b"failed":
            raise _failure(key, body)
        if words[1] != b"done":
            return default
        if words[6][1:2] == b"n":
            raise ResultNotKeptError(key)
        return unpacked(self._codec, words[6][2:3] == b"z", body)

    def _other(self, key: str, given: str, reply: Any) -> Outcome:  # noqa: PLR0911  # one a word
        name, rest = word(reply), reply[1:]
        match name:
            case "running":
                return Running(key, int(rest[0]) / 1000, int(rest[1]), int(rest[2]), text(rest[3]))
            case "done":
                return self._done(key, rest)
            case "failed":
                return _failed(key, rest[5], int(rest[0]), int(rest[1]), text(rest[4]), int(rest[2]) / 1000)
            case "ended":
                told = (int(rest[0]), int(rest[1]), text(rest[4]), int(rest[2]) / 1000)
                return _ended(key, text(rest[3])[0] == "f", rest[5], *told)
            case "interrupted":
                return Interrupted(key, int(rest[0]), int(rest[1]), text(rest[2]))
            case "mismatch":
                return Mismatch(key, text(rest[0]), given)
            case _:
                return Corrupt(key, rest[0].decode(errors="replace"))

    def _done(self, key: str, rest: Any) -> Done:
        flags = text(rest[3])
        kept = flags[1] != "n"
        return Done(
            key=key,
            result=unpacked(self._codec, flags[2] == "z", rest[5]) if kept else None,
            kept=kept,
            finalised=flags[0] == "f",
            fence=int(rest[0]),
            retries=int(rest[1]),
            holder=text(rest[4]),
            age_seconds=int(rest[2]) / 1000,
            mirrored=flags[3] == "m",
        )


def _holder(label: str, owner: str) -> str:
    return holder_text(label) if label else default_holder(owner)


def _flags(body_flag: str, *, finalised: bool, mirrored: bool = False) -> str:
    kept, compressed = ("n", "-") if body_flag == "n" else ("-", body_flag)
    return f"{'f' if finalised else '-'}{kept}{compressed}{'m' if mirrored else '-'}"


def _info(key: str, header: bytes, *, now_ms: int) -> RecordInfo:
    words = header.decode(errors="replace").split(" ")
    try:
        version, state, fence, time_ms, attempt, retries, flags, _, holder, fingerprint = words
        if version != "1":
            raise CorruptRecordError(key, header[:60].decode(errors="replace"))
        left = (int(time_ms) - now_ms) / 1000
        return RecordInfo(
            key=key,
            state="lapsed" if state == "running" and left <= 0 else state,
            fence=int(fence),
            attempt=int(attempt),
            retries=int(retries),
            holder=unquote(holder),
            fingerprint=fingerprint,
            kept=flags[1] != "n",
            finalised=flags[0] == "f",
            remaining_seconds=left if state == "running" and left > 0 else 0.0,
            age_seconds=max(0.0, -left),
        )
    except (ValueError, IndexError):
        raise CorruptRecordError(key, header[:60].decode(errors="replace")) from None


def _told(error: BaseException) -> bytes:
    """The body of a record that tells a failure."""
    try:
        message = str(error)[:_LONGEST_MESSAGE]
    except Exception:  # noqa: BLE001  # its own fault must not keep the end from being recorded
        message = "(its str() fails)"
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    return json.dumps({"type": kind, "message": message}).encode()


def _failed(key: str, body: bytes, *told: Any) -> Failed:
    error = _failure(key, body)
    return Failed(key, error.error_type, error.message, *told)


def _ended(key: str, finalised: bool, body: bytes, *told: Any) -> Ended:  # noqa: FBT001
    ended = Ended(key, *told)
    return ended if finalised or not body else replace(ended, failure=_failed(key, body, *told))


def _failure(key: str, body: bytes) -> RecordedFailureError:
    try:
        told = json.loads(body)
        return RecordedFailureError(key, str(told["type"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        raise CacheValueError(f"idempotency key {key!r}: the kept failure cannot be read") from None
