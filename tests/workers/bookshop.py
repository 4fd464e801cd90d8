"""The Celery app of a Django project, as Celery's guide has it; its beat notes what it writes to the database."""

import os
import sys

import terms  # noqa: F401  # tells of leaders
from backroom import FOLDER, note, wait_at
from celery import Celery
from celery.contrib.django.task import DjangoTask
from celery.signals import before_task_publish

from qx_cache_celery import IdempotentTask, SingletonTask

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bookshop_settings")
app = Celery("bookshop")
app.config_from_object("django.conf:settings", namespace="CELERY")


class RecordedOnCommit(DjangoTask, IdempotentTask):
    """Published when the transaction commits, and recorded."""


class SingleOnCommit(DjangoTask, SingletonTask):
    """Published when the transaction commits, and one at a time."""


@app.task(base=RecordedOnCommit, bind=True, idempotency_key="{order}")
def paid(self, order):
    note("paid", order=order, id=self.request.id)


@app.task(base=SingleOnCommit, lock_key=[])
def counted(order):
    note("counted", order=order)


@app.task(base=SingletonTask, bind=True)
def ticked(self):
    note("tick", id=self.request.id, tick=self.request.headers["qx_tick"])


@app.task(bind=True)
def opened(self):
    note("opened", id=self.request.id, tick=self.request.headers["qx_tick"])


def noting(execute, sql, parameters, many, context):
    if sql.startswith(("INSERT", "UPDATE", "DELETE")):
        note("wrote", sql=sql)
    return execute(sql, parameters, many, context)


def note_writes(connection, **_):
    if noting not in connection.execute_wrappers:
        connection.execute_wrappers.append(noting)


def hold(sender, **_):
    """Publish nothing of ``opened`` in a process that finds the file ``held``, which it takes away."""
    if sender == opened.name and (FOLDER / "held").exists():
        (FOLDER / "held").unlink()
        note("publishing")
        wait_at("never")


if "beat" in sys.argv:
    before_task_publish.connect(hold, weak=False)
    from django.db.backends.signals import connection_created

    connection_created.connect(note_writes, weak=False)
