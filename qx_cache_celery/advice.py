"""Settings that make the guarantees hollow, told once at worker start: what can go wrong, and what to set."""

import logging
from collections.abc import Iterator
from typing import Any

from celery import Celery, bootsteps

from qx_cache import CacheError, create_sync_client, diagnose_sync
from qx_cache_celery.runtime import store_settings

_log = logging.getLogger("qx_cache_celery.worker")
_KOMBU_MUTEX_SECONDS = 300.0
_KOMBU_VISIBILITY_SECONDS = 3600.0
_LOOPBACK = ("127.", "localhost", "::1")
_AGAINST_DEAD_CONNECTIONS = ("socket_timeout", "socket_keepalive", "socket_keepalive_options")
"""All three: with a timeout alone, kombu makes its queue connection anew and then loses what Redis hands to it."""


class Advice(bootsteps.Step):
    """Logs a warning for each, before the worker takes its first task."""

    requires = ("celery.worker.consumer:Connection",)
    label = "qx-advice"

    def create(self, consumer: Any) -> None:
        """Look once; what cannot be looked at is left."""
        for line in advice(consumer.app):
            _log.warning("%s", line)


def advice(app: Celery) -> list[str]:
    """What of the app's settings, and of its Redis, to change; a line each.

    Args:
        app: Finalised; its guarded tasks are looked at.
    """
    return [*_of_broker(app), *_of_tasks(app), *_of_store(app)]


def _of_broker(app: Celery) -> Iterator[str]:
    transport = app.connection_for_read().transport.driver_type
    options = app.conf.broker_transport_options or {}
    if transport == "amqp" and not options.get("confirm_publish"):
        yield (
            "the broker does not confirm what is published: a task can be lost on its way there; set "
            "broker_transport_options = {'confirm_publish': True}"
        )
    if transport != "redis":
        return
    visibility = float(options.get("visibility_timeout", _KOMBU_VISIBILITY_SECONDS))
    mutex = float(options.get("unacked_mutex_expire", _KOMBU_MUTEX_SECONDS))
    if mutex > visibility:
        yield (
            f"a worker that is killed while it looks for lost messages holds that up for {mutex:g} s, longer than "
            f"visibility_timeout {visibility:g} s; set unacked_mutex_expire in broker_transport_options"
        )
    missing = [name for name in _AGAINST_DEAD_CONNECTIONS if not options.get(name)]
    if missing and _goes_over_a_network(app):
        yield (
            "a worker whose connection the network drops without a word waits for the broker, perhaps for ever; "
            f"set {', '.join(missing)} in broker_transport_options"
        )
    if app.conf.get("qx_cache_visibility_heartbeat", True) and not app.conf.task_time_limit:
        yield (
            "a task that hangs is held by its worker for ever, as the visibility heartbeat keeps it from others; "
            "set task_time_limit, or qx_cache_visibility_heartbeat = False"
        )


def _goes_over_a_network(app: Celery) -> bool:
    host = app.connection_for_read().hostname or _LOOPBACK[0]  # kombu's default; of a Unix socket it has a scheme
    return "://" not in host and not host.startswith(_LOOPBACK)


def _of_tasks(app: Celery) -> Iterator[str]:
    if app.connection_for_read().transport.driver_type != "redis":
        return
    options = app.conf.broker_transport_options or {}
    visibility = float(options.get("visibility_timeout", _KOMBU_VISIBILITY_SECONDS))
    tasks: list[tuple[str, Any]] = sorted(app.tasks.items())
    for name, task in tasks:
        if getattr(task, "qx_record_guard", None) is None:
            continue
        ttl = task.qx_options.duration(app, "result_ttl")
        if ttl <= visibility:
            yield (
                f"task {name}: result_ttl {ttl:g} s is not above visibility_timeout {visibility:g} s, so a "
                "redelivery may come when its record is gone and run again; raise result_ttl"
            )


def _of_store(app: Celery) -> Iterator[str]:
    try:
        with create_sync_client(store_settings(app)) as client:
            findings = diagnose_sync(client)
    except CacheError as error:
        yield f"the Redis of records and locks could not be looked at: {error}"
        return
    for finding in findings:
        if finding.severity != "info":
            yield f"the Redis of records and locks: {finding.message}"
