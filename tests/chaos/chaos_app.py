"""The app of the fault harness: tasks that stop at the point where they are to be killed.

With a database their effects are rows of it, written in the transaction of the record (``tx=``).
"""

import json
import os
import time
from pathlib import Path

from celery import Celery, Task
from celery.worker.request import Request
from sqlalchemy import create_engine, event, text

from qx_cache_celery import IdempotentTask
from qx_cache_celery.inbox import create_inbox
from qx_cache_celery.steps import GuardedRequest

FOLDER = Path(os.environ["QX_CHAOS_FOLDER"])
POINT = os.environ.get("QX_CHAOS_POINT", "")

app = Celery("chaos", broker=os.environ["QX_CHAOS_BROKER"], backend=os.environ["QX_CHAOS_BACKEND"])
app.conf.update(
    broker_transport_options=json.loads(os.environ.get("QX_CHAOS_TRANSPORT", "{}")),
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    task_track_started=True,
    result_expires=600,
    qx_cache_backend_url=os.environ.get("QX_CHAOS_STORE", os.environ["QX_CHAOS_BACKEND"]),
    qx_cache_lease_ttl=2,
)
app.conf.update(json.loads(os.environ.get("QX_CHAOS_CONF", "{}")))
engine = create_engine(os.environ["QX_CHAOS_DATABASE"]) if "QX_CHAOS_DATABASE" in os.environ else None


def note(what, **more):
    line = json.dumps({"what": what, "pid": os.getpid(), "at": time.time(), **more})
    with (FOLDER / "journal").open("a") as journal:
        journal.write(line + "\n")


def reach(point, order):
    """Stop at the point of this cell, once, until something ends this process or the cell is over."""
    if point != POINT or not order.startswith("victim"):
        return
    try:
        os.close(os.open(FOLDER / "reached", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    note("reached", point=point)
    until = time.monotonic() + 20
    while not (FOLDER / "go").exists() and time.monotonic() < until:
        time.sleep(0.01)


class BeforeAck:
    """Stops in the main process, right before the acknowledgement."""

    def acknowledge(self):
        reach("before ack", str(self.args[0]))
        super().acknowledge()


class PlainRequest(BeforeAck, Request):
    """Celery's own."""


class OurRequest(BeforeAck, GuardedRequest):
    """Ours."""


class Points:
    """Stops around the body, outside of all guards."""

    def __call__(self, order, **how):
        reach("before claim", order)
        result = super().__call__(order, **how)
        reach("after complete", order)
        return result

    def on_success(self, _result, _task_id, args, _kwargs):  # after the store, the callbacks and the chord's part
        reach("after callbacks", args[0])


class PlainPoints(Points, Task):
    """What users do by hand today: late acks."""

    qx_tx = None

    Request = "chaos_app:PlainRequest"
    acks_late = True
    reject_on_worker_lost = True


class GuardedPoints(Points, IdempotentTask):
    """The same with a record."""

    Request = "chaos_app:OurRequest"


def effect(task, order):
    """What must be once: a line of the journal, or a row."""
    if task.qx_tx is None:
        note("effect", order=order)
        return
    connection = task.tx.session.connection()
    connection.execute(text("INSERT INTO effects (order_id) VALUES (:order)"), {"order": order})
    connection.info["order"] = order


if engine is not None:

    @event.listens_for(engine, "commit")
    def at_commit(connection):
        """Just after the COMMIT of an effect, of which Redis does not know yet."""
        order = connection.info.pop("order", "")
        if POINT == "after commit" and order:
            connection.connection.dbapi_connection.commit()
            reach("after commit", order)


def make_tables():
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effects (order_id varchar(64))"))
    create_inbox(engine)


def body(task, order):
    note("run", order=order, id=task.request.id)
    reach("after claim", order)
    reach("mid-body", order)
    if isinstance(task, IdempotentTask):
        task.lease.ensure()  # as the docs say: right before each effect
    effect(task, order)
    reach("after the effect", order)
    return order


@app.task(base=PlainPoints, bind=True, name="chaos_app.work_plain")
def work_plain(self, order):
    return body(self, order)


@app.task(base=GuardedPoints, bind=True, name="chaos_app.work_guarded")
def work_guarded(self, order):
    return body(self, order)


if engine is not None:

    @app.task(base=GuardedPoints, bind=True, name="chaos_app.work_tx", tx=engine, lock_timeout=1)
    def work_tx(self, order):
        return body(self, order)


@app.task
def collect(orders):
    note("collect", orders=orders)
    return sorted(orders)


def busy(task, order, duration):
    note("run", order=order, id=task.request.id)
    time.sleep(duration)
    task.lease.ensure()
    effect(task, order)
    if task.qx_tx is not None:
        task.tx.delay(child, order)
    return order


@app.task(base=IdempotentTask, bind=True, tx=engine, lock_timeout=1)
def child(self, order):
    """Staged by each order that is in a database."""
    if self.qx_tx is not None:
        effect(self, f"child of {order}")
    return order


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", tx=engine, lock_timeout=1)
def load(self, order, duration):
    return busy(self, order, duration)


@app.task(
    base=IdempotentTask, bind=True, idempotency_key="{order}", fingerprint=["order"], tx=engine, lock_timeout=1
)
def step(self, before, order, duration):
    return busy(self, order, duration)


@app.task(base=IdempotentTask, idempotency_key="{order}", fingerprint=["order"])
def gather(orders, order):
    note("gather", order=order)
    return sorted(orders)
