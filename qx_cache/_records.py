"""Idempotency records as values: what each operation sends, and how its reply is read. No I/O here."""

import json
from typing import Any

from qx_cache._call import Call, Script, command, script_call, text, word
from qx_cache.codecs import Codec
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.errors import (
    CacheValueError,
    ClaimLostError,
    CorruptRecordError,
    RecordedFailureError,
    ResultNotKeptError,
)
from qx_cache.keys import Keyspace, default_holder, digest, holder_text, owner_token
from qx_cache.lease import Lease, Renewal, boottime
from qx_cache.outcomes import Claimed, Corrupt, Done, Ended, Failed, Interrupted, Mismatch, Outcome, Running

CLAIM, FINISH, RENEW = Script("claim"), Script("finish"), Script("renew")
ABANDON, FINALISE, PUT = Script("abandon"), Script("finalise"), Script("put")
_HEADER_WORDS = 10


class Records:
    """Builds the calls of one store; shared by both twins."""

    def __init__(
        self,
        *,
        namespace: str,
        ttl_seconds: Duration,
        lease_seconds: Duration,
        codec: Codec,
        owner_prefix: str,
    ) -> None:
        self._keys = Keyspace(namespace)
        self._ttl_ms = milliseconds(seconds(ttl_seconds, "ttl_seconds"))
        self._lease_seconds = seconds(lease_seconds, "lease_seconds", at_least=0.05)
        self._lease_ms = milliseconds(self._lease_seconds)
        self._codec = codec
        self._owner_prefix = owner_prefix

    def claim(
        self,
        key: str,
        *,
        holder: str,
        fingerprint: str | None,
        retries: int,
        redelivery: bool,
        takeover: bool,
    ) -> Call[Outcome]:
        record = self._keys.record(key)
        owner = owner_token(self._owner_prefix)
        holder = holder_text(holder) if holder else default_holder(owner)
        given = "-" if fingerprint is None else digest(fingerprint.encode())
        args = (owner, holder, given, self._lease_ms, self._ttl_ms, retries, int(redelivery), int(takeover))
        sent_at = boottime()

        def claimed(reply: Any) -> Claimed:
            fence, attempt = int(reply[1]), int(reply[2])
            lease = Lease(
                name=key,
                fence=fence,
                ttl_seconds=self._lease_seconds,
                sent_at=sent_at,
                renewal=Renewal(RENEW, (record,), (owner, self._lease_ms, self._ttl_ms)),
                lost_error=ClaimLostError,
            )
            over = int(reply[3]) == 1
            return Claimed(key, owner, holder, given, fence, attempt, retries, over, lease)

        def parse(reply: Any) -> Outcome:
            return claimed(reply) if word(reply) == "claimed" else self._other(key, given, reply)

        return script_call(CLAIM, [record], args, parse)

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
        said = (claim.fence, claim.attempt, claim.retries, flags, claim.holder, claim.fingerprint)

        def parse(reply: Any) -> None:
            if word(reply) == "lost":
                claim.lease.lose("another holder took it over")
                raise ClaimLostError(claim.key, "another holder took it over, so nothing was recorded")
            claim.lease.end()

        args = (state, claim.owner, *said, ttl_ms, body)
        return script_call(FINISH, [self._keys.record(claim.key)], args, parse)

    def complete(
        self, claim: Claimed, result: Any, *, kept: bool, finalised: bool, ttl: Duration | None
    ) -> Call[None]:
        body = self._codec.encode(result) if kept else b""
        flags = f"{'f' if finalised else '-'}{'-' if kept else 'n'}--"
        return self.finish(claim, "done", body, flags=flags, ttl=ttl)

    def fail(self, claim: Claimed, error: BaseException, ttl: Duration | None) -> Call[None]:
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        body = json.dumps({"type": kind, "message": str(error)}).encode()
        return self.finish(claim, "failed", body, ttl=ttl)

    def abandon(self, claim: Claimed, *, counted: bool) -> Call[bool]:
        def parse(reply: Any) -> bool:
            claim.lease.end()
            return word(reply) != "lost"

        args = (claim.owner, claim.holder, int(counted))
        return script_call(ABANDON, [self._keys.record(claim.key)], args, parse)

    def abandon_lost(self, key: str, *, holder: str, owner_prefix: str) -> Call[bool]:
        args = (owner_prefix, holder_text(holder), 1)
        return script_call(ABANDON, [self._keys.record(key)], args, lambda reply: word(reply) == "abandoned")

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
        owner = owner_token(self._owner_prefix)
        args = (owner, default_holder(owner), ttl_ms, "f---", self._codec.encode(result))

        def parse(reply: Any) -> bool:
            if word(reply) == "corrupt":
                raise CorruptRecordError(key, text(reply[1]))
            return word(reply) == "stored"

        return script_call(PUT, [self._keys.record(key)], args, parse)

    def get(self, key: str, default: Any) -> Call[Any]:
        def parse(reply: bytes | None) -> Any:
            if reply is None:
                return default
            header, _, body = reply.partition(b"\n")
            words = header.split(b" ")
            if len(words) != _HEADER_WORDS or words[0] != b"1":
                raise CorruptRecordError(key, header[:60].decode(errors="replace"))
            if words[1] == b"failed":
                raise _failure(key, body)
            if words[1] != b"done":
                return default
            if words[6][1:2] == b"n":
                raise ResultNotKeptError(key)
            return self._codec.decode(body)

        return command(parse, "GET", self._keys.record(key))

    def _other(self, key: str, given: str, reply: Any) -> Outcome:  # noqa: PLR0911  # one a word
        name, rest = word(reply), reply[1:]
        match name:
            case "running":
                return Running(key, int(rest[0]) / 1000, int(rest[1]), int(rest[2]), text(rest[3]))
            case "done":
                return self._done(key, rest)
            case "failed":
                error = _failure(key, rest[5])
                told = (int(rest[0]), int(rest[1]), text(rest[4]), int(rest[2]) / 1000)
                return Failed(key, error.error_type, error.message, *told)
            case "ended":
                return Ended(key, int(rest[0]), int(rest[1]), text(rest[3]), int(rest[2]) / 1000)
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
            result=self._codec.decode(rest[5]) if kept else None,
            kept=kept,
            finalised=flags[0] == "f",
            fence=int(rest[0]),
            retries=int(rest[1]),
            holder=text(rest[4]),
            age_seconds=int(rest[2]) / 1000,
        )


def _failure(key: str, body: bytes) -> RecordedFailureError:
    try:
        told = json.loads(body)
        return RecordedFailureError(key, str(told["type"]), str(told["message"]))
    except (ValueError, KeyError, TypeError):
        raise CacheValueError(f"idempotency key {key!r}: the kept failure cannot be read") from None
