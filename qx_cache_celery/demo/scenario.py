"""The two phases: the same orders and the same faults, plain and then idempotent."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import redis

from qx_cache.embedded import EmbeddedServer
from qx_cache_celery.demo.charges import counted, create, open_charges
from qx_cache_celery.demo.ledger import Ledger
from qx_cache_celery.demo.orders import Order
from qx_cache_celery.demo.processes import Crew, DemoError, until

POINTS = ("child killed", "worker killed", "worker frozen", "after complete", "window")
DELIVERED = POINTS[:3]
"""The faults that the demo delivers; in the others a pool child kills itself."""

PHASE_SECONDS = 40.0
RUNS_OF_FROZEN = 2
"""The run that was frozen, and the one that took its place."""

Say = Callable[[str], None]


class Scenario:
    """Which orders are published twice, and which are hit by a fault.

    Args:
        orders: What to charge.
        seed: Fixes the choice.
        folder: For ledger and logs.
        server: Broker and store.
        say: Told what goes on.
    """

    def __init__(self, orders: Sequence[Order], seed: int, folder: Path, server: EmbeddedServer, say: Say) -> None:
        self.orders, self.folder, self._server, self._say = orders, folder, server, say
        chosen = random.Random(seed).sample(list(orders), len(POINTS) + max(1, len(orders) // 20))
        self.faults = {order.order_id: point for order, point in zip(chosen, POINTS, strict=False)}
        self.twice = [order.order_id for order in chosen[len(POINTS) :]]
        self.ledger = Ledger(folder / "ledger.sqlite")
        self.ledger.create()
        shop = open_charges(folder)
        create(shop)
        shop.dispose()
        self.missing: list[str] = []

    def target(self, point: str) -> str:
        """The order that this fault hits."""
        return next(order_id for order_id, at in self.faults.items() if at == point)

    def play(self, side: str) -> None:
        """One phase, from the first worker to the empty queue."""
        environment = {
            **os.environ,
            "QX_DEMO_FOLDER": str(self.folder),
            "TMPDIR": str(self.folder),  # what killed workers leave goes with it
            "QX_DEMO_SIDE": side,
            "QX_DEMO_FAULTS": json.dumps(self.faults),
            "QX_DEMO_BROKER": self._server.broker_url,
        }
        crew = Crew(self.folder, environment, self.ledger)
        with redis.Redis.from_url(self._server.url) as broker:
            broker.flushall()
            try:
                self._say(f"{side}: starting two workers and beat")
                crew.worker()
                crew.worker()
                crew.wait_ready(2)
                crew.beat()
                self._publish_and_strike(crew, broker, environment)
                self._say(f"{side}: waiting for the rest")
                self._finish(broker, side)
            finally:
                crew.stop()

    def _publish_and_strike(self, crew: Crew, broker: "redis.Redis", environment: dict[str, str]) -> None:
        """A third of the orders with each fault that the demo delivers.

        A worker is killed or frozen while only its target is under way. Otherwise it might have been handed a
        message that it has not noted as its own yet, and the Redis transport of Celery loses such a message with
        the worker, before any task sees it: on both sides, whatever the task's base class.
        """
        side = environment["QX_DEMO_SIDE"]
        rest = [order for order in self.orders if self.faults.get(order.order_id) not in DELIVERED]
        published: set[str] = set()
        for i, point in enumerate(DELIVERED):
            target = next(order for order in self.orders if order.order_id == self.target(point))
            third = rest[i :: len(DELIVERED)]
            batch = [*third, *(order for order in third if order.order_id in self.twice)]
            if point == "child killed":
                self._publish([target, *batch], environment)
                self._strike(crew, side, point)
            else:
                self._wait_settled(broker, side, published)
                self._publish([target], environment)
                self._strike(crew, side, point)
                self._publish(batch, environment)
            published |= {order.order_id for order in (target, *batch)}

    def _publish(self, orders: Sequence[Order], environment: dict[str, str]) -> None:
        batch = [(order.order_id, order.amount) for order in orders]
        words = [sys.executable, "-m", "qx_cache_celery.demo.publish"]
        subprocess.run(words, input=json.dumps(batch), env=environment, text=True, check=True, cwd=self.folder)

    def _strike(self, crew: Crew, side: str, point: str) -> None:
        order_id = self.target(point)
        at = "SELECT pid, parent FROM events WHERE kind=? AND side=?"
        what = f"{side}: a run to reach the point {point}"
        pid, parent = until(lambda: self.ledger.rows(at, f"at {point}", side), what, PHASE_SECONDS)[0]
        self._say(f"{side}: {point} ({order_id})")
        if point != "child killed":
            crew.quiet(parent, but=pid)
        if point == "worker frozen":
            crew.send(parent, signal.SIGSTOP)
            self.ledger.event(f"killed {point}", side, order_id)
            until(lambda: self._taken_over(side, order_id), "another worker to take it over", 20)
            self._go(point, side)
            crew.send(parent, signal.SIGCONT)
            return
        self.ledger.event(f"killed {point}", side, order_id)
        if point == "child killed":
            crew.kill_child(pid)
        else:
            crew.send(parent, signal.SIGKILL)
            crew.worker()
        self._go(point, side)

    def _taken_over(self, side: str, order_id: str) -> bool:
        """True when another worker has charged the order, or waits in the database for the frozen run's row."""
        taken = "SELECT count(*) FROM events WHERE side=? AND order_id=? AND kind='taken_over'"
        return order_id in counted(self.folder, side) or self.ledger.rows(taken, side, order_id)[0][0] > 0

    def _go(self, point: str, side: str) -> None:
        (self.folder / f"go {point} {side}").touch()

    def _finish(self, broker: "redis.Redis", side: str) -> None:
        """Wait until every order is charged, the queue empty and the thawed run over."""
        everything = {order.order_id for order in self.orders}
        left = "SELECT count(*) FROM events WHERE side=? AND order_id=? AND kind='leave'"
        thawed = self.target("worker frozen")

        def done() -> bool:
            settled = self._settled(broker, side, everything)
            return settled and self.ledger.rows(left, side, thawed)[0][0] >= RUNS_OF_FROZEN

        try:
            until(done, "every order charged and the queue empty", PHASE_SECONDS)
        except DemoError as error:  # what is missing is for the report
            self._say(f"{side}: {error}")
            self.missing.append(f"{side}: {error}")

    def _wait_settled(self, broker: "redis.Redis", side: str, order_ids: set[str]) -> None:
        until(
            lambda: self._settled(broker, side, order_ids), f"{side}: what was published to be done", PHASE_SECONDS
        )

    def _settled(self, broker: "redis.Redis", side: str, order_ids: set[str]) -> bool:
        """True when all of these are charged, and none waits in the queue or in a worker."""
        waiting = [*broker.lrange("celery", 0, -1), *broker.hvals("unacked")]
        if any(b"capture" in message for message in waiting):
            return False
        return order_ids <= set(counted(self.folder, side))
