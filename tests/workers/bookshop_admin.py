"""What a person does in that project: ``python bookshop_admin.py migrate``, ``entries`` or ``orders``."""

import sys
from datetime import timedelta

import bookshop
import django
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone


def migrate():
    call_command("migrate", verbosity=0)


def entries():
    from django_celery_beat.models import ClockedSchedule, IntervalSchedule, PeriodicTask

    second = IntervalSchedule.objects.create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(name="each second", task="bookshop.ticked", interval=second)
    soon = ClockedSchedule.objects.create(clocked_time=timezone.now() + timedelta(seconds=4))
    PeriodicTask.objects.create(name="opening", task="bookshop.opened", clocked=soon, one_off=True)


def orders():
    with transaction.atomic():
        bookshop.paid.delay_on_commit("never")
        bookshop.counted.delay_on_commit("never")
        transaction.set_rollback(True)
    with transaction.atomic():
        for _ in range(2):
            bookshop.paid.delay_on_commit("a")
        bookshop.counted.delay_on_commit("a")
        assert not bookshop.app.connection_for_read().default_channel.client.llen("celery")
    bookshop.paid.apply_async_on_commit(("b",), idempotency_key="a key of the call")


if __name__ == "__main__":
    django.setup()
    globals()[sys.argv[1]]()
