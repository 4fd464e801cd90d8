"""500 orders while containers of this project are killed, frozen, cut off and restarted; then the ledger.

``docker compose --profile chaos run --rm chaos``. It reaches the engine by its socket, and touches only containers
that have the label of its own project. Exit code 0 when no order was lost and none was charged twice
by the time that no message was left.
"""

import contextlib
import json
import os
import random
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import docker
import httpx
from kombu import Connection
from shop.settings import Settings
from sqlalchemy import create_engine, text

ORDERS = int(os.environ.get("CHAOS_ORDERS", "500"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
FAULT_EVERY_SECONDS = (0.5, 2.0)
PACE_SECONDS = 0.08
FREEZE_SECONDS = 4.0
PATIENCE_SECONDS = 240.0
PROJECT = "com.docker.compose.project"
SERVICE = "com.docker.compose.service"


class Stack:
    """The other containers of the project that this one belongs to."""

    def __init__(self, engine, dice):
        self._engine, self._dice = engine, dice
        self.project = engine.containers.get(os.uname().nodename).labels[PROJECT]
        self.struck = Counter()

    def strike(self):
        """One fault; whatever it stops is running again when this returns."""
        faults = [self._kill, self._freeze, self._cut, self._restart_worker, self._restart_redis]
        fault = self._dice.choice(faults)
        self.start_all()
        what = fault()
        self.struck[what] += 1
        return what

    def pause(self):
        """Seconds until the next fault."""
        return self._dice.uniform(*FAULT_EVERY_SECONDS)

    def start_all(self):
        """Start the workers that have ended by themselves, as Celery 5.7 may when Redis goes away."""
        for worker in self._all("worker"):
            worker.start()

    def _all(self, service):
        labels = [f"{PROJECT}={self.project}", f"{SERVICE}={service}"]
        return self._engine.containers.list(filters={"label": labels}, all=True)

    def _one(self, service):
        return self._dice.choice(self._all(service))

    def _kill(self):
        worker = self._one("worker")
        with contextlib.suppress(docker.errors.APIError):
            worker.kill("SIGKILL")
        worker.start()
        return "worker killed"

    def _freeze(self):
        worker = self._one("worker")
        try:
            worker.pause()
        except docker.errors.APIError:
            return "worker found ended"
        time.sleep(FREEZE_SECONDS)
        worker.unpause()
        return "worker frozen"

    def _cut(self):
        worker = self._one("worker")
        network = self._engine.networks.list(filters={"label": f"{PROJECT}={self.project}"})[0]
        network.disconnect(worker, force=True)
        time.sleep(FREEZE_SECONDS)
        network.connect(worker)
        return "worker cut off"

    def _restart_worker(self):
        self._one("worker").restart(timeout=15)
        return "worker restarted in order"

    def _restart_redis(self):
        redis = self._one("redis")
        redis.kill("SIGKILL")
        redis.start()
        return "Redis killed and started"


@contextlib.contextmanager
def faults(stack, say):
    """Strike again and again while the orders come in; the last fault is over at the end."""
    over = threading.Event()

    def strike():
        while not over.wait(stack.pause()):
            say(stack.strike())

    with ThreadPoolExecutor(1) as pool:
        striking = pool.submit(strike)
        try:
            yield
        finally:
            over.set()
            striking.result()
            stack.start_all()


def order(client, number):
    """Send it, as a client that tries again under the same key; sometimes once more."""
    key = f"chaos-{SEED}-{uuid.uuid5(uuid.NAMESPACE_OID, f'{SEED} {number}').hex}"
    body = {"customer": f"c{number}", "item": "chaos", "amount_cents": 100 + number}
    for _ in range(1 + (number % 10 == 0)):
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.HTTPError):
                answer = client.post("/orders", json=body, headers={"Idempotency-Key": key})
                if answer.status_code == 201:
                    break
            if time.monotonic() > deadline:
                raise TimeoutError(f"order {number} was not taken within a minute")
            time.sleep(0.3)
    return answer.json()["id"]


def counted(engine, ids):
    """How many payments each order has."""
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT order_id, count(*) FROM payments GROUP BY order_id")).all()
    return {order_id: count for order_id, count in rows if order_id in ids}


def pending(broker):
    """How many messages wait; on Redis also those that are with a worker, dead or alive."""
    with Connection(broker) as connection:
        channel = connection.ensure_connection(max_retries=5).default_channel
        if connection.transport.driver_type == "redis":
            return channel.client.llen("celery") + channel.client.hlen("unacked")
        return channel.queue_declare("celery", passive=True).message_count


def until(condition, deadline):
    """Whether it came true in time."""
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.3)
    return true


def main():
    settings = Settings()
    stack = Stack(docker.from_env(), random.Random(SEED))  # noqa: S311  # a repeatable run
    database = create_engine(settings.database_url.get_secret_value())
    began, ids = time.monotonic(), set()

    def say(line):
        print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

    with httpx.Client(base_url="http://web:8000", timeout=20) as client, faults(stack, say):
        for number in range(ORDERS):
            ids.add(order(client, number))
            time.sleep(PACE_SECONDS)
        say(f"{len(ids)} orders taken")
    deadline = time.monotonic() + PATIENCE_SECONDS
    until(lambda: len(counted(database, ids)) == len(ids), deadline)
    idle = until(lambda: pending(settings.broker) == 0, deadline)  # what comes late may charge twice, too
    payments = counted(database, ids)
    told = {
        "orders": len(ids),
        "lost": len(ids) - len(payments),
        "charged twice": sum(count > 1 for count in payments.values()),
        "idle": idle,
        "faults": dict(stack.struck),
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(told))
    return 1 if told["lost"] or told["charged twice"] or not idle or len(ids) != ORDERS else 0


if __name__ == "__main__":
    raise SystemExit(main())
