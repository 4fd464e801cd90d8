"""URL shapes that Celery users have, read into one value. Text only: nothing is opened here."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlencode

from qx_cache.errors import InvalidValueError

_SCHEMES = (
    "redis", "rediss", "unix", "redis+socket", "valkey", "valkeys", "sentinel", "redis+sentinel", "redis-sentinel",
    "rediss+sentinel", "redis+cluster", "rediss+cluster", "embedded",
)  # fmt: skip
_CERT_REQS = {"CERT_NONE": "none", "CERT_OPTIONAL": "optional", "CERT_REQUIRED": "required"}
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class Place:
    """What a URL says.

    Args:
        kind: One server, a master that sentinels know, a cluster, or a throwaway server.
        url: Credentials, database and options of a connection, as redis-py reads them; its host counts for
            ``single`` only.
        nodes: ``host:port`` of the sentinels, or of the first nodes of a cluster.
        service: The name under which the sentinels know the master.
        sentinel_url: Credentials and options of a connection to a sentinel.
    """

    kind: Literal["single", "sentinel", "cluster", "embedded"]
    url: str = ""
    nodes: tuple[str, ...] = ()
    service: str = ""
    sentinel_url: str = ""


def read(url: str) -> Place:
    """Read any accepted URL.

    Raises:
        InvalidValueError: Unknown scheme, or what a scheme needs is missing; says what would be right and shows no
            credentials.
    """
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower() if mark else ""
    if scheme not in _SCHEMES:
        accepted = ", ".join(f"{known}://" for known in _SCHEMES)
        shown = f"{scheme}://" if re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme) else "no known scheme"
        raise InvalidValueError(f"the Redis URL begins with {shown}, not with one of {accepted}")
    if scheme == "embedded":
        return Place("embedded")
    if scheme in {"unix", "redis+socket"}:
        return Place("single", f"unix://{_without_virtual_host(rest)}")
    tls = scheme in {"rediss", "valkeys", "rediss+sentinel", "rediss+cluster"}
    if "sentinel" in scheme:
        return _sentinel(rest, tls=tls)
    if "cluster" in scheme:
        parts = _Parts.of(rest, 6379)
        if parts.path.strip("/") not in {"", "0"}:
            raise InvalidValueError("a cluster has database 0 only: leave the path of the Redis URL empty")
        return Place("cluster", parts.url(parts.options, tls=tls), nodes=parts.nodes)
    parts = _Parts.of(rest, 6379)
    if len(parts.nodes) > 1:
        raise InvalidValueError(
            "several hosts in the Redis URL: begin it with redis+cluster:// or sentinel://, or name one host"
        )
    return Place("single", parts.url(parts.options, tls=tls, host=parts.hosts, path=parts.path))


def _sentinel(rest: str, *, tls: bool) -> Place:
    parts = _Parts.of(rest, _SENTINEL_PORT)
    words = [unquote(word) for word in parts.path.split("/") if word]
    named = [word for word in words if not word.isdecimal()]
    options = dict(parts.options)
    service = options.pop("master_name", "") or options.pop("service_name", "") or (named[0] if named else "")
    if not service:
        raise InvalidValueError(
            "the sentinel:// URL does not name the master: end it with ?master_name=mymaster "
            "(in Celery: master_name in broker_transport_options)"
        )
    numbers = [word for word in words if word.isdecimal()]
    tls = tls or options.pop("ssl", "false").lower() in {"true", "1", "yes"}
    own = {key.removeprefix("sentinel_"): options.pop(key) for key in list(options) if key.startswith("sentinel_")}
    own_tls = own.pop("ssl", str(tls)).lower() in {"true", "1", "yes"}
    if own_tls:
        own = {**{key: value for key, value in options.items() if key.startswith("ssl_")}, **own}
    return Place(
        "sentinel",
        parts.url(options, tls=tls, path=f"/{numbers[0]}" if numbers else ""),
        nodes=parts.nodes,
        service=service,
        sentinel_url=_Parts().url(own, tls=own_tls),
    )


@dataclass(frozen=True, slots=True)
class _Parts:
    """What stands behind ``://``, where hosts may be many and parted by ``,`` or, as kombu does it, ``;``."""

    user: str = ""
    hosts: str = "localhost"
    nodes: tuple[str, ...] = ()
    path: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, rest: str, port: int) -> "_Parts":
        user = path = query = ""
        hosts: list[str] = []
        for member in rest.split(";"):
            place, _, said = member.rpartition("://")[2].partition("?")
            netloc, slash, tail = place.partition("/")
            credentials, _, listed = netloc.rpartition("@")
            user, path, query = user or credentials, path or slash + tail, query or said
            hosts += [host for host in listed.split(",") if host]
        pairs = tuple((key, _CERT_REQS.get(value, value)) for key, value in parse_qsl(query))
        nodes = tuple(_node(host, port) for host in hosts) or (f"localhost:{port}",)
        return cls(user, hosts[0] if hosts else "", nodes, path, pairs)

    def url(
        self, options: "dict[str, str] | tuple[tuple[str, str], ...]", *, tls: bool, host: str = "", path: str = ""
    ) -> str:
        scheme, user = "rediss" if tls else "redis", f"{self.user}@" if self.user else ""
        query = f"?{urlencode(options)}" if options else ""
        return f"{scheme}://{user}{host}{path}{query}"


def _node(host: str, port: int) -> str:
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", host)
    if found is None or int(found[2] or port) > 65535:
        raise InvalidValueError("the Redis URL has no readable host and port; see the accepted shapes")
    return f"{found[1].strip('[]')}:{found[2] or port}"


def _without_virtual_host(rest: str) -> str:
    """Celery says ``virtual_host`` where redis-py says ``db``."""
    place, _, query = rest.partition("?")
    pairs = [
        ("db" if key == "virtual_host" else key, value.lstrip("/") if key in {"virtual_host", "db"} else value)
        for key, value in parse_qsl(query)
    ]
    return f"{place}?{urlencode(pairs)}" if pairs else place
