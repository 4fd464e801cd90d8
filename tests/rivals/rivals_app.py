"""One task under one of the known helpers, as its own documentation sets it up; what it does stands in a plan."""

import json
import os
import time
from pathlib import Path

from celery import Celery

RIVAL, URL, FOLDER = os.environ["RIVAL"], os.environ["RIVAL_URL"], Path(os.environ["RIVAL_FOLDER"])
LATE = {"acks_late": True, "reject_on_worker_lost": True}
ACKS = {"early": {}, "late": LATE, "again": {**LATE, "retry_on_worker_lost": True, "default_retry_delay": 0.2}}

app = Celery("rivals", broker=URL, backend=URL)
app.conf.update(
    broker_transport_options={
        "visibility_timeout": float(os.environ.get("RIVAL_VISIBILITY", "60")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,
    },
    broker_connection_retry_on_startup=True,
    worker_prefetch_multiplier=1,
    task_track_started=True,
)


def base():
    """The base class of the helper, and the options that turn it on."""
    if RIVAL == "celery-singleton":
        from celery_singleton import Singleton

        return Singleton, {}
    if RIVAL == "celery-once":
        from celery_once import QueueOnce

        app.conf.ONCE = {
            "backend": "celery_once.backends.Redis",
            "settings": {"url": URL, "default_timeout": 3600},
        }
        return QueueOnce, {}
    if RIVAL == "celery-heimdall":
        from celery_heimdall import HeimdallTask

        return HeimdallTask, {"heimdall": {"unique": True}}
    from celery_once_task import OnceTask, OnceTaskUnlockBootStep, configure, setup_once_task_signals

    configure(redis_url=URL)
    app.steps["worker"].add(OnceTaskUnlockBootStep)
    setup_once_task_signals()
    return OnceTask, {}


def note(what, **more):
    """Append one line to the journal."""
    with (FOLDER / "journal").open("a") as journal:
        journal.write(json.dumps({"what": what, "pid": os.getpid(), "at": time.time(), **more}) + "\n")


def body(self, order):
    """Note the start, do what the plan says, note that it is over."""
    known = {"order": order, "id": self.request.id, "retries": self.request.retries}
    plan = json.loads((FOLDER / f"plan-{order}").read_text())
    note("start", **known)
    try:
        time.sleep(plan.get("seconds", 0))
        while plan.get("gate") and not (FOLDER / f"gate-{order}").exists():
            time.sleep(0.02)
        if plan.get("retry") and self.request.retries == 0:
            raise self.retry(countdown=0.2)
        if plan.get("fail") and not (FOLDER / f"failed-{order}").exists():
            (FOLDER / f"failed-{order}").touch()
            raise ValueError(order)
        return order
    finally:
        note("over", **known)


kind, more = base()
TASKS = {
    acks: app.task(base=kind, bind=True, name=f"rivals.{acks}", **options, **more)(body)
    for acks, options in ACKS.items()
}


@app.task
def collect(values):
    """The body of the chord."""
    return values


@app.task
def tail(value, name):
    """What follows in a chain."""
    note("tail", order=value, name=name)
    return value
