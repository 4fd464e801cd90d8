"""Task options and app-wide settings: taken off the class when a task is bound, read lazily after that."""

import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import Celery

from qx_cache import Duration, InvalidValueError, interval_for, seconds
from qx_cache_celery.identity import Arguments, KeyMaker
from qx_cache_celery.inbox.database import check_tx

UNSET: Any = None
"""An option that the task leaves to the app-wide setting, or to its default."""

DEFAULTS: Mapping[str, Any] = {
    "fingerprint": True,
    "result_ttl": 86_400.0,
    "lease_ttl": 30.0,
    "lock_ttl": 30.0,
    "heartbeat_interval": None,
    "on_store_error": "defer",
    "on_in_progress": "defer",
    "on_interrupted": "rerun",
    "max_interruptions": 5,
    "keep_failures": False,
    "on_lease_lost": "abort",
    "on_conflict": None,
    "tx": None,
    "lock_timeout": 5.0,
    "min_hold": 0.0,
    "doubt_limit": None,
    "lock_mode": "while_executing",
    "on_duplicate": "return",
    "claim_ttl": 3600.0,
}
_WORDS = {
    "on_store_error": ("defer", "raise", "run"),
    "on_conflict": ("skip", "defer", "raise", "keep_latest"),
    "lock_mode": ("while_executing", "until_executing", "until_executed", "until_and_while_executing"),
    "on_duplicate": ("return", "raise"),
    "on_in_progress": ("defer", "wait", "raise"),
    "on_interrupted": ("rerun", "unknown"),
    "on_lease_lost": ("abort", "continue"),
}
_DURATIONS = (
    "result_ttl", "lease_ttl", "lock_ttl", "heartbeat_interval", "lock_timeout", "min_hold", "doubt_limit",
    "claim_ttl",
)  # fmt: skip
_KEYS = ("idempotency_key", "lock_key")
_ALIASES = {"unique_on": "lock_key", "lock_expiry": "lock_ttl"}
_RECORD_OPTIONS = (
    "idempotency_key", "fingerprint", "result_ttl", "lease_ttl", "on_in_progress", "on_interrupted",
    "max_interruptions", "keep_failures", "tx", "lock_timeout",
)  # fmt: skip
_LOCK_OPTIONS = (
    "lock_key", "lock_ttl", "on_conflict", "min_hold", "lock_mode", "on_duplicate", "claim_ttl",
)  # fmt: skip
_OF_A_LOCK = ("lock_ttl", "on_conflict", "min_hold")
_OF_A_CLAIM = ("on_duplicate", "claim_ttl")


@dataclass(frozen=True)
class TaskOptions:
    """What one task class says, checked; made once when the class is bound to an app.

    Args:
        arguments: The task's signature.
        given: Option name -> what the class says, UNSET where it says nothing.
        makers: ``idempotency_key`` and ``lock_key``, compiled, where they are given.
    """

    arguments: Arguments
    given: Mapping[str, Any]
    makers: Mapping[str, KeyMaker]
    _values: dict[str, Any] = field(default_factory=dict)

    def value(self, app: Celery, name: str) -> Any:
        """The task's own value, else ``qx_cache_<name>`` of the app, else the default; words are checked.

        Read once: what is changed in ``app.conf`` after the first use has no effect.
        """
        if name not in self._values:
            own = self.given.get(name, UNSET)
            value = app.conf.get(f"qx_cache_{name}", DEFAULTS[name]) if own is UNSET else own
            self._values[name] = check_option(self.arguments.task_name, name, value)
        return self._values[name]

    def duration(self, app: Celery, name: str) -> float:
        """A duration in seconds."""
        return float(self.value(app, name))

    def interval(self, app: Celery, ttl_seconds: float) -> float:
        """The time between renewals of a lease of ``ttl_seconds``."""
        return interval_for(ttl_seconds, self.value(app, "heartbeat_interval"))


def lock_mode(task: Any) -> str:
    """The ``lock_mode`` of a guarded task.

    Raises:
        InvalidValueError: It makes no sense with ``on_conflict``, of the task or of the app.
    """
    options: TaskOptions = task.qx_options
    mode = options.value(task.app, "lock_mode")
    if mode != "while_executing":
        check_latest(task.name, options.value(task.app, "on_conflict"), mode)
    return str(mode)


def take_options(task: type[Any]) -> TaskOptions:
    """Read and check the options of a task class that is being bound.

    Raises:
        InvalidValueError: Names the task, the option, the value and what would be right.
    """
    run = inspect.getattr_static(task, "run")
    function = run.__func__ if isinstance(run, staticmethod) else run
    arguments = Arguments(task.name, function, drop_first=not isinstance(run, staticmethod))
    given = {name: inspect.getattr_static(task, name, UNSET) for name in (*DEFAULTS, *_KEYS)}
    given = {name: _unwrapped(value) for name, value in given.items()}
    given["tx"] = _moved_tx(task, given["tx"])
    _take_aliases(task, given)
    _check_bases(task, given)
    for name, value in given.items():
        if value is not UNSET and name in DEFAULTS:
            check_option(task.name, name, value)
    _check_mode(task.name, given)
    for ttl in ("lease_ttl", "lock_ttl"):
        if given[ttl] is not UNSET and given["heartbeat_interval"] is not UNSET:
            _check_interval(task.name, given[ttl], given["heartbeat_interval"])
    if isinstance(given["fingerprint"], list | tuple):
        KeyMaker("fingerprint", given["fingerprint"], arguments)
    makers = {name: KeyMaker(name, given[name], arguments) for name in _KEYS if given[name] is not None}
    return TaskOptions(arguments, given, makers)


def _take_aliases(task: type[Any], given: dict[str, Any]) -> None:
    """The names that users of celery-singleton know: ``unique_on`` and ``lock_expiry``."""
    for alias, name in _ALIASES.items():
        value = inspect.getattr_static(task, alias, UNSET)
        if value is UNSET:
            continue
        if given[name] is not UNSET:
            raise InvalidValueError(f"task {task.name}: {alias} is another name of {name}; give one of them")
        given[name] = [value] if alias == "unique_on" and isinstance(value, str) else value


def _check_bases(task: type[Any], given: Mapping[str, Any]) -> None:
    """Refuse an option that the task's base classes know nothing of: it would be left out in silence."""
    bases = (
        ("IdempotentTask", task.qx_record_guard, _RECORD_OPTIONS),
        ("SingletonTask", task.qx_lock_guard, _LOCK_OPTIONS),
    )
    for base, guard, names in bases:
        for name in names:
            if guard is None and given[name] is not UNSET:
                raise InvalidValueError(
                    f"task {task.name}: {name} is an option of {base}, which this task is not; add that base "
                    f"class, or leave {name} out"
                )


def _check_mode(task_name: str, given: Mapping[str, Any]) -> None:
    """Refuse what a ``lock_mode`` makes no sense with."""
    mode = given["lock_mode"]
    for name in _OF_A_CLAIM:
        if given[name] is not UNSET and mode in {UNSET, "while_executing"}:
            raise InvalidValueError(
                f"task {task_name}: {name} says what becomes of a publication while another one is queued, and "
                "nothing is claimed at publication; give a lock_mode that begins with 'until', or leave it out"
            )
    for name in _OF_A_LOCK:
        if given[name] is not UNSET and mode == "until_executing":
            raise InvalidValueError(
                f"task {task_name}: {name} is of the lock that is held during a run, and lock_mode "
                "'until_executing' has none; use 'until_and_while_executing', or leave it out"
            )
    check_latest(task_name, given["on_conflict"], mode)


def check_latest(task_name: str, on_conflict: Any, mode: Any) -> None:
    """Refuse ``"keep_latest"`` where a publication may be answered by an older one.

    Raises:
        InvalidValueError: Names the task and what would be right.
    """
    if on_conflict == "keep_latest" and mode not in {UNSET, "while_executing"}:
        raise InvalidValueError(
            f"task {task_name}: on_conflict 'keep_latest' publishes every call and runs the newest, but lock_mode "
            f"{mode!r} lets an older one that is queued stand for a newer one; leave one of them out"
        )


def _moved_tx(task: type[Any], tx: Any) -> Any:
    """The option, off the class: there ``self.tx`` is the property that gives the transaction."""
    if isinstance(tx, property):
        return getattr(task, "qx_tx", UNSET)
    task.qx_tx = tx
    for parent in task.__mro__[1:]:
        if isinstance(parent.__dict__.get("tx"), property):
            task.tx = parent.__dict__["tx"]
    return tx


def namespace(app: Celery) -> str:
    """First part of every key: ``qx_cache_namespace``, else the app's name, else ``qx``."""
    return str(app.conf.get("qx_cache_namespace") or app.main or "qx")


def beat_lock_ttl(app: Celery) -> float:
    """``qx_cache_beat_lock_ttl``: for how long a beat leads without a heartbeat, in seconds; 10 by default."""
    return float(seconds(app.conf.get("qx_cache_beat_lock_ttl", 10.0), "qx_cache_beat_lock_ttl", at_least=0.5))


def owner_host() -> str:
    """What tells the processes of one machine from those of another."""
    return os.uname().nodename


def _unwrapped(value: Any) -> Any:
    return value.__func__ if isinstance(value, staticmethod) else value


def check_option(task_name: str, name: str, value: Any) -> Any:
    """The value of an option, durations as seconds.

    Raises:
        InvalidValueError: Names the task, the option, the value and what would be right.
    """
    if name in _DURATIONS:
        return _duration(task_name, name, value)
    if name == "tx" and value is not None:
        check_tx(task_name, value)
    if name == "on_interrupted" and callable(value):
        return value
    if name in _WORDS and value is not None and value not in _WORDS[name]:
        words = ", ".join(map(repr, _WORDS[name])) + (" or a callable" if name == "on_interrupted" else "")
        raise InvalidValueError(f"task {task_name}: {name} must be one of {words}, not {value!r}")
    if name == "max_interruptions" and (type(value) is not int or value < 1):
        raise InvalidValueError(
            f"task {task_name}: max_interruptions must be a whole number above 0, not {value!r}"
        )
    if name == "keep_failures" and type(value) is not bool:
        raise InvalidValueError(f"task {task_name}: keep_failures must be True or False, not {value!r}")
    if name == "fingerprint" and not (value is True or value is False or callable(value) or _names(value)):
        raise InvalidValueError(
            f"task {task_name}: fingerprint must be True, False, a list of argument names or a callable, "
            f"not {value!r}"
        )
    return value


def _duration(task_name: str, name: str, value: Duration | None) -> float | None:
    if value is None and name in {"heartbeat_interval", "doubt_limit"}:
        return None
    try:
        return seconds(value, name, at_least=0 if name in {"min_hold", "doubt_limit"} else 0.05)  # type: ignore[arg-type]  # checked in there
    except InvalidValueError as error:
        raise InvalidValueError(f"task {task_name}: {error}") from None


def _check_interval(task_name: str, ttl: Duration, interval: Duration) -> None:
    try:
        interval_for(seconds(ttl, "ttl"), interval)
    except InvalidValueError as error:
        raise InvalidValueError(f"task {task_name}: {error}") from None


def _names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
