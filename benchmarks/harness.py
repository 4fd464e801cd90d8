"""Interleaved rounds: each contender in turn, many times, and ratios to the first one of the same round."""

import asyncio
import inspect
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Contenders = Mapping[str, Callable[[], Any]]


def compare(contenders: Contenders, *, rounds: int, times: int) -> dict[str, dict[str, float]]:
    """Median microseconds and median ratio to the first contender, which is the floor."""
    return asyncio.run(acompare(contenders, rounds=rounds, times=times))


async def acompare(contenders: Contenders, *, rounds: int, times: int) -> dict[str, dict[str, float]]:
    """The same where contenders are coroutine functions, or some are."""
    floor = next(iter(contenders))
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds):
        first = number % len(names)  # who comes after whom matters, so that changes
        took = {name: await _each(contenders[name], times) for name in names[first:] + names[:first]}
        for name, seconds in took.items():
            seen[name].append((seconds * 1e6, seconds / took[floor]))
    return {
        name: {
            "us": round(statistics.median(us for us, _ in pairs), 1),
            **spread([ratio for _, ratio in pairs]),
        }
        for name, pairs in seen.items()
    }


def spread(ratios: list[float]) -> dict[str, float]:
    """The median of the rounds' ratios, and the range of their middle four fifths."""
    tenths = statistics.quantiles(ratios, n=10)
    return {
        "ratio": round(statistics.median(ratios), 3),
        "ratio_low": round(tenths[0], 3),
        "ratio_high": round(tenths[-1], 3),
    }


async def _each(function: Callable[[], Any], times: int) -> float:
    if inspect.iscoroutinefunction(function):
        awaited: Callable[[], Awaitable[Any]] = function
        began = time.perf_counter()
        for _ in range(times):
            await awaited()
        return (time.perf_counter() - began) / times
    began = time.perf_counter()
    for _ in range(times):
        function()
    return (time.perf_counter() - began) / times


def percentile(values: list[float], part: float) -> float:
    """The value that ``part`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]
