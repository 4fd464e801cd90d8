"""The app of the beat run: a job that runs one at a time, whose steps a fenced ledger takes or refuses.

The ledger is a file that no fault of Redis reaches: it takes a write whose fence is none below the highest seen.
The journal tells who leads, and which tick was dispatched, delivered, skipped, run and ended.
"""

import json
import logging
import os
import sqlite3
import time
import uuid
from contextlib import closing

from celery.signals import after_task_publish, beat_init, before_task_publish, task_prerun, worker_ready
from chaos_app import FOLDER, app, note

from qx_cache_celery import SingletonTask

__all__ = ["app"]
STEPS, STEP_SECONDS = 25, 0.1
LEDGER = FOLDER / "ledger.db"
COPIED = "qx_defers"
SETTINGS = json.loads(os.environ.get("QX_CHAOS_BEATS", "{}"))
under_way = {}
app.conf.beat_schedule = {"job": {"task": "beats_app.job", "schedule": 1.0}}


def tell(what, **more):
    """A line of the journal, with the process group: that of the command that was started."""
    note(what, group=os.getpgrp(), **more)


class Journal(logging.Handler):
    """Keeps what the packages log as events."""

    def emit(self, record):
        if event := record.__dict__.get("qx_event"):
            tell(event, at=record.created, id=record.__dict__.get("task_id"))


class Crashes(logging.Handler):
    """Notes that a worker ends by itself: it does so when it loses its Redis at a bad moment (kombu 5.7)."""

    def emit(self, record):
        tell("crashed", at=record.created, said=record.getMessage())


for name in ("qx_cache_celery.beat", "qx_cache_celery.task"):
    logging.getLogger(name).addHandler(Journal())
logging.getLogger("celery.worker").addHandler(Crashes(logging.CRITICAL))


@beat_init.connect
def on_beat(**_):
    tell("standing")


@worker_ready.connect
def on_worker(**_):
    tell("ready")


@before_task_publish.connect
def on_way(headers, **_):
    under_way[headers["id"]] = time.time()


@after_task_publish.connect
def on_publish(headers, **_):
    began = under_way.pop(headers["id"])
    if COPIED not in headers:
        tell("dispatched", id=headers["id"], tick=headers["qx_tick"], began=began)


@task_prerun.connect
def on_delivery(task_id, task, **_):
    tell("delivered", id=task_id, tick=task.request.headers["qx_tick"])


def connect():
    return closing(sqlite3.connect(LEDGER, timeout=20, isolation_level=None))


def make_ledger():
    columns = "seq INTEGER PRIMARY KEY AUTOINCREMENT, run TEXT, fence INTEGER, at REAL, accepted INTEGER"
    with connect() as connection:
        connection.execute(f"CREATE TABLE effects ({columns})")


def write(run, fence, at):
    """One effect: taken when no higher fence was seen before, and remembered either way."""
    with connect() as connection:
        connection.execute("PRAGMA synchronous = OFF")  # a crash of the machine is not tried
        connection.execute("BEGIN IMMEDIATE")
        highest = connection.execute("SELECT max(fence) FROM effects WHERE accepted").fetchone()[0] or 0
        row = (run, fence, at, fence >= highest)
        connection.execute("INSERT INTO effects (run, fence, at, accepted) VALUES (?, ?, ?, ?)", row)
        connection.execute("COMMIT")


def read_ledger():
    """All writes in their order, as ``(run, fence, at, accepted)``."""
    with connect() as connection:
        return connection.execute("SELECT run, fence, at, accepted FROM effects ORDER BY seq").fetchall()


@app.task(base=SingletonTask, bind=True, lock_key=[], acks_late=SETTINGS.get("late", False))
def job(self):
    run, fence, began = uuid.uuid4().hex, self.lease.fence, time.time()
    tell("start", run=run, id=self.request.id, fence=fence)
    for step in range(STEPS):
        time.sleep(max(0, began + (step + 0.5) * STEP_SECONDS - time.time()))
        at = time.time()  # before ensure(), so that a pause between the two does not count as held
        self.lease.ensure()
        time.sleep(STEP_SECONDS / 2)  # the way to the ledger: long enough to be frozen there
        write(run, fence, at)
    tell("finish", run=run, id=self.request.id)
