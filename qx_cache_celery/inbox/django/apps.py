"""The app, as Django looks for it."""

from django.apps import AppConfig


class InboxConfig(AppConfig):
    """Has one table, ``qx_inbox``; ``manage.py migrate`` makes it, ``--database`` says where."""

    name = "qx_cache_celery.inbox.django"
    label = "qx_inbox"
    verbose_name = "Task inbox"
