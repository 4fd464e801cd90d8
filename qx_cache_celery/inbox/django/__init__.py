"""The Django app that makes the inbox's table: ``INSTALLED_APPS = [..., "qx_cache_celery.inbox.django"]``."""
