"""An app whose tasks keep their effects in a database, in the transaction of their record (``tx=``)."""

import os
import signal
import time

import redis
from backroom import FOLDER, make_app, note, once, wait_at
from celery.signals import before_task_publish
from sqlalchemy import String, create_engine, event, func, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

from qx_cache_celery import RERUN, IdempotentTask, SingletonTask
from qx_cache_celery.inbox import create_inbox

app = make_app("ledger")
engine = create_engine(os.environ["QX_TEST_DATABASE"])
Ledger = sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(primary_key=True)
    order: Mapped[str] = mapped_column(String(64), name="order_id")


def make_tables():
    Base.metadata.create_all(engine)
    create_inbox(engine)


def effects(order):
    """How often an order was paid."""
    with Ledger() as session:
        return session.scalar(select(func.count()).where(Payment.order == order))


class Dies(IdempotentTask):
    """Killed once, where the order's name says."""

    def __call__(self, *args, **kwargs):
        if not self.request.id:
            return super().__call__(*args, **kwargs)
        sent.clear()
        result = super().__call__(*args, **kwargs)
        note("sent", statements=sent)
        die_at("end", *args)
        return result


sent = []
"""The statements of this process since its task began, by their first two words."""


@event.listens_for(engine, "before_cursor_execute")
def at_statement(connection, cursor, statement, *_):
    sent.append(" ".join(statement.split()[:3:2]))


@event.listens_for(engine, "commit")
def at_commit(connection):
    """Just after a COMMIT that had an effect of ours: the record does not say so yet."""
    if order := connection.info.pop("paid", None):
        connection.connection.dbapi_connection.commit()
        if order == "locked":
            note("committed", held=both.lock_info(order).state)
        die_at("commit", order)


@before_task_publish.connect
def at_publish(sender=None, body=(), **_):
    """Between the commit of a parent and the publishing of its first and second child."""
    if sender == "ledger.child":
        [order], *_ = body
        if not once(f"published-{order}"):
            die_at("between", order)
        die_at("publish", order)


def die_at(point, order, *_):
    """End this process once, when the order's name asks for it here; perhaps Redis forgets its record as well."""
    if str(order).startswith(f"die-{point}") and once(f"died-{order}"):
        note("died", order=order, point=point)
        if order.endswith("-forget"):
            with redis.Redis.from_url(app.conf.broker_url.replace("redis+socket", "unix")) as client:
                client.delete(f"ledger:idem:1:{{ledger.capture:key:{order}}}")
        os.kill(os.getpid(), signal.SIGKILL)


def pay(task, order, *, gate="", commit=False, how=""):
    """What the tasks do: pay, in the transaction."""
    note("start", order=order, id=task.request.id, retries=task.request.retries)
    die_at("start", order)
    wait_at(gate if once(f"gate-{order}") else "")
    session = task.tx.session
    session.add(Payment(order=order))
    session.connection().info["paid"] = order
    if commit:
        session.commit()
    if how:
        HOWS[how](session, order)
    die_at("body", order)
    return f"paid {order}"


def swallows(session, order):
    try:
        session.execute(text("SELECT * FROM nowhere"))
    except DBAPIError:
        note("swallowed", order=order)


def commits_past_us(session, order):
    session.flush()
    session.connection().commit()


def rolls_back_past_us(session, order):
    session.execute(text("ROLLBACK"))


def fails_once(session, order):
    session.flush()
    if once(f"fails-{order}"):
        raise ValueError(order)


def retries_once(session, order):
    session.flush()
    if once(f"retries-{order}"):
        raise capture.retry(countdown=0.1)


HOWS = {
    "swallows": swallows,
    "commits": commits_past_us,
    "rolls back": rolls_back_past_us,
    "fails once": fails_once,
    "retries once": retries_once,
}


class Both(SingletonTask, IdempotentTask):
    """One recorded run a key, one at a time."""


@app.task(base=Both, bind=True, tx=Ledger, lock_key=[])
def both(self, order):
    return pay(self, order)


@app.task(
    base=Both,
    bind=True,
    tx=Ledger,
    lock_key=[],
    idempotency_key="{order}",
    fingerprint=["order"],
    on_interrupted=lambda *_, **__: RERUN,
)
def resumed(self, order, **how):
    self.lease.ensure()
    return pay(self, order, **how)


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def replacing(self, order):
    pay(self, order)
    raise self.replace(capture.si("another"))


@app.task(base=Dies, bind=True, idempotency_key="{order}", fingerprint=["order"], tx=Ledger, lock_timeout=1)
def capture(self, order, **how):
    return pay(self, order, **how)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", tx=engine, fingerprint=["amount"])
def strict(self, order, amount):
    note("start", order=order)
    self.tx.session.add(Payment(order=order))
    return amount


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def caller(self, order, *, fail=False):
    """Calls another task's body, in its own transaction."""
    self.tx.session.add(Payment(order=f"caller of {order}"))
    self.tx.session.flush()
    told = capture(order)
    if fail:
        raise ValueError(order)
    return told


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def child(self, order):
    note("child", order=order, id=self.request.id)
    self.tx.session.add(Payment(order=f"child of {order}"))
    return order


@app.task(base=Dies, bind=True, idempotency_key="{order}", tx=Ledger)
def parent(self, order, *, fail=False):
    note("start", order=order, id=self.request.id)
    self.tx.session.add(Payment(order=order))
    staged = [self.tx.delay(child, order), self.tx.stage(child.s(order).set(countdown=0.1))]
    if fail:
        raise ValueError(order)
    return [one.id for one in staged]


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def going_on(self, order):
    """Would publish its retry, and go on to its end all the same."""
    note("start", order=order, id=self.request.id)
    self.tx.session.add(Payment(order=order))
    self.retry(countdown=0.1, throw=False)
    return order


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def much(self, order):
    self.tx.session.add(Payment(order=order))
    return "x" * (1 << 21)


@app.task(
    base=IdempotentTask,
    bind=True,
    tx=Ledger,
    idempotency_key="{order}",
    on_interrupted="unknown",
    fingerprint=["order"],
    lock_timeout=1,
)
def once_at_most(self, order, **how):
    return pay(self, order, **how)


@app.task(base=IdempotentTask, bind=True, tx=Ledger, idempotency_key="{order}", keep_failures=True)
def failing(self, order):
    note("start", order=order)
    self.tx.session.add(Payment(order=order))
    raise ValueError(f"no {order}")


class Counter(Base):
    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(8), primary_key=True)
    value: Mapped[int] = mapped_column(default=0)


def make_counters():
    with Ledger.begin() as session:
        session.add_all([Counter(name="a"), Counter(name="b")])


def counters():
    with Ledger() as session:
        return list(session.scalars(select(Counter.value).order_by(Counter.name)))


@app.task(base=IdempotentTask, bind=True, tx=Ledger)
def swap(self, one, other):
    """Counts on both, each from its own end: two at once lock each other out."""
    note("start", order=one, id=self.request.id)
    for name in (one, other):
        self.tx.session.execute(update(Counter).where(Counter.name == name).values(value=Counter.value + 1))
        note("counted", order=one)
        wait_for_rival = name == one and once(f"waited-{one}")
        until = time.monotonic() + 10
        while wait_for_rival and len(journal("counted")) < 2 and time.monotonic() < until:
            time.sleep(0.01)
    return "ok"


def journal(what):
    return [line for line in (FOLDER / "journal").read_text().splitlines() if f'"what": "{what}"' in line]


@app.task
def add(value, more):
    note("add", value=value)
    return f"{value} {more}"


@app.task
def collect(values):
    note("collect", values=values)
    return sorted(values)
