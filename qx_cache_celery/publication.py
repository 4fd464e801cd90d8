"""What a ``SingletonTask`` decides when it is published: whether it is queued already, and which is the newest.

Both are hints that Redis gives; at run time the lock decides. Whatever goes wrong here, the task is published.
"""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from celery.result import AsyncResult
from celery.states import READY_STATES
from celery.utils import uuid
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import serialization

from qx_cache import AlreadyPublished, CacheError, StoreError, SyncPublishing
from qx_cache_celery import delivery, report
from qx_cache_celery.naming import (
    CLAIM_HEADER,
    DUPLICATE_HEADER,
    HEADER,
    NUMBER_HEADER,
    TICK_HEADER,
    conflict_policy,
    lock_name,
    numbered,
)
from qx_cache_celery.options import lock_mode, namespace
from qx_cache_celery.runtime import runtime_of

_log = logging.getLogger("qx_cache_celery.task")
_CANVAS = ("chain", "chord", "group_id", "link", "link_error")
_SHORTEST_LIFE_SECONDS = 1.0
T = TypeVar("T")
Send = Callable[[str, Mapping[str, Any]], "AsyncResult[Any]"]
"""Publishes under this task id and with these headers."""


class AlreadyQueuedError(CacheError):
    """Another task waits to be run, or runs, and ``on_duplicate="raise"`` was asked for; nothing was published.

    Args:
        name: The lock's name.
        task_id: Of that task; ``app.AsyncResult(task_id)`` is its result.
    """

    def __init__(self, name: str, task_id: str) -> None:
        super().__init__(name, task_id)
        self.name, self.task_id = name, task_id

    def __str__(self) -> str:
        return f"task {self.task_id} is queued or running under {self.name!r}"


@dataclass(frozen=True)
class Publication:
    """One call of ``apply_async``.

    Args:
        task: The task.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        task_id: As the caller gave it.
        headers: Of the message.
        options: All other options.
    """

    task: Any
    args: Sequence[Any] | None
    kwargs: Mapping[str, Any] | None
    task_id: str | None
    headers: Mapping[str, Any]
    options: Mapping[str, Any]

    def publish(self, send: Send) -> "AsyncResult[Any]":
        """Publish, unless the task is one that is queued already.

        Raises:
            AlreadyQueuedError: It is, and ``on_duplicate`` says so.
        """
        task_id = self.task_id or uuid()
        if self.headers.get(delivery.DEFERS):  # a copy of a delivery: what was decided stays
            return send(task_id, self.headers)
        if self._claims():
            return self._unique(task_id, send)
        if conflict_policy(self.task, self.headers) == "keep_latest" and not self._is_retry:
            return self._numbered(task_id, send)
        return send(task_id, self.headers)

    def _claims(self) -> bool:
        """True where this publication is to be the only one in the queue."""
        if self._is_retry:
            return CLAIM_HEADER in self.headers
        return lock_mode(self.task) != "while_executing" and self._stands_alone

    def _unique(self, task_id: str, send: Send) -> "AsyncResult[Any]":
        name = self._name()
        subject = report.Subject(self.task, task_id, name, lock=True)
        try:
            there = self._there(name, task_id)
        except StoreError as error:
            report.unclaimed(subject, error)
            return send(task_id, self.headers)
        if there is not None and not self._is_retry:
            return self._duplicate(subject, there)
        try:
            result = send(task_id, {**self.headers, CLAIM_HEADER: [namespace(self.task.app), name]})
        except BaseException:
            self._tell(lambda known: known.free(name, task_id), task_id)
            raise
        life_seconds = self._life_seconds()
        self._tell(lambda known: known.confirm(name, task_id, life_seconds=life_seconds), task_id)
        return result

    def _there(self, name: str, task_id: str) -> AlreadyPublished | None:
        """Claim the name, or tell which task is there already; one that is over by its state is not."""
        or_running = lock_mode(self.task) == "until_executed"

        def claim(known: SyncPublishing) -> AlreadyPublished | None:
            return known.claim(name, task_id, or_running=or_running)

        there = self._hint(claim)
        if there is not None and not there.running and not self._is_retry and self._is_over(there.id):
            over = there.id
            self._hint(lambda known: known.free(name, over))
            there = self._hint(claim)
        return there

    def _is_over(self, task_id: str) -> bool:
        """True when a task that is queued will never run, by its state: it was revoked, say, before its ETA."""
        if self.options.get("ignore_result", self.task.ignore_result):
            return False  # a publication of this task asks no result backend
        try:
            return self.task.backend.persistent and self.task.backend.get_state(task_id) in READY_STATES
        except Exception as error:  # noqa: BLE001  # whatever backend there is; its word is not needed
            _log.debug("no state of task %s: %s", task_id, error)
            return False

    def _duplicate(self, subject: report.Subject, there: AlreadyPublished) -> "AsyncResult[Any]":
        report.already_queued(subject, there.id, running=there.running)
        _close_check_in(self.headers)
        wanted = self.headers.get(DUPLICATE_HEADER) or self.task.qx_options.value(self.task.app, "on_duplicate")
        if wanted == "raise":
            raise AlreadyQueuedError(subject.key, there.id)
        return self.task.AsyncResult(there.id)  # type: ignore[no-any-return]

    def _numbered(self, task_id: str, send: Send) -> "AsyncResult[Any]":
        """Number it, publish it, and only then let older ones be superseded."""
        name = self._name()
        try:
            number = self._hint(lambda known: known.next_number(name))
        except StoreError as error:
            report.unclaimed(report.Subject(self.task, task_id, name, lock=True), error)
            return send(task_id, self.headers)
        result = send(task_id, {**self.headers, NUMBER_HEADER: numbered(number, task_id)})
        self._tell(lambda known: known.published(name, number), task_id)
        return result

    def _hint(self, ask: Callable[[SyncPublishing], T]) -> T:
        app = self.task.app
        return runtime_of(app).hint(namespace(app), ask)

    def _tell(self, tell: Callable[[SyncPublishing], object], task_id: str) -> None:
        """Tell what is only a hint; the task is published all the same."""
        try:
            self._hint(tell)
        except CacheError as error:
            _log.warning("task %s: what is queued could not be noted: %s", task_id, error)

    @property
    def _is_retry(self) -> bool:
        return bool(self.options.get("retries"))

    @property
    def _stands_alone(self) -> bool:
        """True when nobody waits for just this one: no part of a canvas, and its caller chose no id or key."""
        chosen_id = self.task_id is not None and TICK_HEADER not in self.headers
        chosen_key = HEADER in self.headers or self.options.get(HEADER) is not None
        chosen = chosen_id or chosen_key
        return not chosen and not any(self.options.get(name) for name in _CANVAS)

    def _name(self) -> str:
        """The lock's name, of the arguments as they will be delivered."""
        task, args, kwargs = self.task, self.args or (), self.kwargs or {}
        serializer = self.options.get("serializer") or task.serializer or task.app.conf.task_serializer
        dump = getattr(task, "_dump_pydantic_arguments", None)
        if dump is not None and serializer != "pickle":
            args, kwargs = dump(args, kwargs)
        kind, encoding, data = serialization.dumps((args, kwargs), serializer)
        args, kwargs = serialization.loads(data, kind, encoding, accept=[kind])
        return lock_name(task, args, kwargs)

    def _life_seconds(self) -> float:
        """For how long it may wait to be run: ``claim_ttl`` and its countdown, but not past its ``expires``."""
        wait = _seconds_until(self.task, self.options.get("countdown") or self.options.get("eta"))
        life: float = self.task.qx_options.duration(self.task.app, "claim_ttl") + (wait or 0)
        expires = _seconds_until(self.task, self.options.get("expires") or self.task.expires)
        return max(life if expires is None else min(life, expires), _SHORTEST_LIFE_SECONDS)


def _seconds_until(task: Any, moment: Any) -> float | None:
    """Seconds from now to a moment as Celery takes it: seconds, a ``timedelta``, a time or its text."""
    if moment is None:
        return None
    if isinstance(moment, timedelta):
        return moment.total_seconds()
    if isinstance(moment, int | float):
        return float(moment)
    when: Any = maybe_iso8601(moment)
    aware: datetime = maybe_make_aware(when, task.app.timezone)
    return (aware - datetime.now(aware.tzinfo)).total_seconds()


def _close_check_in(headers: Mapping[str, Any]) -> None:
    """Tell Sentry, where it watches this beat entry, that the tick is settled: no task will."""
    if "sentry-monitor-check-in-id" in headers and "sentry_sdk" in sys.modules:
        from sentry_sdk import crons  # noqa: PLC0415  # the user's; imported already

        crons.capture_checkin(
            monitor_slug=headers["sentry-monitor-slug"],
            check_in_id=headers["sentry-monitor-check-in-id"],
            status=crons.MonitorStatus.OK,
        )
