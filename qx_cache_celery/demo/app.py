"""The worker side of the demo: one Celery app, the same body under a plain and an idempotent base."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery, Task
from celery.signals import after_task_publish, beat_init, worker_ready
from sqlalchemy.orm import sessionmaker

from qx_cache_celery import IdempotentTask, SingletonTask, signals
from qx_cache_celery.demo.charges import Charge, open_charges
from qx_cache_celery.demo.ledger import REPORT_SECONDS, Ledger

FOLDER = Path(os.environ["QX_DEMO_FOLDER"])
SIDE = os.environ["QX_DEMO_SIDE"]
FAULTS: dict[str, str] = json.loads(os.environ["QX_DEMO_FAULTS"])
LEASE_SECONDS = VISIBILITY_SECONDS = 3

ledger = Ledger(FOLDER / "ledger.sqlite")
Shop = sessionmaker(open_charges(FOLDER))
app = Celery("demo", broker=os.environ["QX_DEMO_BROKER"], backend=os.environ["QX_DEMO_BROKER"])
app.conf.update(
    broker_transport_options={
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,  # its holder may be killed
    },
    worker_prefetch_multiplier=1,
    worker_hijack_root_logger=True,
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    qx_cache_lease_ttl=LEASE_SECONDS,
    qx_cache_lock_ttl=LEASE_SECONDS,
    beat_schedule={"report": {"task": f"demo.report_{SIDE}", "schedule": 1.0}},
)


class Watched(Task):  # type: ignore[type-arg]  # generic in its stubs only
    """Notes when a delivery enters and leaves, and dies once after the result is recorded."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task between two notes."""
        order_id = str(args[0]) if args else ""
        ledger.event("enter", SIDE, order_id)
        try:
            result = super().__call__(*args, **kwargs)
            if FAULTS.get(order_id) == "after complete" and ledger.once(f"after complete {SIDE}"):
                _die("after complete", order_id)
        finally:
            ledger.event("leave", SIDE, order_id)
        return result


class WatchedIdempotent(Watched, IdempotentTask):
    """``IdempotentTask`` inside the notes."""

    abstract = True


def body(order_id: str, charge: Callable[[], None]) -> str:
    """Charge one order; a target of a fault waits for it, or dies, at its point."""
    ledger.event("start", SIDE, order_id)
    point = FAULTS.get(order_id, "")
    first = point != "after complete" and bool(point) and ledger.once(f"{point} {SIDE}")
    time.sleep(0.02 + sum(order_id.encode()) % 7 / 100)
    if first and point != "window":
        ledger.event(f"at {point}", SIDE, order_id)
        _wait_for(FOLDER / f"go {point} {SIDE}")
    charge()
    if first and point == "window":
        _die(point, order_id)
    return f"receipt for {order_id}"


@app.task(name="demo.capture_plain", base=Watched, acks_late=True, reject_on_worker_lost=True)
def capture_plain(order_id: str, amount: str) -> str:
    """The plain side."""

    def charge() -> None:
        with Shop.begin() as session:
            session.add(Charge(side=SIDE, order_id=order_id, amount=amount))

    return body(order_id, charge)


@app.task(
    name="demo.capture_idempotent",
    base=WatchedIdempotent,
    bind=True,
    idempotency_key="{order_id}",
    tx=Shop,
)
def capture_idempotent(self: Any, order_id: str, amount: str) -> str:
    """The idempotent side: the charge is in the transaction of its record."""

    def charge() -> None:
        self.tx.session.add(Charge(side=SIDE, order_id=order_id, amount=amount))
        self.tx.session.flush()

    return body(order_id, charge)


def _report() -> None:
    ledger.event("report start", SIDE)
    time.sleep(REPORT_SECONDS)
    ledger.event("report end", SIDE)


@app.task(name="demo.report_plain")
def report_plain() -> None:
    """A beat job that takes longer than its interval."""
    _report()


@app.task(name="demo.report_idempotent", base=SingletonTask)
def report_singleton() -> None:
    """The same, one at a time."""
    _report()


def _wait_for(flag: Path) -> None:
    deadline = time.monotonic() + 40
    while not flag.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def _die(point: str, order_id: str) -> None:
    ledger.event(f"killed {point}", SIDE, order_id)
    os.kill(os.getpid(), signal.SIGKILL)


def _on(kind: str) -> Any:
    def note(key: str = "", **_: Any) -> None:
        ledger.event(kind, SIDE, key.rpartition(":")[2])

    return note


for _kind in ("replayed", "deferred", "taken_over", "skipped"):
    getattr(signals, f"task_{_kind}").connect(_on(_kind), weak=False)


@worker_ready.connect
def _ready(**_: Any) -> None:
    ledger.event("worker ready", SIDE)


@beat_init.connect
def _count_ticks(**_: Any) -> None:
    def tick(**_: Any) -> None:
        ledger.event("tick", SIDE)

    after_task_publish.connect(tick, weak=False)
