"""Many calls in one round trip: for a single server, and for a cluster in one a node."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import redis
import redis.asyncio
from redis import exceptions

from qx_cache._call import Call
from qx_cache._run import FAILURES, RAW, AsyncClient, SyncClient, translated
from qx_cache.errors import StoreError

_ASTRAY = (  # replies after which a client of a cluster finds another node
    exceptions.AskError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.ConnectionError,
    exceptions.TimeoutError,
)


def run_many(client: SyncClient, calls: Sequence[Call[Any]]) -> list[Any]:
    """Perform all ``calls`` in one round trip; each has its own answer or its own ``StoreError``.

    In a cluster it is one round trip a node, and a node that is down costs the answers of its own keys only.
    """
    if not isinstance(client, redis.RedisCluster):
        return _answers(client, calls, _pipelined(client, calls))
    replies: list[Any] = [None] * len(calls)
    for places in _by_node(client, calls):
        _fill(replies, places, _pipelined_to_node(client, [calls[i] for i in places]))
    return _answers(client, calls, replies)


async def arun_many(client: AsyncClient, calls: Sequence[Call[Any]]) -> list[Any]:
    """Asyncio twin of ``run_many``."""
    if not isinstance(client, redis.asyncio.RedisCluster):
        return _answers(client, calls, await _apipelined(client, calls))
    with suppress(*FAILURES):
        await client.initialize()
    shares = _by_node(client, calls)
    found = await asyncio.gather(*(_apipelined(client, [calls[i] for i in places]) for places in shares))
    replies: list[Any] = [None] * len(calls)
    for places, answered in zip(shares, found, strict=True):
        _fill(replies, places, answered)
    return _answers(client, calls, replies)


def _pipelined(client: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    replies = _sent(client, [call.first for call in calls])
    if unknown := _unknown(replies):
        _fill(replies, unknown, _sent(client, [calls[i].again for i in unknown]))
    return replies


async def _apipelined(client: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    replies = await _asent(client, [call.first for call in calls])
    if unknown := _unknown(replies):
        _fill(replies, unknown, await _asent(client, [calls[i].again for i in unknown]))
    return replies


def _sent(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    try:
        for words in commands:
            pipeline.execute_command(*words, **RAW)
        return list(pipeline.execute(raise_on_error=False))
    except FAILURES as error:
        return [error] * len(commands)


async def _asent(client: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    try:
        for words in commands:
            pipeline.execute_command(*words, **RAW)
        return list(await pipeline.execute(raise_on_error=False))
    except FAILURES as error:
        return [error] * len(commands)


def _unknown(replies: Sequence[Any]) -> list[int]:
    """Which calls the server did not know the script of: after a restart, a failover or SCRIPT FLUSH."""
    return [i for i, reply in enumerate(replies) if isinstance(reply, exceptions.NoScriptError)]


def _by_node(client: Any, calls: Sequence[Call[Any]]) -> list[list[int]]:
    """The places of ``calls`` that go to the same node of a cluster, as far as the client knows."""
    shares: dict[str, list[int]] = {}
    for i, call in enumerate(calls):
        try:
            name = client.get_node_from_key(call.key).name
        except FAILURES:  # no node is known for its slot
            name = ""
        shares.setdefault(name, []).append(i)
    return list(shares.values())


def _pipelined_to_node(client: Any, calls: Sequence[Call[Any]]) -> list[Any]:
    """Straight to the node: the pipeline of redis-py's cluster client asks the server for each script's keys."""
    try:
        node = client.get_redis_connection(client.get_node_from_key(calls[0].key))
        replies = _pipelined(node, calls)
    except FAILURES as error:
        replies = [error] * len(calls)
    astray = [i for i, reply in enumerate(replies) if isinstance(reply, _ASTRAY)]
    if astray and isinstance(replies[astray[0]], exceptions.ConnectionError | exceptions.TimeoutError):
        astray = astray[:1]  # one try learns where the others are now; they follow at the next beat
    _fill(replies, astray, [_alone(client, calls[i]) for i in astray])
    return replies


def _alone(client: Any, call: Call[Any]) -> Any:
    try:
        try:
            return client.execute_command(*call.first, **RAW)
        except exceptions.NoScriptError:
            return client.execute_command(*call.again, **RAW)
    except FAILURES as error:
        return error


def _fill(replies: list[Any], places: Sequence[int], second: Sequence[Any]) -> None:
    for i, reply in zip(places, second, strict=True):
        replies[i] = reply


def _answers(client: object, calls: Sequence[Call[Any]], replies: Sequence[Any]) -> list[Any]:
    return [_read(client, call, reply) for call, reply in zip(calls, replies, strict=True)]


def _read(client: object, call: Call[Any], reply: Any) -> Any:
    try:
        with translated(client, call.operation):
            if isinstance(reply, Exception):
                raise reply
            return call.parse(reply)
    except StoreError as error:
        return error
