"""``create_client`` and its twin: a checked client from a URL or from settings."""

import asyncio

from pydantic import SecretStr

from qx_cache._call import command
from qx_cache._connect import Manner, Route, open_async, open_sync, route_to
from qx_cache._run import AsyncServer, SyncServer, run
from qx_cache.settings import CacheSettings


async def create_client(source: str | SecretStr | CacheSettings) -> AsyncServer:
    """Open an async client, check that the server answers, and return it.

    Close it with ``await client.aclose()``.

    Args:
        source: A URL, or settings. Accepted:

            - ``redis://``, ``valkey://``, ``unix://``, ``redis+socket://``: one server.
            - ``rediss://``, ``valkeys://``: over TLS; certificate and host name are verified unless the URL says
              ``?ssl_cert_reqs=none``. ``ssl_ca_certs``, ``ssl_certfile`` and ``ssl_keyfile`` name files.
            - ``sentinel://h1:26379/0;sentinel://h2:26379/0?master_name=mymaster``, as Celery spells it, or
              ``redis+sentinel://h1,h2/mymaster/0``: the master that the sentinels know. The password is the
              master's; ``sentinel_password`` and further ``sentinel_…`` options are for the sentinels. TLS with
              ``ssl=true`` or ``rediss+sentinel://``.
            - ``redis+cluster://h1:7000,h2:7001``, over TLS ``rediss+cluster://``: a cluster, by any of its nodes.
            - ``embedded://``: a throwaway server that lives as long as this process.

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
    route = route_to(settings.url.get_secret_value())
    await asyncio.to_thread(_probe, route, settings)
    return open_async(route, Manner.of(settings, route.wishes))


def create_sync_client(source: str | SecretStr | CacheSettings) -> SyncServer:
    """Blocking twin of ``create_client``; close it with ``client.close()``."""
    settings = _settings(source)
    route = route_to(settings.url.get_secret_value())
    _probe(route, settings)
    return open_sync(route, Manner.of(settings, route.wishes))


def _settings(source: str | SecretStr | CacheSettings) -> CacheSettings:
    if isinstance(source, CacheSettings):
        return source
    return CacheSettings(url=source if isinstance(source, SecretStr) else SecretStr(source))


def _probe(route: Route, settings: CacheSettings) -> None:
    """One PING without retries: half the time for the connection, half for the answer."""
    with open_sync(route, Manner.hasty(settings.socket_connect_timeout_seconds / 2)) as probe:
        run(probe, command(lambda reply: reply, "PING", binary=False))
