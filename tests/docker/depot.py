"""The app in the containers. Its tasks note what they do in a list of the store, which outlives any worker."""

import json
import os
import socket
import time

import redis
from celery import Celery
from celery.signals import worker_ready
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from qx_cache_celery import IdempotentTask, SingletonTask
from qx_cache_celery.interrupt import LeaseLost
from qx_cache_celery.signals import beat_leader_elected

STORE = os.environ["CELERY_RESULT_BACKEND"]
HOST = socket.gethostname()
CONF = json.loads(os.environ["DEPOT_CONF"])
PATIENCE = {
    "socket_timeout": 5,
    "socket_keepalive": True,
    "socket_keepalive_options": {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 3, socket.TCP_KEEPCNT: 3},
}
"""As docs/crashes.md has it. Without it a worker that was cut off, and has a new address since, waits for ever."""

if os.environ["CELERY_BROKER_URL"].startswith("redis"):
    CONF["broker_transport_options"] |= PATIENCE
app = Celery("depot", broker=os.environ["CELERY_BROKER_URL"], backend=STORE)
app.conf.update(
    **CONF,
    broker_connection_retry_on_startup=True,
    broker_heartbeat=4,  # by which RabbitMQ learns that a worker is frozen
    redis_socket_timeout=5,  # of the result backend
    worker_prefetch_multiplier=1,
    worker_cancel_long_running_tasks_on_connection_loss=False,
    task_track_started=True,
    qx_cache_backend_url=STORE,
    qx_cache_lease_ttl=2,
    qx_cache_lock_ttl=2,
    qx_cache_beat_lock_ttl=2,
    beat_schedule={"tick": {"task": "depot.ticked", "schedule": 0.5}},
    beat_max_loop_interval=0.2,
)
# where effects go must not fail while the store is restarted
journal = redis.Redis.from_url(STORE, retry=Retry(ConstantBackoff(0.1), 100))


def note(what, **more):
    """One line of the journal, by the clock that all containers share."""
    journal.rpush("journal", json.dumps({"what": what, "host": HOST, "at": time.time(), **more}))


@worker_ready.connect
def ready(**_):
    note("ready")


@beat_leader_elected.connect
def elected(**_):
    note("elected")


def work(task, order, seconds):
    """Take time, then have an effect, where that is still allowed."""
    note("start", order=order)
    time.sleep(seconds)
    try:
        task.lease.ensure()
    except LeaseLost:
        note("refused", order=order)
        raise
    note("effect", order=order)
    return f"{order} by {HOST}"


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
def capture(self, order, seconds=0.0):
    return work(self, order, seconds)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", on_lease_lost="continue")
def stubborn(self, order, seconds):
    """Learns that its lease is lost when it asks, and not before."""
    return work(self, order, seconds)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
def pack(self, captured, order):
    """The body of a chord."""
    note("effect", order=order)
    return len(captured)


@app.task(
    base=SingletonTask, bind=True, lock_key=[], on_conflict="defer", acks_late=True, reject_on_worker_lost=True
)
def count_stock(self, order, seconds):
    note("start", order=order)
    time.sleep(seconds)
    note("end", order=order)
    return order


@app.task(bind=True, ignore_result=True)
def ticked(self):
    """Plain: nothing but its beat keeps a tick from running twice."""
    note("tick", tick=self.request.headers["qx_tick"])
