"""Durations: seconds in Python, whole milliseconds on the wire; the one place that converts."""

import math
from datetime import timedelta

from qx_cache.errors import InvalidValueError

Duration = float | timedelta
"""Seconds as a number, or a ``timedelta``."""

_LONGEST_SECONDS = 10 * 365 * 86_400.0


def seconds(value: Duration, name: str, *, at_least: float = 0.001) -> float:
    """Check a duration and give it in seconds.

    Args:
        value: Seconds, or a ``timedelta``.
        name: What the duration is for, as the caller spelt it; the error names it.
        at_least: The shortest that makes sense, in seconds.

    Raises:
        InvalidValueError: Not a number, shorter than ``at_least``, or longer than ten years.
    """
    number: object = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise InvalidValueError(f"{name} must be seconds as a number or a timedelta, not {value!r}")
    if not at_least <= number <= _LONGEST_SECONDS:
        raise InvalidValueError(f"{name} must be between {at_least} s and ten years, not {number} s")
    return float(number)


def patience(wait_seconds: Duration | None) -> float:
    """How long to wait, in seconds: 0 not at all, infinite for None."""
    return math.inf if wait_seconds is None else seconds(wait_seconds, "wait_seconds", at_least=0)


def milliseconds(value_seconds: float) -> int:
    """Whole milliseconds, at least one: what Redis takes."""
    return max(1, round(value_seconds * 1000))
