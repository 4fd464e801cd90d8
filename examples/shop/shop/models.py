"""The shop's tables. Times are UTC, amounts are whole cents."""

import uuid
from datetime import UTC, date, datetime
from typing import Any

from sqlalchemy import (
    DateTime,
    Dialect,
    Engine,
    ForeignKey,
    String,
    TypeDecorator,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 5000, "keepalives_idle": 10, "keepalives_interval": 3}
"""Of libpq, in seconds; ``tcp_user_timeout`` in milliseconds. A server that says nothing is taken for gone."""
_ORDERS = uuid.UUID("4f6ad2f4-4a0f-5e0b-9b0c-2a8f3f7f7a11")


def order_id(key: str) -> str:
    """The id of the order that came with this ``Idempotency-Key``: the same each time."""
    return str(uuid.uuid5(_ORDERS, key))


def now() -> datetime:
    """The time that rows are stamped with."""
    return datetime.now(UTC)


class Moment(TypeDecorator[datetime]):
    """A time in UTC, also where the database forgets the zone, as SQLite does."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002  # SQLAlchemy's face
        """On the way in."""
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """On the way out."""
        return value and (value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC))


class Base(DeclarativeBase):
    """Of the shop's tables."""


class Order(Base):
    """What a customer asked for; ``placed``, then ``paid``."""

    __tablename__ = "orders"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    customer: Mapped[str] = mapped_column(String(100))
    item: Mapped[str] = mapped_column(String(100))
    amount_cents: Mapped[int]
    state: Mapped[str] = mapped_column(String(10), default="placed", index=True)
    placed_at: Mapped[datetime] = mapped_column(Moment, default=now)
    payments: Mapped[list["Payment"]] = relationship(order_by="Payment.id")


class Payment(Base):
    """Money taken. No constraint keeps an order from having two of them: that is left to ``tx=``."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[str] = mapped_column(ForeignKey("orders.id"), index=True)
    amount_cents: Mapped[int]
    reference: Mapped[str] = mapped_column(String(100))
    paid_at: Mapped[datetime] = mapped_column(Moment, default=now, index=True)


class Report(Base):
    """What one day brought in; made anew, it takes the place of the older one."""

    __tablename__ = "reports"

    day: Mapped[date] = mapped_column(primary_key=True)
    payments: Mapped[int]
    total_cents: Mapped[int]
    made_at: Mapped[datetime] = mapped_column(Moment, default=now, onupdate=now)


def open_database(url: str) -> Engine:
    """An engine, which opens no connection before it is used: a worker's children are forked before that."""
    patience = _PATIENCE if make_url(url).get_backend_name() == "postgresql" else {}
    engine = create_engine(url, pool_pre_ping=True, connect_args=patience)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _share)
    return engine


def _share(connection: Any, _: Any) -> None:
    """Let web, worker and beat use one SQLite file at once, a writer at a time."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=20000")
    connection.execute("PRAGMA foreign_keys=ON")
