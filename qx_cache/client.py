"""``create_client`` and its twin: a checked client from a URL or from settings."""

import asyncio

from pydantic import SecretStr

from qx_cache._call import command
from qx_cache._connect import open_async, open_sync, sibling
from qx_cache._run import AsyncClient, SyncClient, run
from qx_cache.errors import StoreError
from qx_cache.settings import CacheSettings


async def create_client(source: str | SecretStr | CacheSettings) -> AsyncClient:
    """Open an async client, check that the server answers, and return it.

    Close it with ``await client.aclose()``.

    Args:
        source: A URL, or settings. Accepted: ``redis://``, ``rediss://`` (certificates are verified unless
            the URL says otherwise), ``unix://``, ``redis+socket://``, ``valkey://`` and ``embedded://`` (a
            throwaway server that lives as long as this process).

    Raises:
        InvalidValueError: The URL cannot be right; nothing was sent.
        StoreUnavailableError: No answer within the connect timeout; names the host, never the password.
        EmbeddedServerError: ``embedded://`` and no server could be started.

    Example:
        ```python
        client = await create_client("redis://localhost:6379/0")
        ```
    """
    settings = _settings(source)
    client = open_async(settings)
    try:
        await asyncio.to_thread(_probe, client, settings)
    except StoreError:
        await client.aclose()
        raise
    return client


def create_sync_client(source: str | SecretStr | CacheSettings) -> SyncClient:
    """Blocking twin of ``create_client``; close it with ``client.close()``."""
    settings = _settings(source)
    client = open_sync(settings)
    try:
        _probe(client, settings)
    except StoreError:
        client.close()
        raise
    return client


def _settings(source: str | SecretStr | CacheSettings) -> CacheSettings:
    if isinstance(source, CacheSettings):
        return source
    return CacheSettings(url=source if isinstance(source, SecretStr) else SecretStr(source))


def _probe(client: AsyncClient | SyncClient, settings: CacheSettings) -> None:
    """One PING without retries: half the time for the connection, half for the answer."""
    with sibling(client, timeout_seconds=settings.socket_connect_timeout_seconds / 2) as probe:
        run(probe, command(lambda reply: reply, "PING"))
