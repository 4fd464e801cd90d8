"""What of a server can make the promises of this package hollow, found before it happens."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qx_cache._call import Call, command
from qx_cache._run import (
    AsyncClient,
    SyncClient,
    aprimaries,
    arun,
    most_connections,
    primaries,
    require_async,
    require_sync,
    run,
)
from qx_cache.errors import StoreRefusedError

OLDEST_VERSION = (7, 0)
"""Scripts with flags, without which a full server could not record the end of a run."""

_LARGEST_OFFSET_SECONDS = 1.0
_FEWEST_CONNECTIONS = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a server."""

    severity: Literal["error", "warning", "info"]
    """``error``: does not work, or loses data in ordinary operation; ``warning``: can lose data when something
    else goes wrong; ``info``: could not be looked at, or is good to know."""
    name: str
    """A short name that stays the same: ``eviction``, ``persistence``, ``role``, ``version``, ``scripts``,
    ``clock``, ``pool``, ``info``."""
    message: str
    """What can go wrong, and what to set: one line."""

    def __str__(self) -> str:
        return f"{self.severity}: {self.name}: {self.message}"


async def diagnose(client: AsyncClient) -> list[Finding]:
    """Look at the server of ``client``; an empty list when all is well. Changes nothing.

    Args:
        client: A ``redis.asyncio`` client.

    Raises:
        WrongClientError: A blocking client; use ``diagnose_sync``.
        StoreUnavailableError: The server does not answer.

    Example:
        ```python
        for finding in await diagnose(client):
            log.warning("%s", finding)
        ```
    """
    require_async(client, "diagnose", "diagnose_sync")
    found: list[Finding] = []
    for node in await aprimaries(client):
        answers: list[Any] = []
        for call in _CALLS:
            try:
                answers.append(await arun(client, call, node))
            except StoreRefusedError as error:
                answers.append(error)
        found += _findings(answers, getattr(node, "name", ""))
    return found + _pool(most_connections(client))


def diagnose_sync(client: SyncClient) -> list[Finding]:
    """Blocking twin of ``diagnose``."""
    require_sync(client, "diagnose_sync", "diagnose")
    found: list[Finding] = []
    for node in primaries(client):
        answers: list[Any] = []
        for call in _CALLS:
            try:
                answers.append(run(client, call, node))
            except StoreRefusedError as error:
                answers.append(error)
        found += _findings(answers, getattr(node, "name", ""))
    return found + _pool(most_connections(client))


def _offset(reply: Sequence[Any]) -> float:
    return int(reply[0]) + int(reply[1]) / 1e6 - time.time()


_CALLS: tuple[Call[Any], ...] = (
    command(dict, "INFO"),
    command(_offset, "TIME"),
    command(lambda reply: reply, "EVAL", "return 1", 0),
)


def _findings(answers: Sequence[Any], node: str) -> list[Finding]:
    """What the answers of one server mean; in a cluster the messages end with the node."""
    info, offset, script = answers
    found: list[Finding] = []
    if isinstance(info, StoreRefusedError):
        told = f"INFO is not allowed ({info.reason}), so eviction, persistence and version are unknown"
        found.append(Finding("info", "info", told))
    else:
        found += [*_version(info), *_role(info), *_eviction(info), *_persistence(info)]
    if isinstance(script, StoreRefusedError):
        told = f"scripts are not allowed ({script.reason}); nothing but Cache works without EVAL and EVALSHA"
        found.append(Finding("error", "scripts", told))
    if not isinstance(offset, StoreRefusedError) and abs(offset) > _LARGEST_OFFSET_SECONDS:
        told = f"the server's clock is {offset:+.1f} s off this machine's; leases go by the server's alone"
        found.append(Finding("info", "clock", told))
    return [replace(one, message=f"{one.message} (at {node})") for one in found] if node else found


def _pool(connections: int) -> list[Finding]:
    if connections >= _FEWEST_CONNECTIONS:
        return []
    told = f"the pool opens at most {connections} connections, one for each call at a time; raise max_connections"
    return [Finding("warning", "pool", told)]


def _version(info: Mapping[str, Any]) -> list[Finding]:
    text = str(info.get("valkey_version") or info.get("redis_version") or "0")
    numbers = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if numbers >= OLDEST_VERSION:
        return []
    return [Finding("error", "version", f"the server is {text}; Redis 7.0 or Valkey is needed")]


def _role(info: Mapping[str, Any]) -> list[Finding]:
    if info.get("role", "master") == "master":
        return []
    return [Finding("error", "role", "the server is a replica and takes no writes; connect to its primary")]


def _eviction(info: Mapping[str, Any]) -> list[Finding]:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy == "noeviction":
        return []
    limited = int(info.get("maxmemory", 0)) > 0
    told = f"maxmemory-policy is {policy}: when memory is full, locks and records vanish; set noeviction"
    return [Finding("error" if limited else "warning", "eviction", told)]


def _persistence(info: Mapping[str, Any]) -> list[Finding]:
    if int(info.get("aof_enabled", 0)) or int(info.get("connected_slaves", 0)):
        return []
    told = "no append-only file and no replica: a restart forgets records and locks; set appendonly yes"
    return [Finding("warning", "persistence", told)]
