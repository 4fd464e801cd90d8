"""The two executors, and the only place that waits for Redis: ``arun``, ``run`` and ``run_many``."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, TypeVar, cast

import redis
import redis.asyncio
from redis import exceptions

from qx_cache._call import Call
from qx_cache.errors import StoreError, StoreRefusedError, StoreUnavailableError, WrongClientError

T = TypeVar("T")
AsyncClient: TypeAlias = redis.asyncio.Redis
SyncClient: TypeAlias = redis.Redis
AnyClient: TypeAlias = redis.asyncio.Redis | redis.Redis

_PATIENCE_SECONDS = 2.0
_RAW = {"NEVER_DECODE": True}  # bytes, whatever the client decodes
_PASSING = (  # error replies of a server that is not ready: as good as no answer
    exceptions.ReadOnlyError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.TryAgainError,
)


async def arun(client: AsyncClient, call: Call[T]) -> T:
    """Perform ``call`` and read its reply."""
    send = cast("Callable[..., Awaitable[Any]]", client.execute_command)
    with _translated(client, call.operation):
        try:
            reply = await send(*call.first, **_RAW)
        except exceptions.NoScriptError:
            reply = await send(*call.again, **_RAW)
    return call.parse(reply)


def run(client: SyncClient, call: Call[T]) -> T:
    """Blocking twin of ``arun``."""
    send: Callable[..., Any] = client.execute_command
    with _translated(client, call.operation):
        try:
            reply = send(*call.first, **_RAW)
        except exceptions.NoScriptError:
            reply = send(*call.again, **_RAW)
    return call.parse(reply)


def run_many(client: SyncClient, calls: Sequence[Call[Any]]) -> list[Any]:
    """Perform all ``calls`` in one round trip; each has its own answer or its own ``StoreError``."""
    replies = _pipelined(client, [call.first for call in calls])
    if unknown := _unknown(replies):
        _fill(replies, unknown, _pipelined(client, [calls[i].again for i in unknown]))
    return [_read(client, call, reply) for call, reply in zip(calls, replies, strict=True)]


async def arun_many(client: AsyncClient, calls: Sequence[Call[Any]]) -> list[Any]:
    """Asyncio twin of ``run_many``."""
    replies = await _apipelined(client, [call.first for call in calls])
    if unknown := _unknown(replies):
        _fill(replies, unknown, await _apipelined(client, [calls[i].again for i in unknown]))
    return [_read(client, call, reply) for call, reply in zip(calls, replies, strict=True)]


def block(client: SyncClient, call: Call[T], seconds: float) -> T:
    """Perform a ``call`` that the server answers after ``seconds`` at the latest, on a connection of its own.

    A server that says nothing for two seconds more is taken for gone.
    """
    pool: Any = client.connection_pool
    with _translated(client, call.operation):
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


async def ablock(client: AsyncClient, call: Call[T], seconds: float) -> T:
    """Asyncio twin of ``block``."""
    pool: Any = client.connection_pool
    with _translated(client, call.operation):
        connection = await pool.get_connection()
        try:
            await connection.send_command(*call.first)
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


def require_async(client: object, user: str, twin: str = "") -> None:
    """Refuse a client that cannot be awaited.

    Raises:
        WrongClientError: Names ``user`` and its twin.
    """
    if not isinstance(client, redis.asyncio.Redis):
        raise WrongClientError(user, "redis.asyncio.Redis", _type_name(client), twin or f"Sync{user}")


def require_sync(client: object, user: str, twin: str = "") -> None:
    """Refuse a client that has to be awaited.

    Raises:
        WrongClientError: Names ``user`` and its twin.
    """
    if not isinstance(client, redis.Redis):
        raise WrongClientError(user, "redis.Redis", _type_name(client), twin or user.removeprefix("Sync"))


def most_connections(client: AnyClient) -> int:
    """How many connections the pool of ``client`` opens at most."""
    return int(client.connection_pool.max_connections)


def is_cluster(client: object) -> bool:
    """True for a client of a cluster, where the keys of one call must share a slot."""
    return isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster)


def where(client: object) -> str:
    """Host and port or socket path of a client; never its password."""
    pool = getattr(client, "connection_pool", None)
    known: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    return str(known["path"]) if known.get("path") else f"{known.get('host', '?')}:{known.get('port', '?')}"


def _pipelined(client: SyncClient, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    queue: Callable[..., Any] = pipeline.execute_command
    try:
        for words in commands:
            queue(*words, **_RAW)
        return list(pipeline.execute(raise_on_error=False))
    except (exceptions.RedisError, OSError) as error:
        return [error] * len(commands)


async def _apipelined(client: AsyncClient, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    queue: Callable[..., Any] = pipeline.execute_command
    try:
        for words in commands:
            queue(*words, **_RAW)
        return list(await pipeline.execute(raise_on_error=False))
    except (exceptions.RedisError, OSError) as error:
        return [error] * len(commands)


def _is_unblocked(error: exceptions.ResponseError) -> bool:
    """A server that changes its role sends all who wait away: as good as a wake-up."""
    return str(error).startswith("UNBLOCKED")


def _unknown(replies: Sequence[Any]) -> list[int]:
    """Which calls the server did not know the script of: after a restart, a failover or SCRIPT FLUSH."""
    return [i for i, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]


def _fill(replies: list[Any], places: Sequence[int], second: Sequence[Any]) -> None:
    for i, reply in zip(places, second, strict=True):
        replies[i] = reply


def _read(client: object, call: Call[Any], reply: Any) -> Any:
    try:
        with _translated(client, call.operation):
            if isinstance(reply, Exception):
                raise reply
            return call.parse(reply)
    except StoreError as error:
        return error


@contextmanager
def _translated(client: object, operation: str) -> Iterator[None]:
    try:
        yield
    except _PASSING as error:
        raise StoreUnavailableError(operation, where(client), str(error)) from error
    except exceptions.NoScriptError:
        raise
    except exceptions.ResponseError as error:
        raise StoreRefusedError(operation, where(client), str(error)) from error
    except (exceptions.RedisError, OSError) as error:
        raise StoreUnavailableError(operation, where(client), str(error) or type(error).__name__) from error


def _type_name(client: object) -> str:
    return f"{type(client).__module__}.{type(client).__qualname__}"
