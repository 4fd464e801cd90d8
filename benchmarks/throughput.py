"""Tasks a second through one worker: plain Celery beside ``IdempotentTask``, on a Redis broker."""

import argparse
import json
import os
import sys
import time
from functools import cache

import redis
from celery import Celery, Task

from benchmarks.server import server
from benchmarks.uncontended import BARE, HEADER, RESULT
from benchmarks.workers import CONCURRENCY, figures, working
from qx_cache_celery import IdempotentTask

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
        with working(app, "benchmarks.throughput", said.pool):
            json.dump(figures(KINDS, said.rounds, said.tasks), sys.stdout)


if __name__ == "__main__":
    main()
