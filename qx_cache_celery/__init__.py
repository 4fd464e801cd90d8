"""Celery task base classes on ``qx_cache``: outcomes recorded once, jobs that never overlap.

Importing this package reads no environment and opens no connection.
"""

from qx_cache_celery.idempotent import IdempotentTask
from qx_cache_celery.identity import KeyArgumentError
from qx_cache_celery.interrupt import LeaseLost, TaskLease
from qx_cache_celery.record import RERUN, Idempotency
from qx_cache_celery.singleton import AlreadyRunningError, SingletonTask
from qx_cache_celery.transaction import Transaction

__all__ = [
    "RERUN",
    "AlreadyRunningError",
    "Idempotency",
    "IdempotentTask",
    "KeyArgumentError",
    "LeaseLost",
    "SingletonTask",
    "TaskLease",
    "Transaction",
]
