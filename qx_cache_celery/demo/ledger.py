"""The SQLite file that events are appended to; it knows nothing of the package."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

REPORT_SECONDS = 2.5
"""How long a run of the beat job takes; it is due every second."""

_SCHEMA = """
CREATE TABLE events (kind TEXT, side TEXT, order_id TEXT, pid INTEGER, parent INTEGER, at REAL);
CREATE TABLE fired (name TEXT PRIMARY KEY);
"""


class Ledger:
    """Rows that several processes append; each call opens the file for itself.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self) -> None:
        """Make the tables."""
        with self._open() as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.executescript(_SCHEMA)

    def event(self, kind: str, side: str, order_id: str = "") -> None:
        """What happened, where and when."""
        row = (kind, side, order_id, os.getpid(), os.getppid(), time.time())
        with self._open() as db:
            db.execute("INSERT INTO events VALUES (?,?,?,?,?,?)", row)

    def once(self, name: str) -> bool:
        """True for the first caller with this name, in whatever process."""
        with self._open() as db:
            return db.execute("INSERT OR IGNORE INTO fired VALUES (?)", (name,)).rowcount == 1

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """The answer to a query."""
        with self._open() as db:
            return db.execute(query, values).fetchall()

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=20)) as db, db:
            yield db
