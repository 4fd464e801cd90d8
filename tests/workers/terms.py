"""Import it into an app to have its journal tell of each beat that is ready, and of each that leads."""

from backroom import note
from celery.signals import beat_init

from qx_cache_celery.signals import beat_leader_elected, beat_leader_lost


@beat_init.connect(weak=False)
def ready(**_):
    note("beating")


@beat_leader_elected.connect(weak=False)
def elected(sender, fence, **_):
    note("elected", app=sender.main, fence=fence)


@beat_leader_lost.connect(weak=False)
def lost(sender, fence, reason, **_):
    note("unseated", app=sender.main, fence=fence, reason=reason)
