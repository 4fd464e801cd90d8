"""The app that the worker tests run: tasks that note what they do in a journal, and wait at gates."""

import os
import signal
import socket
import time

from backroom import make_app, note, once, work
from celery.contrib.django.task import DjangoTask
from celery.exceptions import OperationalError, Reject
from pydantic import BaseModel

from qx_cache_celery import RERUN, IdempotentTask, SingletonTask
from qx_cache_celery.guard import GuardedTask

app = make_app("shop")


class Both(SingletonTask, IdempotentTask):
    """One recorded run a key, one at a time."""


class BothReversed(IdempotentTask, SingletonTask):
    """The same in the other order."""


class DiesAfterComplete(IdempotentTask):
    """Killed once between the record of the result and everything after it."""

    def __call__(self, *args, **kwargs):
        result = super().__call__(*args, **kwargs)
        if self.request.id and once(f"dies-{self.request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class Unpublished(GuardedTask):
    """Its first retry is one that no broker takes, for what ``trouble`` says."""

    def apply_async(self, args=None, kwargs=None, **options):
        if options.get("retries") and once(f"unpublished-{options['task_id']}"):
            raise {"away": OperationalError, "never": TypeError}[args[1]](args[1])
        return super().apply_async(args, kwargs, **options)


class RecordedUnpublished(Unpublished, IdempotentTask):
    """With a record."""


class SingleUnpublished(Unpublished, SingletonTask):
    """With a lock, acknowledged early."""


class SingleDies(SingletonTask):
    """Killed once when its retry is about to be published, and once before Celery stores its result."""

    def signature_from_request(self, *args, **kwargs):
        if once(f"dies-{self.request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().signature_from_request(*args, **kwargs)

    def __call__(self, *args, **kwargs):
        result = super().__call__(*args, **kwargs)
        if once(f"dies-{self.request.id}-{self.request.retries}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class DiesOfFailure(IdempotentTask):
    """Killed once between the record of its failure and everything after it."""

    def __call__(self, *args, **kwargs):
        try:
            return super().__call__(*args, **kwargs)
        except ValueError:
            if once(f"dies-{self.request.id}"):
                os.kill(os.getpid(), signal.SIGKILL)
            raise


class DiesBeforeRetry(IdempotentTask):
    """Killed once when its retry is about to be published."""

    def signature_from_request(self, *args, **kwargs):
        if once(f"dies-{self.request.id}"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().signature_from_request(*args, **kwargs)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", fingerprint=["order"])
def capture(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask, bind=True)
def by_id(self, order, **how):
    return work(self, order, **how)


class OnCommit(DjangoTask, IdempotentTask):
    """Published when the transaction commits, and recorded."""


class OnCommitReversed(IdempotentTask, DjangoTask):
    """The same in the other order."""


@app.task(base=OnCommit, idempotency_key="{order}")
def committed(order):
    note("start", order=order)
    return order


@app.task(base=OnCommitReversed, idempotency_key="{order}")
def committed_reversed(order):
    note("start", order=order)
    return order


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}")
def strict(self, order, amount):
    return work(self, order, result=amount)


@app.task(base=DiesBeforeRetry, bind=True)
def dying_before_retry(self, order, **how):
    return work(self, order, **how)


@app.task(base=RecordedUnpublished, bind=True)
def recorded_unpublished(self, order, trouble):
    return work(self, order, retry=True)


@app.task(base=SingleUnpublished, bind=True)
def single_unpublished(self, order, trouble):
    return work(self, order, retry=True)


@app.task(base=SingleDies, bind=True, acks_late=True, reject_on_worker_lost=True, lock_ttl=1.5)
def single_dies(self, order, **how):
    return work(self, order, **how)


@app.task(base=DiesOfFailure, bind=True)
def dying_of_failure(self, order, **how):
    return work(self, order, **how)


@app.task(base=DiesAfterComplete, bind=True)
def dying(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key=[])
def nightly(self, order="n", **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, acks_late=True, reject_on_worker_lost=True)
def single(self, order, **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, unique_on=[], lock_expiry=60, acks_late=True, reject_on_worker_lost=True)
def lasting(self, order="l", **how):
    """Its lock would outlive any test."""
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key=[], min_hold=3)
def seldom(self, order="s", **how):
    return work(self, order, **how)


@app.task(base=SingletonTask, bind=True, lock_key=[], lock_ttl=1.5)
def losing_lock(self, order):
    return ends_badly(self, order, sleeps)


@app.task(base=Both, bind=True, lock_key="{order}")
def both(self, order, **how):
    return work(self, order, **how)


@app.task(base=Both, bind=True, lock_key=[], on_conflict="defer", on_interrupted="unknown")
def both_unknown(self, order, **how):
    return work(self, order, **how)


@app.task(base=BothReversed, bind=True, lock_key=[])
def both_reversed(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask, bind=True, autoretry_for=(Exception,), default_retry_delay=0.1, max_retries=3)
def flaky(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask, bind=True)
def opaque(self, order):
    return work(self, order, result=object())


@app.task(base=IdempotentTask, bind=True, ignore_result=True)
def opaque_ignored(self, order):
    return work(self, order, result=object())


@app.task(base=IdempotentTask, bind=True)
def rejecting(self, order):
    note("start", order=order, id=self.request.id)
    if once(f"reject-{order}"):
        raise Reject("later", requeue=True)
    return order


@app.task(base=IdempotentTask, bind=True, max_interruptions=2, lease_ttl=2)
def deadly(self, order):
    note("start", order=order, id=self.request.id, attempt=self.idempotency.attempt)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", on_interrupted="unknown", lease_ttl=2)
def once_at_most(self, order):
    note("start", order=order, id=self.request.id)
    if once(f"dies-{order}"):
        os.kill(os.getpid(), signal.SIGKILL)
    return order


def asked(interrupted, order):
    """What a payment API would say of an interrupted charge."""
    note("asked", order=order, attempt=interrupted.attempt)
    return RERUN if order == "rerun" else f"paid {order}"


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", on_interrupted=asked, lease_ttl=2)
def asking(self, order):
    note("start", order=order, id=self.request.id)
    if once(f"dies-{order}"):
        os.kill(os.getpid(), signal.SIGKILL)
    return order


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", keep_failures=True)
def failing(self, order):
    note("start", order=order, id=self.request.id)
    raise ValueError(f"no {order}")


@app.task(
    base=IdempotentTask,
    bind=True,
    idempotency_key="{order}",
    keep_failures=True,
    autoretry_for=(ValueError,),
    max_retries=1,
    default_retry_delay=0.1,
)
def failing_twice(self, order):
    note("start", order=order, id=self.request.id)
    raise ValueError(f"no {order}")


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", on_in_progress="raise")
def impatient(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask, bind=True, idempotency_key="{order}", on_in_progress="wait", fingerprint=False)
def patient(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask, bind=True)
def inside(self, order):
    known = self.idempotency
    return [known.key, known.fence, known.attempt, known.downstream_key]


def ends_badly(task, order, body):
    """Run ``body``, and note what ended it."""
    note("start", order=order, id=task.request.id)
    if not once(f"ends-{order}"):
        return order
    try:
        body()
    except BaseException as error:
        note("aborted", order=order, error=type(error).__name__)
        raise
    note("end", order=order)
    return order


LONG_SECONDS = 8


def sleeps():
    time.sleep(LONG_SECONDS)


def loops():
    until = time.monotonic() + LONG_SECONDS
    while time.monotonic() < until:
        pass


def reads_a_socket():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(LONG_SECONDS)
        ours.recv(1)


BODIES = {"sleeps": sleeps, "loops": loops, "reads a socket": reads_a_socket}


@app.task(base=IdempotentTask, bind=True, lease_ttl=1.5, autoretry_for=(Exception,))
def losing(self, order, how):
    return ends_badly(self, order, BODIES[how])


@app.task(base=IdempotentTask, bind=True, lease_ttl=1.5, on_lease_lost="continue")
def losing_on(self, order):
    return ends_badly(self, order, lambda: time.sleep(2))


@app.task(base=IdempotentTask, bind=True, time_limit=2)
def limited(self, order, **how):
    return work(self, order, **how)


@app.task(base=IdempotentTask)
def noop(number):
    return number


@app.task(base=IdempotentTask, idempotency_key="{number}", fingerprint=False)
def noop_keyed(number):
    return number


@app.task(base=IdempotentTask, on_store_error="raise", bind=True)
def store_raise(self, order):
    return work(self, order)


@app.task(base=IdempotentTask, on_store_error="run", bind=True)
def store_run(self, order):
    return work(self, order)


class Order(BaseModel):
    number: int


@app.task(base=IdempotentTask, pydantic=True, idempotency_key=lambda order: str(order["number"]))
def typed(order: Order) -> Order:
    note("start", order=order.number)
    return Order(number=order.number + 1)


@app.task(base=IdempotentTask, bind=True, throws=(KeyError,))
def throwing(self, order):
    note("start", order=order, id=self.request.id)
    raise KeyError(order)


@app.task(base=IdempotentTask, bind=True)
def replacing(self, order):
    note("start", order=order, id=self.request.id)
    raise self.replace(capture.s(order))


@app.task(base=IdempotentTask, bind=True)
def recursive(self, number):
    note("start", order=number, id=self.request.id)
    return 1 if number == 0 else number * self(number - 1)


@app.task(base=IdempotentTask, bind=True, ignore_result=True, idempotency_key="{order}")
def quiet(self, order):
    note("start", order=order, id=self.request.id)


@app.task
def failed(request, error, trace):
    note("failed", id=request.id, error=type(error).__name__)


@app.task
def linked(value):
    note("linked", value=value)


@app.task
def same(value):
    return value


@app.task
def add(values, more):
    note("add", values=values)
    return [*values, more]


@app.task
def told(request, error, _traceback):
    note("told", id=request.id, error=type(error).__name__)


@app.task
def collect(values):
    note("collect", values=values)
    return sorted(value for inner in values for value in inner)


@app.task(bind=True, acks_late=True, reject_on_worker_lost=True)
def plain(self, order, **how):
    return work(self, order, **how)
