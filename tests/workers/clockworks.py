"""Schedulers that a test ticks by hand, with a clock that it sets."""

import json
import time

import beating
import redis
from celery import Celery
from celery.schedules import crontab

from qx_cache_celery.beat import SingletonScheduler

LOCK_SECONDS = 1.0
NIGHTLY = {"nightly": {"task": "nightly", "schedule": crontab(minute=0, hour=3, nowfun=beating.now)}}
THREE = 1781146800.0
DAY = 86_400.0


class Clockwork:
    """An app, its Redis, and schedulers that a test ticks by hand."""

    def __init__(self, folder, server):
        self.folder, self.server = folder, server
        self.redis = redis.Redis.from_url(server.url)
        self.made = []
        self.conf = {"beat_schedule": NIGHTLY, "qx_cache_beat_lock_ttl": LOCK_SECONDS}

    def scheduler(self, name=None, **conf):
        app = Celery("clockwork", broker=self.server.broker_url, set_as_current=False)
        app.conf.update(self.conf, **conf)
        name = name or f"schedule-{len(self.made)}"
        scheduler = SingletonScheduler(app, schedule_filename=str(self.folder / name))
        self.made.append(scheduler)
        assert scheduler._election.settled.wait(5)
        return scheduler

    def leads(self, scheduler):
        deadline = time.monotonic() + 10
        while scheduler.lease is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def sent(self):
        """The ticks of the messages in the queue, in order."""
        messages = [json.loads(one) for one in self.redis.lrange("celery", 0, -1)]
        return [message["headers"]["qx_tick"] for message in reversed(messages)]

    def stop(self):
        for scheduler in self.made:
            scheduler.close()
            scheduler.app.close()
        self.redis.close()


def turn(*schedulers):
    """As many turns as a beat needs to have done what is due."""
    for scheduler in schedulers:
        while scheduler.tick() == 0:
            pass


def tick_at(due):
    return f"nightly {due:.3f}"
