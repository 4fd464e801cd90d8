"""The app of the table in docs/singleton.md: one task in two lock modes, acknowledged in three ways."""

from backroom import make_app, note, work

from qx_cache_celery import SingletonTask

app = make_app("peers")
MODES = ("while_executing", "until_executed")
LATE = {"acks_late": True, "reject_on_worker_lost": True}
ACKS = {"early": {}, "late": LATE, "again": {**LATE, "retry_on_worker_lost": True, "default_retry_delay": 0.2}}


def body(self, order, **how):
    return work(self, order, **how)


for mode in MODES:
    for acks, options in ACKS.items():
        made = {
            "name": f"peers.{mode}_{acks}",
            "lock_mode": mode,
            "lock_key": "{order}",
            "lock_ttl": 60,
            **options,
        }
        app.task(base=SingletonTask, bind=True, **made)(body)
    brief = {"name": f"peers.{mode}_brief", "lock_mode": mode, "lock_key": "{order}", "lock_ttl": 1.5, **LATE}
    app.task(base=SingletonTask, bind=True, **brief)(body)


def named(mode, acks):
    return app.tasks[f"peers.{mode}_{acks}"]


@app.task
def collect(values):
    return values


@app.task
def tail(value, name):
    note("tail", name=name)
    return value
