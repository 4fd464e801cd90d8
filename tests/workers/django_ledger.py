"""An app whose tasks keep their effects in a Django database, in the transaction of their record."""

import os

import django
from backroom import make_app, note, once, wait_at
from django.conf import settings
from django.db import DatabaseError, connection, models, transaction
from django_url import as_django

from qx_cache_celery import IdempotentTask

if not settings.configured:
    settings.configure(
        DATABASES={"default": as_django(os.environ["QX_TEST_DATABASE"])},
        INSTALLED_APPS=["qx_cache_celery.inbox.django"],
    )
    django.setup()

app = make_app("django_ledger")


class Payment(models.Model):
    order = models.CharField(max_length=64)

    class Meta:
        app_label = "django_ledger"

    def __str__(self):
        return self.order


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", fingerprint=["order"], tx="default")
def capture(self, order, *, how="", gate=""):
    note("start", order=order, id=self.request.id)
    wait_at(gate)
    Payment.objects.create(order=order)
    if how == "savepoint":
        with transaction.atomic():
            Payment.objects.create(order=order)
            transaction.set_rollback(True)
    if how == "swallows":
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT * FROM nowhere")
        except DatabaseError:
            note("swallowed", order=order)
    if how == "marks":
        transaction.set_rollback(True)
    if how == "fails once" and once(f"fails-{order}"):
        raise ValueError(order)
    if how == "session":
        _ = self.tx.session
    self.tx.delay(child, order)
    return f"paid {order}"


@app.task(base=IdempotentTask, bind=True, tx="default")
def child(self, order):
    note("child", order=order, id=self.request.id)


class Wrapped(IdempotentTask):
    """Opens a transaction around the guards, as some projects do."""

    def __call__(self, *args, **kwargs):
        with transaction.atomic():
            return super().__call__(*args, **kwargs)


@app.task(base=Wrapped, bind=True, tx="default")
def wrapped(self, order):
    Payment.objects.create(order=order)


@app.task(base=IdempotentTask, bind=True, tx="elsewhere")
def elsewhere(self, order):
    Payment.objects.create(order=order)


def make_tables():
    """By the migrations, as a project does; safe to repeat."""
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)
    if Payment._meta.db_table not in connection.introspection.table_names():
        with connection.schema_editor() as editor:
            editor.create_model(Payment)


if __name__ == "__main__":
    make_tables()
