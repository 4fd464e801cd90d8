"""How to reach Redis."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """How to reach Redis, and under which namespace.

    Each field is read from ``QX_CACHE__<FIELD>`` when the object is made, and never at import.
    Durations are in seconds.

    Example:
        ```python
        settings = CacheSettings(url="rediss://cache.example:6379/0", namespace="shop")
        client = create_sync_client(settings)
        ```
    """

    model_config = SettingsConfigDict(
        env_prefix="QX_CACHE__", frozen=True, extra="ignore", hide_input_in_errors=True
    )

    url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Server, database and credentials; a secret, so it never shows in ``repr``, logs or errors."""

    namespace: str = Field(default="qx", min_length=1)
    """First part of every key."""

    max_connections: int = Field(default=100, gt=0)
    """Largest number of connections one client opens."""

    socket_timeout_seconds: float = Field(default=5.0, gt=0, le=3600)
    """How long one answer may take."""

    socket_connect_timeout_seconds: float = Field(default=5.0, gt=0, le=3600)
    """How long a connection may take to open; also bounds the PING of ``create_client``."""

    health_check_interval_seconds: float = Field(default=0.0, ge=0)
    """A connection idle for longer is checked before it is used; 0, the default: none is, and one that has died is
    replaced when it is used. With redis-py 8.1 the check of a server that hangs never ends in an async client."""
