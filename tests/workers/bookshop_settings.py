"""Settings of a Django project whose Celery is told everything here."""

import os
from pathlib import Path

SECRET_KEY = "of a test"  # noqa: S105  # nothing is signed
INSTALLED_APPS = ["django_celery_beat"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": Path(os.environ["QX_TEST_FOLDER"]) / "bookshop.sqlite3",
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = CELERY_TIMEZONE = "Europe/Berlin"

CELERY_BROKER_URL = os.environ["QX_TEST_BROKER"]
CELERY_RESULT_EXPIRES = None  # so that beat declares no entry of its own
CELERY_TASK_IGNORE_RESULT = True
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BEAT_MAX_LOOP_INTERVAL = 0.2
CELERY_QX_CACHE_NAMESPACE = "books"
CELERY_QX_CACHE_BEAT_LOCK_TTL = 2
CELERY_QX_CACHE_LOCK_TTL = 2
CELERY_QX_CACHE_LEASE_TTL = 2
