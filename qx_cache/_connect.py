"""Clients that are made from a URL, or beside a client of the user's: for one server, Sentinel and Cluster."""

from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, cast

import redis
import redis.asyncio
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.cluster import ClusterNode as AsyncClusterNode
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.cluster import ClusterNode
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from qx_cache import _urls, embedded
from qx_cache._run import AnyClient, AsyncClient, AsyncServer, SyncClient, SyncServer, translated
from qx_cache.errors import InvalidValueError
from qx_cache.settings import CacheSettings

B = TypeVar("B")
CONNECT_SECONDS = 5.0
_MANY = 2**31
_IDENTITY = {
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name", "protocol",
    "encoding", "encoding_errors", "decode_responses", "socket_keepalive", "socket_keepalive_options",
}  # fmt: skip
"""What says where a connection goes and as whom; all ``ssl_…`` options belong to it as well."""


_ELSEWHERE: Mapping[str, AbstractSet[str]] = {
    "single": frozenset(),
    "sentinel": {"host", "port", "path"},
    "cluster": {"host", "port", "path", "db"},
}
"""What each node has for itself, or a cluster does not have."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How patient a client is, and how many connections it opens."""

    options: Mapping[str, Any]
    retries: int = 0

    @classmethod
    def of(cls, settings: CacheSettings, wishes: Mapping[str, Any]) -> "Manner":
        """What the settings say, and the URL above them."""
        said = {
            "socket_timeout": settings.socket_timeout_seconds,
            "socket_connect_timeout": settings.socket_connect_timeout_seconds,
            "max_connections": settings.max_connections,
            "health_check_interval": settings.health_check_interval_seconds,
        }
        return cls({**said, **wishes}, retries=3)

    @classmethod
    def hasty(cls, timeout_seconds: float, retries: int = 0) -> "Manner":
        """For the package's own connections: as many as needed, each answer within ``timeout_seconds``."""
        patience = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
        return cls({**patience, "max_connections": _MANY}, retries)

    def backoff(self) -> Any:
        return ExponentialWithJitterBackoff(base=0.01, cap=0.5) if self.retries else NoBackoff()


@dataclass(frozen=True, slots=True)
class Route:
    """Where a server is found, and what a connection to it says: all that a further client needs to know.

    Args:
        kind: One server, a master that sentinels know, or a cluster.
        connection: The blocking connection class.
        identity: What connections take to arrive, credentials among it.
        nodes: The sentinels, or the first nodes of a cluster.
        service: The name under which the sentinels know the master.
        sentinel: What connections to the sentinels take.
        wishes: Further options of a URL: timeouts, the size of the pool.
        server: The server that has to live as long as its clients (``embedded://``).
    """

    kind: Literal["single", "sentinel", "cluster"]
    connection: type[Any]
    identity: Mapping[str, Any]
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    sentinel: Mapping[str, Any] = field(default_factory=dict)
    wishes: Mapping[str, Any] = field(default_factory=dict)
    server: embedded.EmbeddedServer | None = None

    @property
    def tls(self) -> bool:
        return issubclass(self.connection, redis.SSLConnection)


def route_to(url: str) -> Route:
    """Read a URL; ``embedded://`` starts a server.

    Raises:
        InvalidValueError: It cannot be right; the message shows no credentials.
    """
    place = _urls.read(url)
    if place.kind == "embedded":
        server = embedded.start_server()
        return replace(route_to(server.url), server=server)
    nodes = tuple((host, int(port)) for host, _, port in (node.rpartition(":") for node in place.nodes))
    connection, options = _parsed(place.url)
    sentinel: dict[str, Any] = {}
    if place.kind == "sentinel":
        watched, sentinel = _parsed(place.sentinel_url)
        sentinel = {**_identity(sentinel), "ssl": issubclass(watched, redis.SSLConnection)}
    wishes = {name: value for name, value in options.items() if name not in _identity(options)}
    identity = _identity(options, without=_ELSEWHERE[place.kind])
    return Route(place.kind, connection, identity, nodes, place.service, sentinel, wishes)


def route_of(client: AnyClient) -> Route:
    """How ``client`` was told to reach its server."""
    if isinstance(client, redis.RedisCluster):
        options = dict(client.nodes_manager.connection_kwargs)
        connection = redis.SSLConnection if options.get("ssl") else redis.Connection
        return Route("cluster", connection, _identity(options, without=_ELSEWHERE["cluster"]), _starts(client))
    if isinstance(client, redis.asyncio.RedisCluster):
        connection = _SYNC_TWINS[client.connection_kwargs["connection_class"]]
        identity = _identity(client.connection_kwargs, without=_ELSEWHERE["cluster"])
        return Route("cluster", connection, identity, _starts(client))
    pool: Any = client.connection_pool
    kind, server = pool.connection_class, getattr(pool, "qx_server", None)
    manager = getattr(pool, "sentinel_manager", None)
    if manager is None:
        return Route("single", _SYNC_TWINS.get(kind, kind), _identity(pool.connection_kwargs), server=server)
    known = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
    nodes = tuple((str(one["host"]), int(one["port"])) for one in known)
    tls = issubclass(kind, redis.SSLConnection | redis.asyncio.SSLConnection)
    connection = redis.SSLConnection if tls else redis.Connection
    sentinel = {**_identity(manager.sentinel_kwargs), "ssl": bool(manager.sentinel_kwargs.get("ssl"))}
    identity = _identity(pool.connection_kwargs, without=_ELSEWHERE["sentinel"])
    return Route("sentinel", connection, identity, nodes, pool.service_name, sentinel)


def open_sync(route: Route, manner: Manner) -> SyncServer:
    """A blocking client; only for a cluster anything is sent at once.

    Its type is that of a client of one server, as users write it; a cluster's has all that is used here.

    Raises:
        StoreUnavailableError: No node of a cluster answered.
    """
    retry = Retry(manner.backoff(), manner.retries)
    options = {**route.identity, **manner.options}
    if route.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in route.nodes]  # type: ignore[no-untyped-call]
        with translated(_spelt(route), "CLUSTER SLOTS"):
            made = redis.RedisCluster(startup_nodes=nodes, retry=retry, ssl=route.tls, **options)
        return cast("SyncServer", made)
    pool: Any
    if route.kind == "sentinel":
        manager = Sentinel(route.nodes, sentinel_kwargs=_to_sentinels(route, manner, Retry(NoBackoff(), 0)))  # type: ignore[no-untyped-call]
        pool = _SyncSentinelPool(route.service, manager, ssl=route.tls, retry=retry, **options)  # type: ignore[no-untyped-call]
    else:
        pool = redis.ConnectionPool(connection_class=route.connection, retry=retry, **options)
    pool.qx_server = route.server  # the server lives while its clients do
    return redis.Redis.from_pool(pool)


def open_async(route: Route, manner: Manner) -> AsyncServer:
    """Asyncio twin of ``open_sync``; nothing is sent yet."""
    retry = AsyncRetry(manner.backoff(), manner.retries)
    options = {**route.identity, **manner.options}
    if route.kind == "cluster":
        nodes = [AsyncClusterNode(host, port) for host, port in route.nodes]
        made = redis.asyncio.RedisCluster(startup_nodes=nodes, retry=retry, ssl=route.tls, **options)
        return cast("AsyncServer", made)
    pool: Any
    if route.kind == "sentinel":
        to_sentinels = _to_sentinels(route, manner, AsyncRetry(NoBackoff(), 0))
        manager = async_sentinel.Sentinel(route.nodes, sentinel_kwargs=to_sentinels)  # type: ignore[no-untyped-call]
        pool = _AsyncSentinelPool(route.service, manager, ssl=route.tls, retry=retry, **options)  # type: ignore[no-untyped-call]
    else:
        kind = _ASYNC_TWINS.get(route.connection, route.connection)
        pool = redis.asyncio.ConnectionPool(connection_class=kind, retry=retry, **options)
    pool.qx_server = route.server
    return redis.asyncio.Redis.from_pool(pool)


def sibling(client: AnyClient, *, timeout_seconds: float) -> SyncServer:
    """A blocking client to the same server: own pool, short timeouts, no retries but for what a cluster moved.

    Raises:
        StoreUnavailableError: No node of a cluster answered.
    """
    route = route_of(client)
    return open_sync(route, Manner.hasty(timeout_seconds, int(route.kind == "cluster")))


def async_sibling(client: AsyncClient, *, timeout_seconds: float) -> AsyncServer:
    """Asyncio twin of ``sibling``; the connection belongs to the running loop."""
    route = route_of(client)
    return open_async(route, Manner.hasty(timeout_seconds, int(route.kind == "cluster")))


def waiting_client(client: SyncClient, key: bytes) -> SyncServer:
    """A client for calls on ``key`` that the server answers late, with a connection for each that waits."""
    manner = Manner.hasty(CONNECT_SECONDS)
    if not isinstance(client, redis.RedisCluster):
        return belonging(client, "waiting", lambda origin: open_sync(route_of(origin), manner))
    with translated(client, "wait"):
        node = client.get_node_from_key(key)  # type: ignore[no-untyped-call]
        origin = client.get_redis_connection(node)
    return belonging(client, f"waiting {node.name}", lambda _: open_sync(route_of(origin), manner))


def async_waiting_client(client: AsyncClient, key: bytes) -> AsyncServer:
    """Asyncio twin of ``waiting_client``; the caller closes it."""
    manner = Manner.hasty(CONNECT_SECONDS)
    if not isinstance(client, redis.asyncio.RedisCluster):
        return open_async(route_of(client), manner)
    with translated(client, "wait"):
        node: Any = cast("Any", client).get_node_from_key(key)
    route = Route("single", _SYNC_TWINS[node.connection_class], _identity(node.connection_kwargs))
    return open_async(route, manner)


def belonging(client: Any, name: str, make: Callable[[Any], B]) -> B:
    """What belongs to ``client`` under ``name``, made on first use; it goes when the client goes."""
    belongings: dict[str, B] = client.__dict__.setdefault("_qx_cache", {})
    found = belongings.get(name)
    return belongings.setdefault(name, make(client)) if found is None else found


class _SyncSentinelPool(SentinelConnectionPool):
    """Closes the connections to the sentinels with its own; redis-py leaves them to nobody."""

    def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002  # as redis-py has it
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:  # only redis-py 8 closes all of them by one call
                sentinel.close()


class _AsyncSentinelPool(async_sentinel.SentinelConnectionPool):
    """Asyncio twin of ``_SyncSentinelPool``."""

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: FBT001, FBT002  # as redis-py has it
        await super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                await sentinel.aclose()


_SYNC_TWINS: Mapping[type[Any], type[Any]] = {
    redis.asyncio.Connection: redis.Connection,
    redis.asyncio.SSLConnection: redis.SSLConnection,
    redis.asyncio.UnixDomainSocketConnection: redis.UnixDomainSocketConnection,
}
_ASYNC_TWINS = {blocking: awaited for awaited, blocking in _SYNC_TWINS.items()}


def _parsed(url: str) -> tuple[type[Any], dict[str, Any]]:
    """The connection class and options of a URL that redis-py can read."""
    try:
        options = parse_url(url)  # type: ignore[no-untyped-call]
        connection = options.pop("connection_class", redis.Connection)
        connection(**{name: value for name, value in options.items() if name != "max_connections"})  # not opened
    except (ValueError, TypeError, redis.RedisError):
        raise InvalidValueError(
            "the Redis URL cannot be read: it should look like redis://[user:password@]host:port/db, "
            "with only options that redis-py knows"
        ) from None
    return connection, options


def _identity(options: Mapping[str, Any], *, without: AbstractSet[str] = frozenset()) -> dict[str, Any]:
    """The part of ``options`` that says where to and as whom."""
    return {
        name: value
        for name, value in options.items()
        if (name in _IDENTITY or name.startswith("ssl_")) and name not in without
    }


def _to_sentinels(route: Route, manner: Manner, retry: Any) -> dict[str, Any]:
    patience = {name: manner.options[name] for name in ("socket_timeout", "socket_connect_timeout")}
    return {**route.sentinel, **patience, "retry": retry}


def _starts(client: Any) -> tuple[tuple[str, int], ...]:
    return tuple((str(node.host), int(node.port)) for node in client.nodes_manager.startup_nodes.values())


def _spelt(route: Route) -> str:
    return ", ".join(f"{host}:{port}" for host, port in route.nodes)
