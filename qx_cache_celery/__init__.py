"""Celery task base classes on ``qx_cache``: outcomes recorded once, jobs that never overlap.

Importing this package reads no environment and opens no connection.
"""

from qx_cache_celery.exclusion import AlreadyRunningError
from qx_cache_celery.idempotent import IdempotentTask
from qx_cache_celery.identity import KeyArgumentError
from qx_cache_celery.interrupt import LeaseLost, TaskLease
from qx_cache_celery.publication import AlreadyQueuedError
from qx_cache_celery.record import RERUN, Idempotency
from qx_cache_celery.singleton import SingletonTask
from qx_cache_celery.transaction import Transaction

__all__ = [
    "RERUN",
    "AlreadyQueuedError",
    "AlreadyRunningError",
    "Idempotency",
    "IdempotentTask",
    "KeyArgumentError",
    "LeaseLost",
    "SingletonTask",
    "TaskLease",
    "Transaction",
]
