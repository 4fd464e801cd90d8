"""The shop's own database: SQLAlchemy on SQLite, as an application has it."""

import os
from pathlib import Path

from sqlalchemy import Engine, create_engine, event, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from qx_cache_celery.inbox import create_inbox


class Base(DeclarativeBase):
    """Of the shop's tables."""


class Charge(Base):
    """The effect that must be made once; no constraint keeps it from being made twice."""

    __tablename__ = "charges"

    id: Mapped[int] = mapped_column(primary_key=True)
    side: Mapped[str]
    order_id: Mapped[str]
    amount: Mapped[str]
    pid: Mapped[int] = mapped_column(default=os.getpid)


def open_charges(folder: Path) -> Engine:
    """The database in ``folder``."""
    engine = create_engine(f"sqlite:///{folder}/charges.sqlite", connect_args={"timeout": 20})
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA journal_mode=WAL"))
    return engine


def create(engine: Engine) -> None:
    """Make the tables: the shop's, and the one that ``tx=`` needs."""
    Base.metadata.create_all(engine)
    create_inbox(engine)


def counted(engine: Engine, side: str) -> dict[str, int]:
    """Order -> how often this side has charged it."""
    asked = select(Charge.order_id, func.count()).where(Charge.side == side).group_by(Charge.order_id)
    with Session(engine) as session:
        return dict(session.execute(asked).tuples().all())
