"""A server of its own for each measurement, on a port of the loopback, gone with it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import redis

from qx_cache.embedded import EmbeddedServer, start_server


@dataclass(frozen=True)
class Server:
    """What a measurement needs to know of it."""

    port: int
    process: EmbeddedServer

    @property
    def url(self) -> str:
        """As redis-py and all peers take it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """A client with the defaults of redis-py."""
        return redis.Redis.from_url(self.url)


@contextmanager
def server() -> Iterator[Server]:
    """Most users reach theirs over TCP, so it is not measured over its unix socket."""
    with start_server() as process, redis.Redis.from_url(process.url) as admin:
        with socket.socket() as door:
            door.bind(("127.0.0.1", 0))
            port = door.getsockname()[1]
        admin.config_set("bind", "127.0.0.1")
        admin.config_set("port", port)
        yield Server(port, process)
