"""Reading a delivery, and ending one without a run: the only module that touches Celery's delivery machinery.

The rule that everything here serves: **a delivery is never acknowledged while its run may still be lost, unless
a copy of the message was published before.** A copy carries the header ``qx_copy``, the fence of the run that it
insures, and ``qx_defers``, how often it was put off.
"""

import logging
import os
import random
import time
from collections.abc import Mapping
from typing import Any

from celery import Task, states
from celery.app.task import Context
from celery.exceptions import Ignore, OperationalError, Reject

from qx_cache import holder_text
from qx_cache_celery import report

_log = logging.getLogger("qx_cache_celery.task")
COPY, DEFERS = "qx_copy", "qx_defers"
_OURS = ("qx_", "idempotency_key")
_LONGEST_COUNTDOWN_SECONDS = 30.0
_REJECT_PAUSE_SECONDS = (1.0, 5.0)


class Deferral(BaseException):
    """On its way out of the guards: this delivery is to be looked at again later.

    Args:
        reason: In a few words, for log and signal.
        subject: The delivery, and its record or lock.
        insures: Fence of the run that the copy insures; None when no run is known.
        remaining_seconds: When the run's lease ends, if nobody renews it.
    """

    def __init__(
        self,
        reason: str,
        subject: report.Subject,
        *,
        insures: int | None = None,
        remaining_seconds: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.subject = reason, subject
        self.insures, self.remaining_seconds = insures, remaining_seconds


class Skip(BaseException):
    """On its way out of the guards: this delivery ends as a recorded refusal."""

    def __init__(self, reason: str, subject: report.Subject, holder: str) -> None:
        super().__init__(reason)
        self.reason, self.subject, self.holder = reason, subject, holder


def is_delivery(request: Context) -> bool:
    """True for a message that a worker runs; False for direct calls, eager mode and calls inside a run."""
    return bool(request.id) and not request.called_directly and not request.is_eager and not run_of(request)


def run_of(request: Context) -> Any:
    """The guarded run of this request, or None."""
    return request.__dict__.get("qx_run")


def header(request: Context, name: str) -> Any:
    """A header of the message, or None."""
    return (request.headers or {}).get(name, request.__dict__.get(name))


def headers_of_retry(request: Context, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headers of a retry: as Celery has it those of its message, or those given; but ours always go along.

    A retry is a new message: it is no copy of a delivery, and was not put off yet.
    """
    known = request.headers or {}
    kept = known if given is None else {name: known[name] for name in known if name.startswith(_OURS)}
    return {**{name: kept[name] for name in kept if name not in {COPY, DEFERS}}, **(given or {})}


def is_redelivery(request: Context) -> bool:
    """True when this very task may have been delivered before: flagged by the broker, or a copy of ours."""
    flagged = bool((request.delivery_info or {}).get("redelivered"))
    return flagged or header(request, COPY) is not None


def is_same(request: Context, holder: str) -> bool:
    """True when the record's holder is this very task: a redelivery, never a rival."""
    return holder == holder_text(str(request.id))


def dispatches(request: Context) -> bool:
    """True when something follows the task's end: callbacks, a chain, a chord or a group."""
    return bool(request.callbacks or request.errbacks or request.chain or request.chord or request.group)


def result_is_ignored(task: "Task[Any, Any]", request: Context) -> bool:
    """True when nobody stores the task's result."""
    return bool(task.ignore_result or getattr(request, "ignore_result", False))


def failure_is_told(task: "Task[Any, Any]", request: Context) -> bool:
    """True when somebody is to learn of the task's failure."""
    stored = task.store_errors_even_if_ignored or not result_is_ignored(task, request)
    return stored or dispatches(request)


def requeues(reject: Reject) -> bool:
    """True when the task asked for its message to go back to the queue."""
    return bool(getattr(reject, "requeue", False))


def visibility_timeout(task: "Task[Any, Any]") -> float:
    """Seconds after which the Redis broker delivers an unacknowledged message again."""
    return float((task.app.conf.broker_transport_options or {}).get("visibility_timeout", 3600))


def defer(task: "Task[Any, Any]", request: Context, why: Deferral) -> Ignore | Reject:
    """Publish a copy of this delivery, to be looked at again; the exception that ends the present one.

    The copy has the same id, arguments, retries, callbacks, chain and chord, and no expiry, for the task has
    started in time. When it cannot be published the delivery goes back to the queue, after a pause. One that was
    acknowledged before it began has no way back: it waits here until the broker takes the copy.

    Raises:
        Exception: No broker would ever take the copy of one that was acknowledged; the task is to fail with it.
    """
    defers = int(header(request, DEFERS) or 0)
    countdown = _countdown(task, why.remaining_seconds, defers)
    headers = _copy_headers(request, why, defers)
    while (failure := _try_to_copy(task, request, countdown, headers)) is not None:
        pause = random.uniform(*_REJECT_PAUSE_SECONDS)  # noqa: S311  # spreads retries, guards nothing
        then = "back to the queue" if task.acks_late else "tried again"
        if not task.acks_late and not isinstance(failure, _away(task)):
            raise failure
        _log.warning("task %s could not be deferred, %s in %.1f s: %s", request.id, then, pause, failure)
        time.sleep(pause)
        if task.acks_late:
            return Reject(reason=why.reason, requeue=True)
    report.deferred(why.subject, countdown, why.reason)
    return Ignore(why.reason)


def unpublished(task: "Task[Any, Any]", reject: Reject, subject: report.Subject) -> BaseException:
    """What ends a run whose retry was not published: it comes again, unless no broker would ever take that."""
    failure: Any = reject.reason  # type: ignore[attr-defined]  # not in its stubs
    if isinstance(failure, Exception) and not isinstance(failure, _away(task)):
        return failure
    return Deferral(f"its retry could not be published: {failure}", subject)


def tell_started(task: "Task[Any, Any]", request: Context) -> None:
    """Store the state STARTED: Celery would for each delivery, and so over the end of a run that has failed."""
    where = {"pid": os.getpid(), "hostname": request.hostname}
    try:
        task.backend.store_result(str(request.id), where, states.STARTED, request=request)
    except Exception as error:  # noqa: BLE001  # whatever it is, the run itself can go on
        _log.warning("task %s has started, which cannot be stored: %s", request.id, error)


def skipped(why: Skip) -> dict[str, str]:
    """Record a refusal; the marker that becomes the task's result."""
    report.skipped(why.subject, why.reason, why.holder)
    return {"qx_skipped": why.reason, "lock": why.subject.key, "holder": why.holder}


def ended(subject: report.Subject, how: str) -> Ignore:
    """This delivery's run has ended in a recorded way: nothing is left to do."""
    report.ended(subject, how)
    return Ignore(f"{subject.key}: {how}")


def _countdown(task: "Task[Any, Any]", remaining_seconds: float | None, defers: int) -> float:
    """Soon at first, then later and later; never past the lease's end, nor near the visibility timeout."""
    growing = min(2.0 ** min(defers, 10), _LONGEST_COUNTDOWN_SECONDS)
    bounded = min(growing, visibility_timeout(task) / 3)
    jittered = bounded * random.uniform(0.8, 1.0)  # noqa: S311  # spreads copies, guards nothing
    return jittered if remaining_seconds is None else min(jittered, remaining_seconds + 0.05)


def _copy_headers(request: Context, why: Deferral, defers: int) -> dict[str, Any]:
    headers = {**(request.headers or {}), DEFERS: defers + 1}
    if why.insures is not None:
        headers[COPY] = why.insures
    elif is_redelivery(request):
        headers.setdefault(COPY, 0)  # the broker's flag does not travel with a copy
    return headers


def _try_to_copy(
    task: "Task[Any, Any]", request: Context, countdown: float, headers: dict[str, Any]
) -> Exception | None:
    try:
        _publish_copy(task, request, countdown, headers)
    except Exception as error:  # noqa: BLE001  # whatever keeps it from being published, the message must not be lost
        return error
    return None


def _away(task: "Task[Any, Any]") -> tuple[type[BaseException], ...]:
    """What says that the broker takes nothing now, and may later."""
    connection = task.app.connection_for_write()
    return (OperationalError, *connection.connection_errors, *connection.channel_errors)


def _publish_copy(task: "Task[Any, Any]", request: Context, countdown: float, headers: dict[str, Any]) -> None:
    copy = task.signature_from_request(
        request, countdown=countdown, retries=request.retries, expires=None, headers=headers
    )
    options = {**(task.app.conf.broker_transport_options or {}), "confirm_publish": True}
    with task.app.connection_for_write(transport_options=options) as connection:
        if connection.transport.driver_type != "amqp":
            copy.apply_async(add_to_parent=False)
            return
        with task.app.amqp.Producer(connection) as producer:  # a copy counts once the broker has confirmed it
            copy.apply_async(producer=producer, add_to_parent=False)
