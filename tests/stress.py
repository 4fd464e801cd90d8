"""Processes that add one to an unguarded counter under the lock, while some are killed: ``make stress``.

Each notes fence and value after its write. Two that worked at the same time would have written the same value; a
fence that does not rise would be out of the order of the values. Killed ones leave gaps, and the lock to lapse.
"""

import argparse
import asyncio
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from qx_cache import DistributedLock, SyncDistributedLock, create_client, create_sync_client
from qx_cache.embedded import start_server

TTL_SECONDS = 3.0
PROCESSES = 8
START_SECONDS = 60.0


def work(url, ledger):
    with create_sync_client(url) as client, ledger.open("a", buffering=1) as notes:
        while True:
            with SyncDistributedLock(client, "counter", ttl_seconds=TTL_SECONDS, auto_renew=True) as lock:
                value = int(client.get("counter") or 0) + 1
                time.sleep(random.random() / 500)
                lock.lease.ensure()
                client.set("counter", value)
                notes.write(f"{lock.fence} {value}\n")


async def awork(url, ledger):
    client = await create_client(url)
    with ledger.open("a", buffering=1) as notes:
        while True:
            async with DistributedLock(client, "counter", ttl_seconds=TTL_SECONDS, auto_renew=True) as lock:
                value = int(await client.get("counter") or 0) + 1
                await asyncio.sleep(random.random() / 500)
                lock.lease.ensure()
                await client.set("counter", value)
                notes.write(f"{lock.fence} {value}\n")


def stress(url, folder, seconds, seed):
    """Run and kill; what was noted, and how many were killed."""
    dice, running, number = random.Random(seed), [], 0  # a repeatable choice of victims

    def start():
        nonlocal number
        number += 1
        words = [
            sys.executable,
            __file__,
            "--work",
            url,
            str(folder / str(number)),
            "async" if number % 2 else "sync",
        ]
        return subprocess.Popen(words, stderr=subprocess.PIPE, text=True)

    killed = 0
    try:
        running = [start() for _ in range(PROCESSES)]
        await_each(folder)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(dice.uniform(0.2, 1.0))
            victim = dice.randrange(PROCESSES)
            ended = running[victim]
            if ended.poll() is not None:
                raise SystemExit(f"a process ended by itself: {ended.stderr.read()}")
            ended.kill()
            ended.communicate()
            killed += 1
            running[victim] = start()
    finally:
        for one in running:
            one.kill()
            one.communicate()
    lines = [line.split() for file in folder.iterdir() for line in file.read_text().splitlines()]
    return [(int(fence), int(value)) for fence, value in (words for words in lines if len(words) == 2)], killed


def await_each(folder):
    """Until each process has been under the lock once: before, there is nothing to disturb."""
    until = time.monotonic() + START_SECONDS
    while sum(file.stat().st_size > 0 for file in folder.iterdir()) < PROCESSES:
        if time.monotonic() > until:
            raise SystemExit(f"not all of {PROCESSES} processes came under the lock in {START_SECONDS} s")
        time.sleep(0.05)


def judge(noted):
    """What was violated: nothing, if all is well."""
    noted = sorted(noted)
    values = [value for _, value in noted]
    same_fence = len(noted) - len({fence for fence, _ in noted})
    together = len(values) - len(set(values))
    out_of_order = sum(later <= earlier for earlier, later in pairwise(values))
    return {"same fence": same_fence, "same value": together, "fence out of order": out_of_order}


def main():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=float, default=30)
    words.add_argument("--seed", type=int, default=None)
    words.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    said = words.parse_args()
    if said.work:
        url, ledger, twin = said.work
        asyncio.run(awork(url, Path(ledger))) if twin == "async" else work(url, Path(ledger))
        return 0
    seed = random.randrange(2**32) if said.seed is None else said.seed
    with start_server() as server, tempfile.TemporaryDirectory() as folder:
        noted, killed = stress(server.url, Path(folder), said.seconds, seed)
    violated = judge(noted)
    print(f"seed {seed}: {len(noted)} times under the lock, {killed} processes killed, violations: {violated}")
    return 1 if any(violated.values()) or len(noted) < said.seconds or not killed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1))
    raise SystemExit(main())
