"""URL shapes, and the clients that are made from them or beside a client of the user's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit, urlunsplit

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.retry import Retry

from qx_cache import embedded
from qx_cache._run import AnyClient, AsyncClient, SyncClient
from qx_cache.errors import InvalidValueError
from qx_cache.settings import CacheSettings

B = TypeVar("B")
SCHEMES = ("redis", "rediss", "unix", "redis+socket", "valkey", "valkeys", "embedded")
_LATER = ("sentinel", "redis+sentinel", "redis-sentinel", "redis+cluster", "rediss+cluster")
_CERT_REQS = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}
_RETRIES = 3
CONNECT_SECONDS = 5.0
_MANY = 2**31


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that redis-py takes, and the server that has to live as long as its clients (``embedded://``)."""

    url: str
    server: embedded.EmbeddedServer | None = None


def resolve(url: str) -> Target:
    """Turn any accepted URL into one that redis-py takes.

    Raises:
        InvalidValueError: Unknown scheme; the message lists the accepted ones and shows no credentials.
    """
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme.lower(), parts.port
    except ValueError:
        raise InvalidValueError("the Redis URL has no readable host and port; see the accepted shapes") from None
    if scheme in _LATER:
        raise InvalidValueError(
            f"{scheme}:// URLs are not supported by this version yet; use one of {_accepted()}"
        )
    if scheme not in SCHEMES:
        raise InvalidValueError(
            f"the Redis URL begins with {scheme or '(no scheme)'}://, not with one of {_accepted()}"
        )
    if scheme == "embedded":
        server = embedded.start_server()
        return Target(server.url, server)
    if scheme in {"unix", "redis+socket"}:
        return Target(_socket_url(parts))
    tls = scheme in {"rediss", "valkeys"}
    query = [(key, _CERT_REQS.get(value, value)) for key, value in parse_qsl(parts.query)]
    return Target(urlunsplit(parts._replace(scheme="rediss" if tls else "redis", query=urlencode(query))))


def open_async(settings: CacheSettings) -> AsyncClient:
    """An async client for ``settings``; nothing is sent yet."""
    target = resolve(settings.url.get_secret_value())
    retry = AsyncRetry(ExponentialWithJitterBackoff(base=0.01, cap=0.5), _RETRIES)
    client: AsyncClient = _from_url(redis.asyncio.Redis, target, {**_options(settings), "retry": retry})
    return client


def open_sync(settings: CacheSettings) -> SyncClient:
    """Blocking twin of ``open_async``."""
    target = resolve(settings.url.get_secret_value())
    retry = Retry(ExponentialWithJitterBackoff(base=0.01, cap=0.5), _RETRIES)
    client: SyncClient = _from_url(redis.Redis, target, {**_options(settings), "retry": retry})
    return client


def waiting_sibling(client: SyncClient) -> SyncClient:
    """A client for calls that the server answers late, with a connection for each that waits."""
    return belonging(client, "waiting", lambda origin: sibling(origin, timeout_seconds=CONNECT_SECONDS))


def sibling(client: AnyClient, *, timeout_seconds: float) -> SyncClient:
    """A blocking client to the same server: own pool, short timeouts, no retries."""
    pool = client.connection_pool
    kind = _SYNC_TWINS.get(pool.connection_class, pool.connection_class)
    options = {**_kept(pool), **_impatient(timeout_seconds), "retry": Retry(NoBackoff(), 0)}
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **options))


def async_sibling(client: AsyncClient, *, timeout_seconds: float) -> AsyncClient:
    """Asyncio twin of ``sibling``; the connection belongs to the running loop."""
    pool = client.connection_pool
    options = {**_kept(pool), **_impatient(timeout_seconds), "retry": AsyncRetry(NoBackoff(), 0)}
    made = redis.asyncio.ConnectionPool(connection_class=pool.connection_class, **options)
    return redis.asyncio.Redis.from_pool(made)


def belonging(client: Any, name: str, make: Callable[[Any], B]) -> B:
    """What belongs to ``client`` under ``name``, made on first use; it goes when the client goes."""
    belongings: dict[str, B] = client.__dict__.setdefault("_qx_cache", {})
    found = belongings.get(name)
    return belongings.setdefault(name, make(client)) if found is None else found


_SYNC_TWINS: Mapping[type[Any], type[Any]] = {
    redis.asyncio.Connection: redis.Connection,
    redis.asyncio.SSLConnection: redis.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
_OWN = {"retry", "retry_on_error", "parser_class", "maint_notifications_config", "event_dispatcher"}
"""What redis-py made for the first client alone."""


def _kept(pool: Any) -> dict[str, Any]:
    return {key: value for key, value in pool.connection_kwargs.items() if key not in _OWN}


def _impatient(timeout_seconds: float) -> dict[str, Any]:
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        "max_connections": _MANY,
    }


def _from_url(kind: type[Any], target: Target, options: Mapping[str, Any]) -> Any:
    try:
        client = kind.from_url(target.url, **options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # not opened: shows whether the options are known
    except (ValueError, TypeError, redis.RedisError):
        raise InvalidValueError(
            "the Redis URL cannot be read: it should look like redis://[user:password@]host:port/db, "
            "with only options that redis-py knows"
        ) from None
    client.connection_pool.qx_server = target.server  # the server lives while its clients do
    return client


def _options(settings: CacheSettings) -> dict[str, Any]:
    return {
        "max_connections": settings.max_connections,
        "socket_timeout": settings.socket_timeout_seconds,
        "socket_connect_timeout": settings.socket_connect_timeout_seconds,
        "health_check_interval": settings.health_check_interval_seconds,
    }


def _socket_url(parts: SplitResult) -> str:
    query = [("db" if key == "virtual_host" else key, value.lstrip("/")) for key, value in parse_qsl(parts.query)]
    tail = f"?{urlencode(query)}" if query else ""
    return f"unix://{parts.netloc}{parts.path}{tail}"


def _accepted() -> str:
    return ", ".join(f"{scheme}://" for scheme in SCHEMES)
