"""RedBeat's scheduler with our leader instead of its own lock."""

from backroom import note
from redbeat import RedBeatScheduler

from qx_cache_celery.beat import Leading


class SingletonRedBeatScheduler(Leading, RedBeatScheduler):
    """Its schedule is in Redis, for every beat to see."""

    shared_schedule = True

    @property
    def schedule(self):
        """As RedBeat reads it from Redis; each look is noted."""
        note("looked")
        return super().schedule
