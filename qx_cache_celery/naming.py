"""What the record and the lock of a delivery are called."""

from collections.abc import Mapping
from typing import Any

from qx_cache import digest
from qx_cache_celery import delivery
from qx_cache_celery.identity import KeyMaker, key_name

HEADER = "idempotency_key"
"""Names the key of one call, from whatever producer; goes before the task's option of this name."""
CONFLICT_HEADER = "qx_on_conflict"
"""What this call does while another task holds its lock; goes before the task's option."""
DUPLICATE_HEADER = "qx_on_duplicate"
"""What this call does while another task is queued; goes before the task's option."""
NUMBER_HEADER = "qx_number"
"""Which of the publications under one lock this is, and its task id (``on_conflict="keep_latest"``)."""
CLAIM_HEADER = "qx_claim"
"""Namespace and name that this publication has claimed in the queue (``lock_mode``)."""
TICK_HEADER = "qx_tick"
"""Of a task that beat dispatched: the entry and the time that it was due."""


def record_name(task: Any, request: Any, args: Any, kwargs: Any) -> str:
    """The name of the record of this delivery of a guarded task: by header, else by option, else by task id."""
    nesting = int(getattr(request, "replaced_task_nesting", 0) or 0)
    by_header = delivery.header(request, HEADER)
    if by_header is not None:
        index = getattr(request, "group_index", None)  # a header on a group reaches every member
        return key_name(task.name, "key", str(by_header), nesting=nesting, group_index=index)
    maker = task.qx_options.makers.get(HEADER)
    if maker is not None:
        return key_name(task.name, "key", maker.text(args, kwargs), nesting=nesting)
    return key_name(task.name, "id", str(request.id), nesting=nesting)


def fingerprint(task: Any, request: Any, args: Any, kwargs: Any) -> str | None:
    """Canonical text of what must be equal under one key; None where nothing is compared."""
    options = task.qx_options
    spec = options.value(task.app, "fingerprint")
    keyed = delivery.header(request, HEADER) is not None or HEADER in options.makers
    if spec is False or not keyed:
        return None
    if spec is True:
        return str(options.arguments.all_encoded(args, kwargs))
    return KeyMaker("fingerprint", spec, options.arguments).text(args, kwargs)


def lock_name(task: Any, args: Any, kwargs: Any) -> str:
    """The name of the lock that this call of a guarded task needs."""
    maker = task.qx_options.makers.get("lock_key")
    if maker is not None:
        return key_name(task.name, "key", maker.text(args, kwargs))
    given = task.qx_options.arguments.all_encoded(args, kwargs)
    return key_name(task.name, "args", digest(given.encode()))


def conflict_policy(task: Any, headers: Mapping[str, Any]) -> Any:
    """What a call that is being published is to do while another task holds its lock; None where nobody said."""
    return headers.get(CONFLICT_HEADER) or task.qx_options.value(task.app, "on_conflict")


def numbered(number: int, task_id: str) -> str:
    """What ``NUMBER_HEADER`` says of a publication."""
    return f"{number} {task_id}"


def number_in(told: Any, task_id: str) -> int:
    """The number of this task; 0 where it has none, as where the header of another one was passed on."""
    number, _, whose = str(told or "").partition(" ")
    return int(number) if whose == task_id and number.isdigit() else 0
