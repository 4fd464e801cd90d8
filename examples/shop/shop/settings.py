"""What differs from one machine to the next."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Read from ``SHOP_<FIELD>`` when it is made; ``shop.tasks`` makes it once for each process."""

    model_config = SettingsConfigDict(env_prefix="SHOP_", frozen=True, extra="ignore", hide_input_in_errors=True)

    database_url: SecretStr = SecretStr("sqlite:///shop.sqlite")
    """As SQLAlchemy takes it, such as ``postgresql+psycopg://user:password@host/shop``."""

    redis_url: SecretStr = SecretStr("redis://localhost:6379/0")
    """Where records and locks are: of the web front, and of the tasks."""

    broker_url: SecretStr | None = None
    """Celery's broker, Redis or RabbitMQ; ``redis_url`` by default."""

    report_every_seconds: float = Field(default=86_400, gt=0)
    """A day is due at midnight, UTC."""

    charge_again_seconds: float = Field(default=600, gt=0)
    """An order that is not charged after so long has its charge published again."""

    charge_seconds: float = Field(default=0, ge=0)
    """How long the payment provider takes; some seconds give you time to kill a worker."""

    alive_file: Path | None = None
    """What a worker touches every two seconds, for a health check."""

    @property
    def broker(self) -> str:
        """The broker's URL."""
        return (self.broker_url or self.redis_url).get_secret_value()
