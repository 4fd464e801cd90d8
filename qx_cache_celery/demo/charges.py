"""The shop's own database: SQLAlchemy on SQLite, as an application has it."""

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from qx_cache_celery.inbox import create_inbox

NAME = "charges.sqlite"


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
    engine = create_engine(f"sqlite:///{folder / NAME}", connect_args={"timeout": 20})
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA journal_mode=WAL"))
    return engine


def create(engine: Engine) -> None:
    """Make the tables: the shop's, and the one that ``tx=`` needs."""
    Base.metadata.create_all(engine)
    create_inbox(engine)


def counted(folder: Path, side: str) -> dict[str, int]:
    """Order -> how often this side has charged it.

    Asked all the time while one waits, and so without SQLAlchemy: its pool works in callbacks of weak references,
    where Python swallows the exception of a Ctrl-C.
    """
    query = "SELECT order_id, count(*) FROM charges WHERE side=? GROUP BY order_id"
    with closing(sqlite3.connect(folder / NAME, timeout=20)) as db:
        return dict(db.execute(query, (side,)).fetchall())
