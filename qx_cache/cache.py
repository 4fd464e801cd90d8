"""A thin typed cache: JSON values, a TTL on every key."""

from typing import Any, TypeVar, overload

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json

from qx_cache._call import Call, command
from qx_cache._run import AsyncClient, SyncClient, arun, require_async, require_sync, run
from qx_cache.durations import Duration, milliseconds, seconds
from qx_cache.errors import CacheValueError
from qx_cache.keys import Keyspace

T = TypeVar("T")


class _Calls:
    """What both twins send, and how they read it."""

    def __init__(self, namespace: str, ttl_seconds: Duration) -> None:
        self._keys = Keyspace(namespace)
        self._ttl_seconds = seconds(ttl_seconds, "ttl_seconds")

    def get(self, key: str, kind: Any, default: Any) -> Call[Any]:
        def parse(reply: bytes | None) -> Any:
            return default if reply is None else _decoded(key, reply, kind)

        return command(parse, "GET", self._keys.cache(key))

    def set(self, key: str, value: Any, ttl_seconds: Duration | None) -> Call[None]:
        ttl = self._ttl_seconds if ttl_seconds is None else seconds(ttl_seconds, "ttl_seconds")
        words = (self._keys.cache(key), _encoded(key, value), "PX", milliseconds(ttl))
        return command(lambda _: None, "SET", *words)

    def delete(self, key: str) -> Call[bool]:
        return command(lambda reply: int(reply) == 1, "DEL", self._keys.cache(key), binary=False)

    def exists(self, key: str) -> Call[bool]:
        return command(lambda reply: int(reply) == 1, "EXISTS", self._keys.cache(key), binary=False)


class Cache:
    """Values under keys, for a time.

    Values travel as JSON (``pydantic_core``), so models, dataclasses, dates and UUIDs are welcome, and what
    comes back is validated against the type that you ask for.

    Args:
        client: A ``redis.asyncio`` client; it stays yours to close.
        ttl_seconds: Life of a value where ``set`` names none: seconds, or a ``timedelta``.
        namespace: First part of every key; change it to share a Redis.

    Raises:
        WrongClientError: A blocking client; use ``SyncCache``.

    Example:
        ```python
        cache = Cache(client, ttl_seconds=300)
        await cache.set("user:7", User(name="Ada"))
        user = await cache.get("user:7", User)
        ```
    """

    def __init__(self, client: AsyncClient, *, ttl_seconds: Duration = 300, namespace: str = "qx") -> None:
        require_async(client, "Cache")
        self._client = client
        self._calls = _Calls(namespace, ttl_seconds)

    @overload
    async def get(self, key: str, kind: type[T], default: T | None = None) -> T | None: ...
    @overload
    async def get(self, key: str, kind: None = None, default: Any = None) -> Any: ...
    async def get(self, key: str, kind: Any = None, default: Any = None) -> Any:
        """The value of ``key``, or ``default``.

        Args:
            key: Non-empty text.
            kind: Any type that pydantic knows; plain JSON types when left out.
            default: What to return when there is no value; tells a stored None from absence.

        Raises:
            CacheValueError: What is stored is not a ``kind``; names key and type.
            StoreError: Redis gave no usable answer.
        """
        return await arun(self._client, self._calls.get(key, kind, default))

    async def set(self, key: str, value: Any, *, ttl_seconds: Duration | None = None) -> None:
        """Store ``value`` for ``ttl_seconds``, in place of what was there.

        Raises:
            CacheValueError: The value cannot be written as JSON; names key and type. Nothing was sent.
            StoreError: Redis gave no usable answer; safe to repeat.
        """
        await arun(self._client, self._calls.set(key, value, ttl_seconds))

    async def delete(self, key: str) -> bool:
        """Remove ``key``; True if it was there."""
        return await arun(self._client, self._calls.delete(key))

    async def exists(self, key: str) -> bool:
        """True if there is a value, of whatever type."""
        return await arun(self._client, self._calls.exists(key))


class SyncCache:
    """Blocking twin of ``Cache``."""

    def __init__(self, client: SyncClient, *, ttl_seconds: Duration = 300, namespace: str = "qx") -> None:
        require_sync(client, "SyncCache")
        self._client = client
        self._calls = _Calls(namespace, ttl_seconds)

    @overload
    def get(self, key: str, kind: type[T], default: T | None = None) -> T | None: ...
    @overload
    def get(self, key: str, kind: None = None, default: Any = None) -> Any: ...
    def get(self, key: str, kind: Any = None, default: Any = None) -> Any:
        """Blocking twin of ``Cache.get``."""
        return run(self._client, self._calls.get(key, kind, default))

    def set(self, key: str, value: Any, *, ttl_seconds: Duration | None = None) -> None:
        """Blocking twin of ``Cache.set``."""
        run(self._client, self._calls.set(key, value, ttl_seconds))

    def delete(self, key: str) -> bool:
        """Blocking twin of ``Cache.delete``."""
        return run(self._client, self._calls.delete(key))

    def exists(self, key: str) -> bool:
        """Blocking twin of ``Cache.exists``."""
        return run(self._client, self._calls.exists(key))


def _encoded(key: str, value: Any) -> bytes:
    try:
        return to_json(value)
    except (PydanticSerializationError, ValueError):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CacheValueError(f"cache key {key!r}: a {kind} cannot be written as JSON") from None


def _decoded(key: str, data: bytes, kind: Any) -> Any:
    try:
        return from_json(data) if kind is None else TypeAdapter(kind).validate_json(data)
    except (ValidationError, ValueError):
        name = "JSON" if kind is None else getattr(kind, "__qualname__", repr(kind))
        raise CacheValueError(f"cache key {key!r}: what is stored there is not a {name}") from None
