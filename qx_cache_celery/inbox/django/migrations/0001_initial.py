"""The table, as ``inbox_ddl`` has it."""

from typing import ClassVar

from django.db import migrations, models


class Migration(migrations.Migration):
    """Makes ``qx_inbox`` and the index of its sweep."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar = [
        migrations.CreateModel(
            name="InboxRow",
            fields=[
                ("key", models.CharField(max_length=255, primary_key=True, serialize=False)),
                ("state", models.CharField(max_length=8)),
                ("fence", models.BigIntegerField()),
                ("attempt", models.IntegerField()),
                ("retries", models.IntegerField()),
                ("holder", models.CharField(max_length=128)),
                ("fingerprint", models.CharField(max_length=22)),
                ("at_ms", models.BigIntegerField()),
                ("ended_ms", models.BigIntegerField(null=True)),
                ("result", models.BinaryField(null=True)),
                ("staged", models.BinaryField(null=True)),
            ],
            options={
                "db_table": "qx_inbox",
                "indexes": [models.Index(fields=["at_ms"], name="qx_inbox_at_ms")],
            },
        ),
    ]
