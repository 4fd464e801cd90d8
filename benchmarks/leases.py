"""Many leases in one process, whose main thread computes: what renewing costs, and whether any is lost."""

import argparse
import json
import sys
import threading
import time

from benchmarks.server import server
from qx_cache import SyncDistributedLock
from qx_cache.heartbeat import renew


def main() -> None:
    """Measure, and print the figures as JSON."""
    words = argparse.ArgumentParser()
    words.add_argument("leases", type=int)
    words.add_argument("--seconds", type=float, default=60)
    words.add_argument("--ttl", type=float, default=30)
    said = words.parse_args()
    with server() as one, one.client() as client, one.client() as admin:
        threads, connections = threading.active_count(), admin.info("clients")["connected_clients"]
        locks = [
            SyncDistributedLock(client, f"l{i}", ttl_seconds=said.ttl, auto_renew=True) for i in range(said.leases)
        ]
        leases = [lock.acquire() for lock in locks]
        rounds = []
        for _ in range(20):
            began = time.perf_counter()
            renew(client, leases)
            rounds.append(1000 * (time.perf_counter() - began))
        heartbeat = locks[0]._heartbeat  # noqa: SLF001  # its thread's own time is what is asked for
        clock = time.pthread_getcpuclockid(heartbeat._thread._thread.ident)  # noqa: SLF001
        used, until, lapses, longest = time.clock_gettime(clock), time.monotonic() + said.seconds, 0, 0.0
        while time.monotonic() < until:
            lapses += sum(not lease.valid() for lease in leases[:: max(1, said.leases // 100)])
            longest = max(longest, heartbeat.lateness)
        lost = sum(not lease.valid() for lease in leases)
        beats = time.clock_gettime(clock) - used
        figures = {
            "leases": said.leases,
            "threads": threading.active_count() - threads,
            "connections": admin.info("clients")["connected_clients"] - connections,
            "round_ms": round(sorted(rounds)[len(rounds) // 2], 2),
            "lost": lost + lapses,
            "heartbeat_cpu_percent": round(100 * beats / said.seconds, 2),
            "lateness_ms": round(1000 * longest),
            "seconds": said.seconds,
        }
        for lock in locks:
            lock.release()
        heartbeat.stop()
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
