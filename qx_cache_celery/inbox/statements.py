"""The inbox's SQL, for each dialect that is supported. Text only: no driver, no I/O.

Parameters are written ``:name``. What differs between the dialects is the clock, the types, and how long one waits
for a row that another transaction holds.
"""

from dataclasses import dataclass

from qx_cache import InvalidValueError

TABLE = "qx_inbox"
_COLUMNS = "state, fence, attempt, retries, holder, fingerprint, result, staged"
_NEW = "key, state, fence, attempt, retries, holder, fingerprint, at_ms"
_VALUES = (
    "CAST(:key AS varchar(255)), 'running', CAST(:fence AS bigint), CAST(:attempt AS integer), "
    "CAST(:retries AS integer), CAST(:holder AS varchar(128)), CAST(:fingerprint AS varchar(22)), "
)


@dataclass(frozen=True, slots=True)
class Statements:
    """What is sent to the database.

    Args:
        tables: Makes table and index where they are not; safe to repeat.
        enter: Inserts the row, unless there is one; returns a row when it did.
        take_over: Makes an interrupted row ours; returns a row when it did.
        now_ms: The database's clock.
        bounds_waits: ``enter`` and ``take_over`` wait ``:wait_ms`` at most; otherwise the connection has to.
    """

    tables: tuple[str, ...]
    enter: str
    take_over: str
    now_ms: str
    bounds_waits: bool

    @property
    def finish(self) -> str:
        """Store how the run ended; returns a row when it is there."""
        return (
            f"UPDATE {TABLE} SET state = :state, result = :result, staged = :staged, ended_ms = {self.now_ms} "
            "WHERE key = :key AND fence = :fence RETURNING key"
        )

    @property
    def read(self) -> str:
        """The row, and for how many milliseconds it has been ended."""
        return f"SELECT {_COLUMNS}, {self.now_ms} - ended_ms FROM {TABLE} WHERE key = :key"

    @property
    def settle(self) -> str:
        """Write down what is known of a run, unless it is known to have ended."""
        return (
            f"INSERT INTO {TABLE} ({_NEW}, ended_ms, result) "
            f"VALUES (:key, :state, :fence, :attempt, 0, :holder, '-', {self.now_ms}, {self.now_ms}, :result) "
            "ON CONFLICT (key) DO UPDATE SET state = excluded.state, result = excluded.result, "
            f"ended_ms = excluded.ended_ms WHERE {TABLE}.state IN ('running', 'unknown') RETURNING key"
        )

    bound = "SELECT set_config('lock_timeout', CAST(:wait_ms AS text), true)"
    """Waits of this transaction are bounded from now on; where ``bounds_waits``."""
    published = f"UPDATE {TABLE} SET staged = NULL WHERE key = :key AND fence = :fence"
    forget = f"DELETE FROM {TABLE} WHERE key = :key AND fence = :fence RETURNING key"

    @property
    def sweep(self) -> str:
        """Delete the oldest of the rows that are older than ``:age_ms``, ``:batch`` at most."""
        return (
            f"DELETE FROM {TABLE} WHERE key IN (SELECT key FROM {TABLE} "
            f"WHERE at_ms < {self.now_ms} - :age_ms ORDER BY at_ms LIMIT :batch) RETURNING key"
        )


def _tables(text: str, number: str, small: str, data: str) -> tuple[str, ...]:
    table = (
        f"CREATE TABLE IF NOT EXISTS {TABLE} (\n"
        f"  key {text.format(255)} NOT NULL PRIMARY KEY,\n"
        f"  state {text.format(8)} NOT NULL,\n"
        f"  fence {number} NOT NULL,\n"
        f"  attempt {small} NOT NULL,\n"
        f"  retries {small} NOT NULL,\n"
        f"  holder {text.format(128)} NOT NULL,\n"
        f"  fingerprint {text.format(22)} NOT NULL,\n"
        f"  at_ms {number} NOT NULL,\n"
        f"  ended_ms {number},\n"
        f"  result {data},\n"
        f"  staged {data}\n"
        ")"
    )
    return table, f"CREATE INDEX IF NOT EXISTS {TABLE}_at_ms ON {TABLE} (at_ms)"


_PG_NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"
_PG_UNBOUNDED = "set_config('lock_timeout', current_setting('qx.lock_timeout'), true)"
_LITE_NOW = "CAST((julianday('now') - 2440587.5) * 86400000 AS integer)"
_TAKE_OVER = (
    f"UPDATE {TABLE} SET fence = :fence, attempt = attempt + 1, retries = :retries, holder = :holder, "
    "fingerprint = :fingerprint WHERE key = :key AND state = 'running' AND fence = :seen_fence RETURNING "
)

POSTGRESQL = Statements(
    tables=_tables("varchar({})", "bigint", "integer", "bytea"),
    # One statement bounds the wait, waits, and lifts the bound: LockTimeout is read when a wait begins, the
    # functions are volatile and so neither left out nor moved, and RETURNING comes after the insertion.
    enter=(
        f"INSERT INTO {TABLE} ({_NEW}) SELECT {_VALUES} {_PG_NOW} "
        "FROM (SELECT set_config('qx.lock_timeout', current_setting('lock_timeout'), true), "
        "set_config('lock_timeout', CAST(:wait_ms AS text), true)) AS bounded "
        f"ON CONFLICT (key) DO NOTHING RETURNING {_PG_UNBOUNDED}"
    ),
    take_over=_TAKE_OVER + _PG_UNBOUNDED,
    now_ms=_PG_NOW,
    bounds_waits=True,
)

SQLITE = Statements(
    tables=_tables("varchar({})", "bigint", "integer", "blob"),
    enter=(
        f"INSERT INTO {TABLE} ({_NEW}) VALUES ({_VALUES} {_LITE_NOW}) ON CONFLICT (key) DO NOTHING RETURNING key"
    ),
    take_over=_TAKE_OVER + "key",
    now_ms=_LITE_NOW,
    bounds_waits=False,
)

DIALECTS = {"postgresql": POSTGRESQL, "sqlite": SQLITE}


def inbox_ddl(dialect: str) -> str:
    """The statements that make the table, for those who migrate by hand.

    Args:
        dialect: ``"postgresql"`` or ``"sqlite"``.

    Returns:
        SQL, each statement ended by a semicolon; safe to repeat.

    Raises:
        InvalidValueError: Another dialect.
    """
    return "".join(f"{statement};\n" for statement in statements_for(dialect).tables)


def statements_for(dialect: str) -> Statements:
    """What is sent to databases of this dialect.

    Raises:
        InvalidValueError: It is not supported.
    """
    if dialect not in DIALECTS:
        raise InvalidValueError(f"tx= needs PostgreSQL or SQLite, not {dialect!r}")
    return DIALECTS[dialect]
