"""The table as Django sees it; rows are written by the tasks, not by this model."""

from typing import ClassVar

from django.db import models


class InboxRow(models.Model):
    """One key: how its run ended, written in the transaction of its effects."""

    key = models.CharField(max_length=255, primary_key=True)
    state = models.CharField(max_length=8)
    fence = models.BigIntegerField()
    attempt = models.IntegerField()
    retries = models.IntegerField()
    holder = models.CharField(max_length=128)
    fingerprint = models.CharField(max_length=22)
    at_ms = models.BigIntegerField()
    ended_ms = models.BigIntegerField(null=True)
    result = models.BinaryField(null=True)
    staged = models.BinaryField(null=True)

    class Meta:
        """Names as ``inbox_ddl`` has them."""

        db_table = "qx_inbox"
        indexes: ClassVar = [models.Index(fields=["at_ms"], name="qx_inbox_at_ms")]

    def __str__(self) -> str:
        return f"{self.key}: {self.state}"
