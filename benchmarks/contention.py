"""Nine processes for one lock: how fast and how fairly it changes hands, and what waiting costs the server."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

HOLD_SECONDS, THINK_SECONDS, PROCESSES = 0.02, 0.04, 9
WARM_SECONDS, SETTLE_SECONDS = 1.0, 7.0


def holder(name: str, url: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Acquire and release of one contender, for this process."""
    import redis

    client = redis.Redis.from_url(url)
    if name == "qx_cache":
        from qx_cache import SyncDistributedLock

        ours = SyncDistributedLock(client, "hot", ttl_seconds=30)
        return ours.acquire, ours.release
    if name == "redis-py Lock":
        from redis.lock import Lock

        theirs = Lock(client, "hot", timeout=30)
        return theirs.acquire, theirs.release
    if name == "python-redis-lock":
        import redis_lock

        lock = redis_lock.Lock(client, "hot", expire=30)
        return lock.acquire, lock.release
    from redlock import Redlock, RedlockConfig

    manager, held = Redlock(RedlockConfig(masters=[url], socket_timeout=5, socket_connect_timeout=5)), []

    def acquire() -> None:
        held.append(manager.acquire("hot", 30_000, blocking=True))

    return acquire, lambda: manager.release(held.pop())


def work(name: str, url: str, seconds: float) -> None:
    """Acquire, hold, release, think; print when each was asked for, got and given back."""
    acquire, release = holder(name, url)
    print("ready", flush=True)
    sys.stdin.readline()
    times, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        asked = time.monotonic()
        acquire()
        got = time.monotonic()
        time.sleep(HOLD_SECONDS)
        before = time.monotonic()
        release()
        times.append((asked, got, before))
        time.sleep(THINK_SECONDS)
    json.dump(times, sys.stdout)


def wait(name: str, url: str) -> None:
    """Wait for a lock that nobody gives back."""
    acquire, _ = holder(name, url)
    print("ready", flush=True)
    acquire()


def start(mode: str, name: str, url: str, seconds: float) -> "subprocess.Popen[str]":
    """One process of this module."""
    words = [sys.executable, "-W", "ignore", "-m", "benchmarks.contention", name, "--mode", mode]
    words += ["--url", url, "--seconds", str(seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    made = subprocess.Popen(words, text=True, **pipes)  # type: ignore[call-overload]
    made.stdout.readline()  # type: ignore[union-attr]
    return made


def handover(name: str, url: str, seconds: float) -> dict[str, float]:
    """From a release to the next acquire, where somebody waited; and who overtook whom."""
    from benchmarks.harness import percentile

    processes = [start("work", name, url, seconds) for _ in range(PROCESSES)]
    for one in processes:
        one.stdin.write("\n")  # type: ignore[union-attr]
        one.stdin.flush()  # type: ignore[union-attr]
    turns = sorted(
        (got, asked, released)
        for one in processes
        for asked, got, released in json.loads(one.communicate(timeout=seconds + 60)[0])
    )
    turns = [turn for turn in turns if turn[1] > turns[0][0] + WARM_SECONDS]  # all connections are open by then
    pauses, overtaken = [], 0
    for (_, _, released), (got, asked, _) in pairwise(turns):
        if asked < released:
            pauses.append(1000 * (got - released))
    for i, (got, asked, _) in enumerate(turns):
        overtaken += any(later_asked > asked + 0.002 for _, later_asked, _ in turns[:i] if later_asked < got)
    return {
        "p50_ms": round(percentile(pauses, 0.5), 2),
        "p99_ms": round(percentile(pauses, 0.99), 2),
        "longest_wait_ms": round(1000 * max(got - asked for got, asked, _ in turns)),
        "overtaken_percent": round(100 * overtaken / len(turns), 1),
        "turns": len(turns),
    }


def idle(name: str, seconds: float) -> dict[str, float]:
    """What eight processes that wait cost the server, and the bytes of it."""
    from benchmarks.server import server

    with server() as one, one.client() as admin:
        acquire, _ = holder(name, one.url)
        acquire()
        processes = [start("wait", name, one.url, seconds) for _ in range(PROCESSES - 1)]
        time.sleep(SETTLE_SECONDS)  # until each has asked, and its connections are open
        before, began = admin.info("stats"), time.monotonic()
        time.sleep(seconds)
        after, took = admin.info("stats"), time.monotonic() - began
        gave_up = sum(process.poll() is not None for process in processes)
        for process in processes:
            process.kill()
            process.communicate()
    reads = after["total_reads_processed"] - before["total_reads_processed"] - 1
    taken = after["total_net_input_bytes"] - before["total_net_input_bytes"]
    return {
        "reads_per_second": round(reads / took, 2),
        "bytes_per_second": round(taken / took),
        "gave_up": gave_up,
    }


def main() -> None:
    """Measure one contender, and print the figures as JSON."""
    words = argparse.ArgumentParser()
    words.add_argument("name", choices=["qx_cache", "redis-py Lock", "python-redis-lock", "redlock-ng"])
    words.add_argument("--mode", choices=["all", "work", "wait"], default="all")
    words.add_argument("--url")
    words.add_argument("--seconds", type=float, default=12)
    said = words.parse_args()
    if said.mode == "work":
        work(said.name, said.url, said.seconds)
    elif said.mode == "wait":
        wait(said.name, said.url)
    else:
        from benchmarks.server import server

        with server() as one:
            figures = handover(said.name, one.url, said.seconds)
        json.dump({**figures, **idle(said.name, said.seconds)}, sys.stdout)


if __name__ == "__main__":
    main()
