"""Tasks a second through one worker: plain Celery beside ``IdempotentTask``, on a Redis broker."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import cache

import redis
from celery import Celery, Task

from benchmarks.harness import spread
from benchmarks.server import server
from benchmarks.uncontended import BARE, HEADER, RESULT
from qx_cache_celery import IdempotentTask

CONCURRENCY = {"prefork": 2, "threads": 8}
_PATIENCE_SECONDS = 120.0

app = Celery("throughput")
app.conf.update(
    broker_url=os.environ.get("QX_BENCH_URL", "memory://"),
    result_backend=os.environ.get("QX_BENCH_URL", "cache+memory://"),
    worker_hijack_root_logger=False,
)


@app.task(name="plain")
def plain() -> float:
    """When it ran."""
    return time.time()


@app.task(name="plain_acks_late", acks_late=True, reject_on_worker_lost=True)
def plain_acks_late() -> float:
    """The same, with the acknowledgement that any task needs that is not to be lost."""
    return time.time()


@cache
def client(pid: int) -> tuple[redis.Redis, str]:  # noqa: ARG001  # one for each process
    """The store, and the digest of a script that only sets a key."""
    store = redis.Redis.from_url(str(app.conf.result_backend))
    return store, str(store.script_load(BARE))


class Floor(Task):
    """Two bare scripts of redis-py around the run: what any record costs that is kept by two round trips."""

    abstract = True

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run."""
        store, sha = client(os.getpid())
        key = f"floor:{self.request.id}"
        store.evalsha(sha, 1, key, HEADER)
        result = super().__call__(*args, **kwargs)
        store.evalsha(sha, 1, key, HEADER + RESULT)
        return result


@app.task(name="floor", base=Floor, acks_late=True, reject_on_worker_lost=True)
def floor() -> float:
    """The same, around which two bare scripts are run."""
    return time.time()


@app.task(name="idempotent", base=IdempotentTask)
def idempotent() -> float:
    """The same, recorded."""
    return time.time()


KINDS = {
    "plain": plain,
    "plain, acks_late": plain_acks_late,
    "two bare scripts": floor,
    "IdempotentTask": idempotent,
}


def span(kind: str, number: int, queue: str) -> float:
    """Seconds from the first to the last of so many runs, which all waited in a queue before."""
    with app.pool.acquire() as connection, app.amqp.Producer(connection) as producer:
        results = [KINDS[kind].apply_async(queue=queue, producer=producer) for _ in range(number)]
    app.control.add_consumer(queue, reply=True, limit=1, timeout=10)
    ran = [result.get(timeout=_PATIENCE_SECONDS, interval=0.05) for result in results]
    app.control.cancel_consumer(queue, reply=True, limit=1, timeout=10)
    return float(max(ran) - min(ran))


def main() -> None:
    """Measure, and print the figures as JSON."""
    words = argparse.ArgumentParser()
    words.add_argument("pool", choices=CONCURRENCY)
    words.add_argument("--rounds", type=int, default=10)
    words.add_argument("--tasks", type=int, default=1000)
    said = words.parse_args()
    with server() as one:
        os.environ["QX_BENCH_URL"] = one.url
        app.conf.update(broker_url=one.url, result_backend=one.url)
        line = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "benchmarks.throughput", "worker"]
        line += ["-P", said.pool, "-c", str(CONCURRENCY[said.pool]), "-l", "ERROR", "--without-mingle"]
        line += ["--without-gossip", "-Q", "idle"]
        worker = subprocess.Popen(
            line, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            until = time.monotonic() + _PATIENCE_SECONDS
            while not app.control.ping(timeout=1, limit=1):
                if time.monotonic() > until:
                    raise SystemExit("the worker did not start")
            json.dump(figures(said.rounds, said.tasks), sys.stdout)
        finally:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def figures(rounds: int, tasks: int) -> dict[str, dict[str, float]]:
    """Tasks a second, and the ratio to plain of the same round."""
    names = list(KINDS)
    for name in names:
        span(name, tasks // 10, f"warm {name}")
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        took = {name: span(name, tasks, f"{number} {name}") for name in names[first:] + names[:first]}
        for name in names:
            seen[name].append((tasks / took[name], took["plain"] / took[name]))
    return {
        name: {
            "tasks_per_second": round(statistics.median(rate for rate, _ in pairs)),
            **spread([ratio for _, ratio in pairs]),
        }
        for name, pairs in seen.items()
    }


if __name__ == "__main__":
    main()
