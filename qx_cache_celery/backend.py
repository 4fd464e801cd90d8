"""Where the records and locks of an app are, and what Celery was told of the way there."""

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from celery import Celery

from qx_cache import CacheSettings, InvalidValueError

_SCHEMES = (
    "redis://", "rediss://", "unix://", "redis+socket://", "valkey://", "valkeys://", "sentinel://",
)  # fmt: skip
_CELERYS = (  # setting, its transport options, its TLS options
    ("result_backend", "result_backend_transport_options", "redis_backend_use_ssl"),
    ("broker_url", "broker_transport_options", "broker_use_ssl"),
)
_CERT_REQS = {ssl.CERT_NONE: "none", ssl.CERT_OPTIONAL: "optional", ssl.CERT_REQUIRED: "required"}
_TLS_SCHEMES = {"redis": "rediss", "valkey": "valkeys"}


def backend_url(app: Celery) -> str:
    """The Redis that holds records and locks.

    A URL of Celery's own takes along what Celery keeps beside it: the master's name and the sentinels' password of
    the transport options, and the TLS options.

    Raises:
        InvalidValueError: None of the four places names one.
    """
    if url := app.conf.get("qx_cache_backend_url"):
        return str(url)
    settings = CacheSettings()
    if "url" in settings.model_fields_set:
        return settings.url.get_secret_value()
    for name, transport, tls in _CELERYS:
        url = app.conf.get(name) or ""
        first = str(url[0]) if isinstance(url, list | tuple) and url else str(url)
        if first.startswith(_SCHEMES):
            one = first if first.startswith("sentinel://") else first.partition(";")[0]
            return _completed(one, app.conf.get(transport) or {}, app.conf.get(tls))
    raise InvalidValueError(
        "no Redis for records and locks: set qx_cache_backend_url, or the environment variable QX_CACHE__URL, "
        "or use a Redis URL as result_backend or broker_url"
    )


def _completed(url: str, transport: Mapping[str, Any], tls: Any) -> str:
    scheme, _, rest = url.partition("://")
    options: dict[str, str] = {}
    if scheme == "sentinel":
        if "master_name=" not in url and transport.get("master_name"):
            options["master_name"] = str(transport["master_name"])
        to_sentinels: Mapping[str, Any] = transport.get("sentinel_kwargs") or {}
        options |= {f"sentinel_{name}": _spelt(value) for name, value in to_sentinels.items()}
        options.setdefault("sentinel_ssl", "false")  # as kombu does it: TLS options are for the master
        options |= {"ssl": "true"} if tls else {}
    elif tls:
        scheme = _TLS_SCHEMES.get(scheme, scheme)
    if isinstance(tls, Mapping):
        options |= {name: _spelt(value) for name, value in tls.items() if value is not None}
    if not options:
        return url
    return f"{scheme}://{rest}{'&' if '?' in rest else '?'}{urlencode(options)}"


def _spelt(value: Any) -> str:
    if isinstance(value, ssl.VerifyMode):
        return _CERT_REQS[value]
    return str(value).lower() if isinstance(value, bool) else str(value)
