"""What the apps of the worker tests share: broker, journal, gates, and listeners that note what they hear."""

import json
import logging
import os
import time
from pathlib import Path

from celery import Celery

from qx_cache_celery import signals

FOLDER = Path(os.environ["QX_TEST_FOLDER"])
BROKER = os.environ["QX_TEST_BROKER"]


class Alone(Celery):
    """Its tasks are its own: a later app of the same process does not get them."""

    def task(self, *args, **options):
        return super().task(*args, **{"shared": False, **options})


def make_app(name):
    """An app on the test's broker, with its settings."""
    app = Alone(name, broker=BROKER, backend=BROKER)
    app.conf.update(**_SETTINGS)
    app.conf.update(json.loads(os.environ.get("QX_TEST_CONF", "{}")))
    return app


_SETTINGS = {
    "broker_transport_options": {
        "visibility_timeout": float(os.environ.get("QX_TEST_VISIBILITY_TIMEOUT", "60")),
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,  # its holder may be killed
    },
    "broker_connection_retry_on_startup": True,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "task_track_started": True,
}


def note(what, **more):
    """Append one line; short appends of several processes do not mix."""
    line = json.dumps({"what": what, "pid": os.getpid(), "parent": os.getppid(), "at": time.time(), **more})
    with (FOLDER / "journal").open("a") as journal:
        journal.write(line + "\n")


def wait_at(gate):
    """Wait until the test opens the gate; for ever is longer than any test."""
    while gate and not (FOLDER / gate).exists():
        time.sleep(0.02)


def once(name):
    """True for the first caller with this name, in whatever process."""
    try:
        os.close(os.open(FOLDER / f"once-{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def work(
    task,
    order,
    *,
    seconds=0.0,
    gate="",
    ensure=False,
    fail=0,
    retry=False,
    retry_after=0.2,
    retry_headers=None,
    result=None,
):
    """What most tasks do: note the start, take time, perhaps fail, note the end."""
    attempt = task.request.retries or 0
    note("start", order=order, id=task.request.id, retries=attempt)
    try:
        time.sleep(seconds)
        wait_at(gate)
        if ensure:
            task.lease.ensure()
        if retry and attempt == 0:
            raise task.retry(countdown=retry_after, headers=retry_headers)
        if fail > attempt and once(f"fail-{order}-{attempt}"):
            raise ValueError(order)
        note("end", order=order, id=task.request.id)
        return [order] if result is None else result
    finally:
        note("over", order=order, id=task.request.id, retries=attempt)


def _listen(name, signal_):
    def handler(sender=None, task_id=None, **fields):
        fields.pop("signal", None)
        note(name, id=task_id, task=sender.name, **{key: str(value) for key, value in fields.items()})
        if sender.app.conf.get("listeners_raise"):
            raise RuntimeError("a listener's own fault")

    signal_.connect(handler, weak=False)


for name in ("replayed", "deferred", "taken_over", "interrupted", "skipped", "already_queued", "degraded"):
    _listen(name, getattr(signals, f"task_{name}"))
_listen("lost", signals.lease_lost)


class Reports(logging.Handler):
    """Writes down the fields of our log records, next to the rest."""

    def emit(self, record):
        known = set(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
        fields = {key: value for key, value in record.__dict__.items() if key not in known}
        if fields:
            note("log", level=record.levelname, **{key: str(value) for key, value in fields.items()})


logging.getLogger("qx_cache_celery.task").addHandler(Reports())
