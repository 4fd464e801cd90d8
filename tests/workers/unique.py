"""The app of the tests of publication: tasks of which one may be queued, or the newest is to run."""

import os
import signal
import time

from backroom import make_app, note, once, wait_at, work

from qx_cache_celery import IdempotentTask, SingletonTask

app = make_app("unique")
late = {"acks_late": True, "reject_on_worker_lost": True}


class Both(SingletonTask, IdempotentTask):
    """One queued, one recorded run a key, one at a time."""


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_executing")
def executing(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_executed")
def executed(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_and_while_executing", **late)
def executing_and_while(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_executed", on_duplicate="raise")
def strict(self, order, **how):
    return work(self, order, **how)


@app.task(base=Both, bind=True, lock_key="{order}", lock_mode="until_executed", idempotency_key="{order}")
def recorded(self, order, **how):
    return work(self, order, **how)


class Falls(SingletonTask):
    """Fails, or dies, before it reaches its lock."""

    def before_start(self, _task_id, args, _kwargs):
        if once(f"falls-{args[0]}"):
            if args[0] == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError(args[0])


@app.task(base=Falls, bind=True, lock_key="{order}", lock_mode="until_executed", ignore_result=True)
def falling(self, order):
    return work(self, order)


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_executed", ignore_result=True)
def quiet(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key="{order}", lock_mode="until_executing", ignore_result=True)
def quiet_executing(self, order, **how):
    return work(self, order, **how)


def loud(order):
    raise RuntimeError(order)


@app.task(base=SingletonTask, lock_key=loud)
def unkeyed(order):
    return order


@app.task(base=SingletonTask, bind=True, lock_mode="until_executed")
def exact(self, order, *more):
    return work(self, order, result=[str(one) for one in more])


@app.task(base=SingletonTask, bind=True, lock_key=[], on_conflict="keep_latest", **late)
def newest(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key=[], on_conflict="keep_latest", min_hold=1)
def debounced(self, order):
    return work(self, order)


@app.task(base=SingletonTask, bind=True, lock_key=[], on_conflict="keep_latest", **late)
def numbered(self, order):
    """Notes which publication it is."""
    number = int(self.request.headers["qx_number"].split()[0])
    note("start", order=order, id=self.request.id, number=number)
    wait_at("never" if once("victim") else "")  # the first one stands until its worker is killed
    time.sleep(0.05)
    note("end", order=order, id=self.request.id, number=number)
    return order


@app.task(base=SingletonTask, ignore_result=True, lock_mode="until_executed", lock_key="{number}")
def noop_unique(number):
    return number


@app.task(base=SingletonTask, ignore_result=True, lock_key="{number}")
def noop(number):
    return number


@app.task
def collect(values):
    return values
