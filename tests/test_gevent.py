"""Under gevent the heartbeat is a thread of the system: a greenlet that computes does not starve it."""

import subprocess
import sys

GREENLETS = """
from gevent import monkey
monkey.patch_all()
import gevent, sys, time, threading
import redis
from qx_cache import SyncDistributedLock, SyncIdempotencyStore, create_sync_client

with create_sync_client(sys.argv[1]) as client:
    lock = SyncDistributedLock(client, "l", namespace=sys.argv[2], ttl_seconds=2, auto_renew=True)
    lease = lock.acquire()
    until = time.monotonic() + 5
    lapses = 0
    while time.monotonic() < until:
        lapses += not lease.valid()  # never yields
    order = []
    def wait():
        other = SyncDistributedLock(client, "l", namespace=sys.argv[2])
        other.acquire(wait_seconds=5)
        order.append("waiter")
        other.release()
    waiting = gevent.spawn(wait)
    while lock.info().waiters != 1:
        gevent.sleep(0.01)
    order.append("holder")
    lock.release()
    waiting.join()
    store = SyncIdempotencyStore(client, namespace=sys.argv[2])
    claim = store.claim("k")
    result = gevent.spawn(store.wait, "k", wait_seconds=5)
    gevent.sleep(0.05)
    store.complete(claim, 7)
    lock._heartbeat.stop()
    print(lapses, order, result.get())
"""


def test_a_lease_is_kept_beside_a_greenlet_that_computes(qx_redis_url, qx_namespace):
    words = [sys.executable, "-W", "ignore", "-c", GREENLETS, qx_redis_url, qx_namespace]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "0 ['holder', 'waiter'] 7" == done.stdout.strip(), done.stderr
