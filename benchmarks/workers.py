"""A Celery worker of its own for a measurement, and how long it takes for so many tasks."""

import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from celery import Celery, Task

from benchmarks.harness import spread

CONCURRENCY = {"prefork": 2, "threads": 8}
PATIENCE_SECONDS = 120.0


@contextmanager
def working(app: Celery, module: str, pool: str) -> Iterator[None]:
    """A worker of ``module``'s app that has no queue yet; its environment is this process's."""
    line = [sys.executable, "-W", "ignore", "-m", "celery", "-A", module, "worker"]
    line += ["-P", pool, "-c", str(CONCURRENCY[pool]), "-l", "ERROR", "--without-mingle"]
    line += ["--without-gossip", "-Q", "idle"]
    worker = subprocess.Popen(line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while not app.control.ping(timeout=1, limit=1):
            if time.monotonic() > until:
                raise SystemExit("the worker did not start")
        yield
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def span(task: "Task[Any, Any]", number: int, queue: str) -> float:
    """Seconds from the first to the last of so many runs, which all waited in a queue before.

    The task returns when it ran.
    """
    app = task.app
    with app.pool.acquire() as connection, app.amqp.Producer(connection) as producer:
        results = [task.apply_async(queue=queue, producer=producer) for _ in range(number)]
    app.control.add_consumer(queue, reply=True, limit=1, timeout=10)
    ran = [result.get(timeout=PATIENCE_SECONDS, interval=0.05) for result in results]
    app.control.cancel_consumer(queue, reply=True, limit=1, timeout=10)
    return float(max(ran) - min(ran))


def figures(kinds: Mapping[str, "Task[Any, Any]"], rounds: int, tasks: int) -> dict[str, dict[str, float]]:
    """Tasks a second, and the ratio to the first kind in the same round."""
    names = list(kinds)
    for name in names:
        span(kinds[name], tasks // 10, f"warm {name}")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        took = {name: span(kinds[name], tasks, f"{number} {name}") for name in names[first:] + names[:first]}
        for name in names:
            seen[name].append((tasks / took[name], took[names[0]] / took[name]))
    return {
        name: {
            "tasks_per_second": round(statistics.median(rate for rate, _ in pairs)),
            **spread([ratio for _, ratio in pairs]),
        }
        for name, pairs in seen.items()
    }
