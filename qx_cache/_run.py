"""The two executors, ``arun`` and ``run``, and what waits at the server: ``ablock`` and ``block``."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeAlias, TypeVar, cast

import redis
import redis.asyncio
from redis import exceptions

from qx_cache._call import Call
from qx_cache.errors import CacheError, StoreError, StoreRefusedError, StoreUnavailableError, WrongClientError

T = TypeVar("T")
AsyncServer: TypeAlias = redis.asyncio.Redis
SyncServer: TypeAlias = redis.Redis
AsyncClient: TypeAlias = redis.asyncio.Redis | redis.asyncio.RedisCluster
SyncClient: TypeAlias = redis.Redis | redis.RedisCluster
AnyClient: TypeAlias = AsyncClient | SyncClient

_PATIENCE_SECONDS = 2.0
FAILURES = (exceptions.RedisError, exceptions.RedisClusterException, OSError)
"""What redis-py raises when a call has failed; of a cluster that cannot be reached it is no ``RedisError``."""
RAW = {"NEVER_DECODE": True}
"""With it redis-py returns bytes, whatever the client decodes."""
_DEFAULT_CONNECTIONS = 100
_PASSING = (  # error replies of a server that is not ready: as good as no answer
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
    exceptions.AskError,
)


async def arun(client: AsyncClient, call: Call[T], node: Any = None) -> T:
    """Perform ``call`` and read its reply; where there is no key, at ``node`` of a cluster."""
    send = cast("Callable[..., Awaitable[Any]]", client.execute_command)
    try:
        try:
            reply = await (
                send(*call.first, **RAW) if call.binary and node is None else send(*call.first, **_how(call, node))
            )
        except exceptions.NoScriptError:
            reply = await send(*call.again, **RAW)
        except AttributeError as error:
            if not _is_unsent(error):
                raise
            reply = await send(*call.again, **_how(call, node))
    except FAILURES as error:
        raise _translation(client, call.operation, error) from error
    return call.parse(reply)


def run(client: SyncClient, call: Call[T], node: Any = None) -> T:
    """Blocking twin of ``arun``."""
    send: Callable[..., Any] = client.execute_command
    try:
        try:
            reply = (
                send(*call.first, **RAW) if call.binary and node is None else send(*call.first, **_how(call, node))
            )
        except exceptions.NoScriptError:
            reply = send(*call.again, **RAW)
    except FAILURES as error:
        raise _translation(client, call.operation, error) from error
    return call.parse(reply)


def block(client: SyncServer, call: Call[T], seconds: float) -> T:
    """Perform a ``call`` that the server answers after ``seconds`` at the latest, on a connection of its own.

    A server that says nothing for two seconds more is taken for gone.
    """
    pool: Any = client.connection_pool
    with translated(client, call.operation):
        connection = pool.get_connection()
        try:
            connection.send_command(*call.first)
            if connection.can_read(timeout=seconds + _PATIENCE_SECONDS):
                return call.parse(connection.read_response(disable_decoding=True))
            raise StoreUnavailableError(call.operation, where(client), "no answer in time")  # noqa: TRY301  # also disconnects
        except exceptions.ResponseError as error:
            if not _is_unblocked(error):
                raise
            return call.parse(None)
        except BaseException:
            connection.disconnect()  # what it still brings belongs to nobody
            raise
        finally:
            pool.release(connection)


async def ablock(client: AsyncServer, call: Call[T], seconds: float) -> T:
    """Asyncio twin of ``block``."""
    pool: Any = client.connection_pool
    before = cancellations()
    with translated(client, call.operation):
        connection = await pool.get_connection()
        try:
            await connection.send_command(*call.first)
            cancelled_after(before)
            reply = await connection.read_response(disable_decoding=True, timeout=seconds + _PATIENCE_SECONDS)
            return call.parse(reply)
        except exceptions.ResponseError as error:
            if not _is_unblocked(error):
                raise
            return call.parse(None)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        finally:
            await pool.release(connection)


@contextmanager
def translated(client: object, operation: str) -> Iterator[None]:
    """Turn errors of redis-py into those of this package, which name the server and no password."""
    try:
        yield
    except exceptions.NoScriptError:
        raise
    except FAILURES as error:
        raise _translation(client, operation, error) from error


def cancellations() -> int:
    """How often the running task was asked to end: more than before means that a cancellation was swallowed.

    ``asyncio.wait_for`` of Python 3.11, which redis-py uses, swallows one that comes with the answer.
    """
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def cancelled_after(before: int) -> None:
    """End the task where a cancellation was swallowed since ``cancellations()`` was ``before``."""
    if cancellations() > before:
        raise asyncio.CancelledError


async def to_the_end(make: Callable[[], Awaitable[T]]) -> T:
    """Await what ``make`` makes; when cancelled, make it once more and see it through before that.

    For what is safe to repeat and must not be left half done: redis-py drops the connection of a cancelled call.
    """
    before = cancellations()
    try:
        made = await make()
    except asyncio.CancelledError:
        with suppress(CacheError):
            await asyncio.shield(make())
        raise
    cancelled_after(before)
    return made


def require_async(client: object, user: str, twin: str = "") -> None:
    """Refuse a client that cannot be awaited.

    Raises:
        WrongClientError: Names ``user`` and its twin.
    """
    if not isinstance(client, redis.asyncio.Redis | redis.asyncio.RedisCluster):
        raise WrongClientError(user, "redis.asyncio.Redis", _type_name(client), twin or f"Sync{user}")


def require_sync(client: object, user: str, twin: str = "") -> None:
    """Refuse a client that has to be awaited.

    Raises:
        WrongClientError: Names ``user`` and its twin.
    """
    if not isinstance(client, redis.Redis | redis.RedisCluster):
        raise WrongClientError(user, "redis.Redis", _type_name(client), twin or user.removeprefix("Sync"))


def most_connections(client: AnyClient) -> int:
    """How many connections ``client`` opens at most, to each node."""
    if isinstance(client, redis.RedisCluster):
        return int(client.nodes_manager.connection_kwargs.get("max_connections") or _DEFAULT_CONNECTIONS)
    if isinstance(client, redis.asyncio.RedisCluster):
        return int(client.connection_kwargs["max_connections"])
    return int(client.connection_pool.max_connections)


def is_cluster(client: object) -> bool:
    """True for a client of a cluster, where the keys of one call must share a slot."""
    return isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster)


async def aprimaries(client: AsyncClient) -> list[Any]:
    """The primaries of a cluster; for a single server a list of nothing."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return [None]
    with translated(client, "CLUSTER SLOTS"):
        await client.initialize()
    return list(client.get_primaries())


def primaries(client: AnyClient) -> list[Any]:
    """Blocking twin of ``aprimaries``."""
    return list(client.get_primaries()) if isinstance(client, redis.RedisCluster) else [None]  # type: ignore[no-untyped-call]


def where(client: Any) -> str:
    """Host and port or socket path of a client; never its password. What is text already stays as it is."""
    if isinstance(client, str):
        return client
    if is_cluster(client):
        return ", ".join(client.nodes_manager.startup_nodes)
    pool: Any = getattr(client, "connection_pool", None)
    if manager := getattr(pool, "sentinel_manager", None):
        asked = [sentinel.connection_pool.connection_kwargs for sentinel in manager.sentinels]
        return f"{getattr(pool, 'service_name', '')} of " + ", ".join(
            f"{one['host']}:{one['port']}" for one in asked
        )
    known: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    return str(known["path"]) if known.get("path") else f"{known.get('host', '?')}:{known.get('port', '?')}"


def _how(call: Call[Any], node: Any) -> dict[str, Any]:
    options = RAW if call.binary else {}
    return options if node is None else {**options, "target_nodes": node}


def _translation(client: object, operation: str, error: Exception) -> StoreError:
    told = str(error) or type(error).__name__
    refused = isinstance(error, exceptions.ResponseError) and not isinstance(error, _PASSING)
    kind = StoreRefusedError if refused else StoreUnavailableError
    return kind(operation, where(client), told)


def _is_unsent(error: AttributeError) -> bool:
    """redis-py 8 may close a connection that a call has taken just now, as another call to that node failed."""
    return error.name == "writelines" and error.obj is None


def _is_unblocked(error: exceptions.ResponseError) -> bool:
    """A server that changes its role, or gives a slot away, sends all who wait away: as good as a wake-up."""
    return isinstance(error, exceptions.AskError) or str(error).startswith("UNBLOCKED")


def _type_name(client: object) -> str:
    return f"{type(client).__module__}.{type(client).__qualname__}"
