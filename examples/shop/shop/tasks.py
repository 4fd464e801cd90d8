"""The Celery app: ``celery -A shop.tasks worker``, ``celery -A shop.tasks beat``, as many of each as you like."""

import os
import socket
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from celery import Celery
from celery.signals import heartbeat_sent, worker_ready
from celery.utils.log import get_task_logger
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

from qx_cache_celery import IdempotentTask, SingletonTask
from qx_cache_celery.beat import TICK
from shop.models import Order, Payment, Report, now, open_database
from shop.provider import take_payment
from shop.settings import Settings

log = get_task_logger(__name__)
settings = Settings()
Session = sessionmaker(open_database(settings.database_url.get_secret_value()))
IDLE = getattr(socket, "TCP_KEEPIDLE", None) or socket.TCP_KEEPALIVE  # the latter on macOS
KEEPALIVE = {IDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3}  # dead after 19 s


def _transport_options(broker_url: str) -> dict[str, Any]:
    """What a broker needs so that the task of a killed worker is soon run again, and none is lost."""
    if not broker_url.startswith(("redis", "rediss", "valkey", "sentinel")):
        # RabbitMQ says when it has the message; one that hangs would be waited for without end
        return {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5}
    return {
        "visibility_timeout": 60,  # seconds after which a dead worker's task is delivered again
        "unacked_restore_interval": 1,  # between looks for such tasks
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 10,  # a worker that is killed while it looks holds that up for so long
        "socket_timeout": 5,  # these three find a connection that the network dropped without a word
        "socket_keepalive": True,
        "socket_keepalive_options": KEEPALIVE,
    }


app = Celery("shop", broker=settings.broker)
app.conf.update(
    broker_transport_options=_transport_options(settings.broker),
    broker_connection_retry_on_startup=True,
    task_ignore_result=True,  # what came of an order is in the database
    task_time_limit=300,  # one that hangs would be held by its worker for ever
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,  # they may end: their outcome is recorded
    qx_cache_backend_url=settings.redis_url.get_secret_value(),
    beat_scheduler="qx_cache_celery.beat:SingletonScheduler",
    beat_schedule={
        "nightly report": {"task": "shop.tasks.nightly_report", "schedule": settings.report_every_seconds},
        "forgotten orders": {"task": "shop.tasks.charge_forgotten", "schedule": settings.charge_again_seconds},
    },
)


@worker_ready.connect
@heartbeat_sent.connect
def show_signs_of_life(**_: Any) -> None:
    """Touch a file every two seconds: a health check that looks at it costs nothing."""
    if settings.alive_file is not None:
        settings.alive_file.touch()


@app.task(base=IdempotentTask, bind=True, tx=Session, idempotency_key="{order_id}")
def charge(self: Any, order_id: str) -> dict[str, Any] | None:
    """Take the money for an order: once, whatever crashes and however often this is published.

    The payment, the order's new state and the record that the order is charged commit in one transaction. The
    provider is not part of it, and so is given a key that is the same in every run. Records are deleted after a
    while; that an order is paid, its row knows for ever.
    """
    session = self.tx.session
    order = session.get_one(Order, order_id)
    if order.state == "paid":
        return None
    log.info("charging order %s in process %d", order_id, os.getpid())
    key = self.idempotency.downstream_key
    self.lease.ensure()
    reference = take_payment(order.amount_cents, key=key, seconds=settings.charge_seconds)
    payment = Payment(order_id=order_id, amount_cents=order.amount_cents, reference=reference)
    session.add(payment)
    order.state = "paid"
    session.flush()
    return {"payment_id": payment.id, "reference": reference}


@app.task(base=SingletonTask)
def charge_forgotten() -> int:
    """Publish the charge of orders again that have waited too long: one that is charged already stays so.

    A hundred at a time, any hundred: some that can never be charged do not stand in the way of all others.
    """
    before = now() - timedelta(seconds=settings.charge_again_seconds)
    waiting = select(Order.id).where(Order.state == "placed", Order.placed_at < before)
    with Session() as session:
        order_ids = session.scalars(waiting.order_by(func.random()).limit(100)).all()
    for order_id in order_ids:
        charge.delay(order_id)
    return len(order_ids)


@app.task(
    base=SingletonTask,
    bind=True,
    acks_late=True,  # a killed worker's run is delivered again: there is no other one for that day
    reject_on_worker_lost=True,
    autoretry_for=(OperationalError,),  # the database is away
    retry_backoff=True,
    retry_backoff_max=30,
    max_retries=100,
)
def nightly_report(self: Any) -> None:
    """Sum up the day that was over when this was due, or is still going on; a retry keeps to the same day."""
    day = _day_of(self.request.headers or {})
    begin = datetime.combine(day, time(), UTC)
    paid = (Payment.paid_at >= begin, Payment.paid_at < begin + timedelta(days=1))
    with Session.begin() as session:
        total = func.coalesce(func.sum(Payment.amount_cents), 0)
        payments, total_cents = session.execute(select(func.count(), total).where(*paid)).one()
        self.lease.ensure()
        session.merge(Report(day=day, payments=payments, total_cents=total_cents, made_at=now()))


def _day_of(headers: dict[str, Any]) -> date:
    """The day that had a moment left when the run was due: yesterday for the tick of midnight, however late."""
    tick = headers.get(TICK)
    due = datetime.fromtimestamp(float(tick.rpartition(" ")[2]), UTC) if tick else now()
    return (due - timedelta(microseconds=1)).date()
