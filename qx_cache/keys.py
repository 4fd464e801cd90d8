"""The one place that spells Redis keys, owner tokens and digests.

A key reads ``<namespace>:<kind>:<layout>:{<name>}`` and perhaps a suffix. The braces are Redis
Cluster's hash tag: all keys of one name share a slot, and names spread over the slots.
"""

import base64
import hashlib
import os
import re
import secrets
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import quote, unquote

from qx_cache.errors import InvalidValueError

LAYOUT = 1
"""Raised when the meaning of a stored key or value changes, so that old and new never answer each other."""

LONGEST_NAME_BYTES = 200
LONGEST_HOLDER_BYTES = 128
_UNSAFE = re.compile(r"[{}%]|^~|[\x00-\x1f\x7f]")
_HOLDER_SAFE = ":~"  # besides letters, digits and "_.-", which quote() always leaves


def digest(data: bytes) -> str:
    """22 base64url characters of BLAKE2b-128; equal data, equal digest, on every machine."""
    raw = hashlib.blake2b(data, digest_size=16).digest()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def owner_token(prefix: str = "") -> str:
    """A new owner token of 22 base64url characters, beginning with ``prefix`` (at most 6 of them)."""
    return prefix[:6] + secrets.token_urlsafe(16)[len(prefix[:6]) :]


def process_prefix(host: str, parent_pid: int, pid: int) -> str:
    """The first 6 characters of every owner token that one worker process makes.

    A parent that sees its child die can compute the child's prefix, and so end that child's leases
    and no others (``IdempotencyStore.abandon_lost``).
    """
    return digest(f"{host}\0{parent_pid}\0{pid}".encode())[:6]


def holder_text(label: str) -> str:
    """A label made safe for a record's header: percent-encoded, at most 128 bytes, else its digest."""
    text = quote(label, safe=_HOLDER_SAFE)
    return text if len(text) <= LONGEST_HOLDER_BYTES else digest(label.encode())


def default_holder(owner: str) -> str:
    """Host, pid and the end of the owner token: who claims, where the caller gives no label."""
    return f"host:{_host()}:{os.getpid()}:{owner[-6:]}"


@cache
def _host() -> str:
    return quote(os.uname().nodename, safe=_HOLDER_SAFE)[:80]


@dataclass(frozen=True, slots=True)
class Keyspace:
    """The keys of one namespace, so that two apps on one Redis never answer each other.

    Args:
        namespace: Non-empty text; the first part of every key.

    Raises:
        InvalidValueError: The namespace is empty or no text.
    """

    namespace: str = "qx"
    _start: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be a namespace."""
        _require_text(self.namespace, "a namespace")
        object.__setattr__(self, "_start", _escaped(self.namespace))

    def cache(self, name: str) -> bytes:
        """The key of a cached value."""
        return self._key("cache", name)

    def record(self, name: str) -> bytes:
        """The key of an idempotency record."""
        return self._key("idem", name)

    def records(self) -> bytes:
        """What the keys of all records match, and no others: a pattern for SCAN."""
        start = re.sub(rb"([*?\[\]\\])", rb"\\\1", f"{self._start}:idem:{LAYOUT}:".encode())
        return start + b"{*}"

    @staticmethod
    def waited(record: bytes) -> bytes:
        """The key of the mark that somebody waits for the end of a record's run."""
        return record + b":m"

    @staticmethod
    def wake(record: bytes) -> bytes:
        """The key of the list that wakes who waits for the end of a record's run."""
        return record + b":w"

    def lock(self, name: str) -> bytes:
        """The key whose value is the token of a lock's holder."""
        return self._key("lock", name)

    def fence(self, name: str) -> bytes:
        """The key of the hash that remembers a lock's last fence, holder and released token."""
        return self._key("lock", name) + b":f"

    def waiting(self, name: str) -> bytes:
        """The key of the sorted set of those who wait for a lock."""
        return self._key("lock", name) + b":w"

    def baton(self, name: str) -> bytes:
        """The key of the list through which a lock is handed to who waits longest."""
        return self._key("lock", name) + b":b"

    def ended(self, name: str, run_id: str) -> bytes:
        """The key that remembers that the run ``run_id`` under a lock has ended."""
        return self._key("lock", name) + b":e:" + holder_text(run_id).encode()

    def queued(self, name: str) -> bytes:
        """The key that remembers whose work was published under a lock's name and has not begun."""
        return self._key("lock", name) + b":q"

    def _key(self, kind: str, name: str) -> bytes:
        return f"{self._start}:{kind}:{LAYOUT}:{{{_tag(name)}}}".encode()


def _tag(name: str) -> str:
    _require_text(name, "a key or lock name")
    data = name.encode()
    return _escaped(name) if len(data) <= LONGEST_NAME_BYTES else "~" + digest(data)


def _require_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidValueError(f"{what} must be non-empty text, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValueError(f"{what} must be encodable as UTF-8, not {value!r}") from None


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)


def name_of(key: bytes) -> str:
    """The name that a key was made of; for a name that was too long ``~`` and its digest."""
    tag = key[key.index(b"{") + 1 : key.index(b"}")]
    return unquote(tag.decode())
