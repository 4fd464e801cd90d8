"""Keeping the messages of a living worker out of other workers' hands, on the Redis broker.

The broker delivers a message again that was not acknowledged within ``visibility_timeout``, whether its worker is
dead or busy: long tasks and long ETAs run many times (celery#3430, #5935, kombu#337). This step of the consumer
refreshes the score of every message that the worker holds, so that the timeout only ever passes for the dead, and
may be as short as a minute.
"""

import logging
import time
from typing import Any

from celery import bootsteps
from kombu.transport.virtual import Channel

_log = logging.getLogger("qx_cache_celery.worker")
_PART = 3
"""A refresh every third of the timeout, so that one may fail."""


class VisibilityHeartbeat(bootsteps.StartStopStep):
    """Refreshes what this consumer holds; on where the broker is Redis and a guarded task is defined.

    ``qx_cache_visibility_heartbeat = False`` turns it off. Messages that wait for their ETA are held as well. A
    task that hangs for ever is held for ever: give such tasks a time limit.
    """

    requires = ("celery.worker.consumer:Tasks",)
    label = "qx-visibility"

    def __init__(self, consumer: Any, **kwargs: Any) -> None:
        super().__init__(consumer, **kwargs)
        self._timer: Any = None

    def include_if(self, consumer: Any) -> bool:
        """True unless it is turned off."""
        return bool(consumer.app.conf.get("qx_cache_visibility_heartbeat", True))

    def start(self, consumer: Any) -> None:
        """Refresh from now on."""
        channel = consumer.task_consumer.channel
        if consumer.connection.transport.driver_type != "redis":
            return
        timeout = float(channel.visibility_timeout)
        self._timer = consumer.timer.call_repeatedly(timeout / _PART, self._beat, (consumer,))
        _log.info("visibility heartbeat: every %.1f s, the timeout is %.1f s", timeout / _PART, timeout)

    def stop(self, consumer: Any) -> None:  # noqa: ARG002  # the parent's face
        """Refresh no more; what was held is delivered again after the timeout."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    terminate = stop  # type: ignore[assignment]  # the names of the parameter differ in Celery

    @staticmethod
    def _beat(consumer: Any) -> None:
        try:
            refresh(consumer.task_consumer.channel)
        except Exception as error:  # noqa: BLE001  # the next beat may succeed; Celery looks after the connection
            _log.warning("visibility heartbeat failed, another follows in time: %s", error)


def refresh(channel: Channel) -> int:
    """Give every message that ``channel`` holds a fresh score, in one command; how many there are.

    The client is the channel's own, with its prefix, credentials and sentinels. ``XX``: one that was acknowledged
    meanwhile does not come back.
    """
    qos: Any = channel.qos
    held = set(_snapshot(qos._delivered)) - set(_snapshot(qos._dirty))  # noqa: SLF001  # kombu has no public view of it
    if held:
        now = time.time()
        redis_channel: Any = channel
        with redis_channel.conn_or_acquire() as client:
            client.zadd(redis_channel.unacked_index_key, dict.fromkeys(held, now), xx=True)
    return len(held)


def _snapshot(live: Any) -> list[Any]:
    """A copy of what other threads may be changing."""
    while True:
        try:
            return list(live)
        except RuntimeError:  # it changed meanwhile
            continue
