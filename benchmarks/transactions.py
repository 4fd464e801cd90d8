"""What ``tx=`` costs on PostgreSQL: the same body with a transaction of its own, and in that of its record."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from typing import Any

from celery import Celery, Task
from celery.signals import task_postrun
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from benchmarks.server import Server, server
from benchmarks.workers import figures, span, working
from qx_cache_celery import IdempotentTask
from qx_cache_celery.inbox import create_inbox
from tests import servers

app = Celery("transactions")
app.conf.update(
    broker_url=os.environ.get("QX_BENCH_URL", "memory://"),
    result_backend=os.environ.get("QX_BENCH_URL", "cache+memory://"),
    worker_hijack_root_logger=False,
)
engine = create_engine(os.environ.get("QX_BENCH_DATABASE", "sqlite://"))
Session = sessionmaker(engine)


class Base(DeclarativeBase):
    """Of the table."""


class Payment(Base):
    """The effect."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    amount: Mapped[int]


@app.task(name="own", acks_late=True, reject_on_worker_lost=True)
def own() -> float:
    """A transaction of its own, and no guard."""
    with Session.begin() as session:
        session.add(Payment(amount=5))
    return time.time()


@app.task(name="recorded", base=IdempotentTask)
def recorded() -> float:
    """The same, recorded in Redis alone."""
    with Session.begin() as session:
        session.add(Payment(amount=5))
    return time.time()


@app.task(name="committed", base=IdempotentTask, bind=True, tx=Session)
def committed(self: IdempotentTask) -> float:
    """In the transaction of its record."""
    self.tx.session.add(Payment(amount=5))
    return time.time()


COUNTED = 200
KINDS = {"its own transaction": own, "IdempotentTask": recorded, "IdempotentTask, tx=": committed}
ROW = "SELECT avg(pg_column_size(qx_inbox.*)), avg(length(result)) FROM qx_inbox"
sent = Counter[str]()

if "QX_BENCH_COUNT" in os.environ:  # the server's own count leaves out what a driver has prepared

    @event.listens_for(engine, "begin")
    @event.listens_for(engine, "commit")
    @event.listens_for(engine, "before_cursor_execute")
    def at_statement(*_: object) -> None:
        """One round trip to the database."""
        sent["statements"] += 1

    @task_postrun.connect
    def at_end(task: "Task[Any, Any]", **_: object) -> None:
        """Tell how many there were since the last task."""
        app.backend.client.incrby(f"sent {task.name}", sent.pop("statements", 0))


def statements(one: Server) -> dict[str, float]:
    """How many each kind sends for a task, BEGIN and COMMIT among them."""
    os.environ["QX_BENCH_COUNT"] = "1"
    with working(app, "benchmarks.transactions", "prefork"), one.client() as client:
        for name, task in KINDS.items():
            span(task, COUNTED, f"counted {name}")
        return {name: int(client.get(f"sent {task.name}") or 0) / COUNTED for name, task in KINDS.items()}


def main() -> None:
    """Measure, and print the figures as JSON."""
    global engine  # noqa: PLW0603  # the server's port is known only now
    words = argparse.ArgumentParser()
    words.add_argument("--rounds", type=int, default=10)
    words.add_argument("--tasks", type=int, default=500)
    said = words.parse_args()
    with server() as one, servers.postgresql(fsync="on") as url:
        os.environ.update(QX_BENCH_URL=one.url, QX_BENCH_DATABASE=url)
        app.conf.update(broker_url=one.url, result_backend=one.url)
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        create_inbox(engine)
        with working(app, "benchmarks.transactions", "prefork"):
            found = figures(KINDS, said.rounds, said.tasks)
        counted = statements(one)
        told = {name: {**figure, "statements": counted[name]} for name, figure in found.items()}
        with engine.begin() as connection:
            row_bytes, result_bytes = map(round, connection.execute(text(ROW)).one())
            version = connection.execute(text("SHOW server_version")).scalar_one().split()[0]
        engine.dispose()
        json.dump(
            {"kinds": told, "row_bytes": row_bytes, "result_bytes": result_bytes, "server": version}, sys.stdout
        )


if __name__ == "__main__":
    main()
