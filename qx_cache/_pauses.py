"""How long to wait between two tries: the one place that owns deadline, growth and jitter of polls."""

import random
from collections.abc import Iterator

from qx_cache.lease import boottime


def pauses(wait_seconds: float | None, *, first: float = 0.01, longest: float = 0.25) -> Iterator[float]:
    """Seconds to sleep before each further try, growing and jittered; ends at the deadline.

    Args:
        wait_seconds: How long to go on altogether; None for ever.
        first: The first pause, in seconds.
        longest: What pauses grow to, in seconds.
    """
    deadline = float("inf") if wait_seconds is None else boottime() + wait_seconds
    pause = first
    while (left := deadline - boottime()) > 0:
        yield min(left, pause * random.uniform(0.5, 1.0))  # noqa: S311  # spreads pollers, guards nothing
        pause = min(longest, pause * 1.5)
