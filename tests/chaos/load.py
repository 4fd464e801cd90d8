"""A load run: many tasks on two workers while faults strike, and the account of what became of each.

``make load`` publishes 1,000 tasks, half of them in chords and chains, some orders twice, and every few seconds
kills or freezes a worker, kills a child, or restarts Redis. With ``--outage`` there is one fault instead: the one
Redis that is broker and store is away for that many seconds. With ``--tx`` the effects are rows of a database, in
the transaction of their record, and each order stages a child. A message that the Redis transport lost by itself,
and what waits for it, is told apart (``popped.py``): no task can do anything about it.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import popped
import redis
import servers
from celery import chain, chord
from processes import HERE, RABBITMQ_TRANSPORT, REDIS_TRANSPORT, Crew, read_journal, start_worker
from sqlalchemy import text

LEASE_SECONDS = 2.0
FREEZE_SECONDS = 3.0
FAULT_EVERY_SECONDS = (1.5, 3.5)
POOLS = {"prefork": 4, "threads": 5}
CHORD, CHAIN = 10, 5


class Workers(Crew):
    """Two workers, each started anew after it was killed."""

    def __init__(self, folder, environment):
        self._folder, self._environment = folder, environment
        super().__init__(POOLS, self._worker)

    def _worker(self, pool, number):
        words = ["-P", pool, "-c", str(POOLS[pool]), "-n", f"l{number}@load"]
        return start_worker(self._folder / f"worker-{number}.log", self._environment, *words)

    def kill_one(self, dice):
        pool = dice.choice(list(POOLS))
        self.replace(pool, self.kill)
        return f"worker killed ({pool})"

    def freeze_one(self, dice):
        pool = dice.choice(list(POOLS))
        self.freeze(pool, FREEZE_SECONDS)
        return f"worker frozen for {FREEZE_SECONDS:g} s ({pool})"

    def kill_child(self, dice):
        pid = self.living["prefork"].pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return "no child to kill yet"
        with suppress(ProcessLookupError):
            os.kill(int(dice.choice(children)), signal.SIGKILL)
        return "child killed"


class Orders:
    """What was published: task id -> the result that it must have."""

    def __init__(self, app, dice, total, seconds):
        self._app, self._dice, self._seconds = app, dice, seconds
        self.expected, self.chords, self.orders = {}, {}, []
        self.next = defaultdict(set)  # task id -> those that begin when it has ended
        singles, chorded = total // 2, total // 4
        for _ in range(singles):
            self._publish_single(self._order())
        for number in range(chorded // CHORD):
            self._publish_chord(f"chord-{number}")
        for _ in range((total - singles - chorded) // CHAIN):
            self._publish_chain()

        self.again = dice.sample(self.orders[: singles + chorded], total // 20)  # those of the task ``load``

    def publish_again(self):
        """A client that retries: another task id, a known order."""
        if self.again:
            self._publish_single(self.again.pop())

    def hung(self, lost):
        """What hangs on messages that the transport lost: the tasks without an end, and the orders of all."""
        tasks, left = set(), list(lost)
        while left:
            tasks.add(task := left.pop())
            left += self.next[task] - tasks
        orders = {self.expected[task] for task in tasks & set(self.expected) if task not in self.chords.values()}
        return tasks, orders | {args[0] for name, args in lost.values() if "child" in name}

    def _order(self):
        shortest, longest = map(math.log, self._seconds)
        duration = round(math.exp(self._dice.uniform(shortest, longest)), 3)
        self.orders.append((f"o-{len(self.orders)}", duration))
        return self.orders[-1]

    def _publish_single(self, order):
        while True:
            try:
                self.expected[self._app.load.delay(*order).id] = order[0]
            except (self._app.app.connection().connection_errors, redis.RedisError, OSError):
                time.sleep(0.2)  # not accepted, so not published
            else:
                return

    def _publish_chord(self, name):
        orders = [self._order() for _ in range(CHORD)]
        header = [self._app.load.s(*order) for order in orders]
        whole = chord(header)(self._app.gather.s(name))
        self.expected.update({row.id: order[0] for row, order in zip(whole.parent.results, orders, strict=True)})
        self.expected[whole.id] = sorted(order[0] for order in orders)
        self.chords[name] = whole.id
        for row in whole.parent.results:
            self.next[row.id].add(whole.id)

    def _publish_chain(self):
        orders = [self._order() for _ in range(CHAIN)]
        links = [self._app.load.s(*orders[0]), *(self._app.step.s(*order) for order in orders[1:])]
        last = chain(*links).apply_async()
        for order in reversed(orders):
            self.expected[last.id] = order[0]
            if last.parent is not None:
                self.next[last.parent.id].add(last.id)
            last = last.parent


class Account:
    """What became of everything, read from the result backend and the journal."""

    def __init__(self, app, client, folder, orders):
        self._app, self._client, self._folder, self._orders = app, client, folder, orders
        self.states = {}

    def missing(self):
        """Task ids that have no final state yet."""
        left = [one for one in self._orders.expected if one not in self.states]
        for task_id, blob in zip(
            left, self._client.mget([f"celery-task-meta-{one}" for one in left]), strict=True
        ):
            meta = json.loads(blob) if blob else {}
            if meta.get("status") in {"SUCCESS", "FAILURE", "REVOKED"}:
                self.states[task_id] = (meta["status"], meta["result"])
        return [one for one in left if one not in self.states]

    def rows(self, what):
        return read_journal(self._folder, what)

    def effects(self):
        """How often each order took effect, and each child of one."""
        if self._app.engine is None:
            return Counter(row["order"] for row in self.rows("effect"))
        with self._app.engine.connect() as connection:
            return Counter(connection.execute(text("SELECT order_id FROM effects")).scalars())

    def childless(self):
        """Orders whose child has not taken effect once; none where there are no children."""
        if self._app.engine is None:
            return []
        effects = self.effects()
        return [name for name, _ in self._orders.orders if effects[f"child of {name}"] != 1]

    def told(self, lost):
        """The figures; ``bad`` counts what must not be, but for what hangs on the messages ``lost``."""
        expected = self._orders.expected
        hung, hung_orders = self._orders.hung(lost)
        effects, childless = self.effects(), set(self.childless()) - hung_orders
        bodies = Counter(row["order"] for row in self.rows("gather"))
        right = sum(("SUCCESS", value) == self.states.get(task) for task, value in expected.items())
        failed = sum("SUCCESS" != state for state, _ in self.states.values())
        never = {name for name, _ in self._orders.orders if name not in effects}
        doubled = [name for name, count in effects.items() if count > 1]
        missing = set(self.missing())
        wrong_bodies = [
            name for name, task in self._orders.chords.items() if bodies[name] != 1 and task not in missing & hung
        ]
        figures = {
            "published": len(expected),
            "right results": right,
            "not SUCCESS": failed,
            "without an end": len(expected) - len(self.states),
            "orders": len(self._orders.orders),
            "orders that never ran": len(never),
            "orders with two effects": len(doubled),
            **({} if self._app.engine is None else {"orders without one child": len(childless)}),
            "runs": len(self.rows("run")),
            "chord bodies": sum(bodies.values()),
            "chords with not one body": len(wrong_bodies),
            "lost by the transport": len(lost),
            "waiting for what it lost": len(missing & hung),
        }
        bad = len(expected) - right - len(missing & hung)
        bad += len(never - hung_orders) + len(wrong_bodies) + len(childless)
        return figures, bad + (len(doubled) if self._app.engine is not None else 0)


def play(said):
    dice = random.Random(said.seed)  # noqa: S311  # a repeatable run
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ql-")))
        server = stack.enter_context(servers.Server(**popped.WRITTEN, appendfsync="everysec"))
        broker = stack.enter_context(servers.rabbitmq()) if said.broker == "rabbitmq" else server.url
        transport = {"visibility_timeout": 3, **REDIS_TRANSPORT} if said.broker == "redis" else RABBITMQ_TRANSPORT
        os.environ.update(
            QX_CHAOS_FOLDER=str(folder),
            QX_CHAOS_BROKER=broker,
            QX_CHAOS_BACKEND=server.url,
            QX_CHAOS_TRANSPORT=json.dumps(transport),
            QX_CHAOS_CONF=json.dumps({"result_backend_always_retry": True, "qx_cache_lease_ttl": LEASE_SECONDS}),
        )
        if said.tx:
            there = f"sqlite:///{folder}/effects.db"
            url = stack.enter_context(servers.postgresql()) if said.tx == "postgresql" else there
            os.environ["QX_CHAOS_DATABASE"] = url
        sys.path.insert(0, str(HERE))
        import chaos_app  # its settings are in the environment

        if said.tx:
            chaos_app.make_tables()
            stack.callback(chaos_app.engine.dispose)

        def restart(_=None, away_seconds=0.5):
            server.kill()
            time.sleep(away_seconds)
            server.start()
            return f"Redis away for {away_seconds:g} s"

        workers = Workers(folder, dict(os.environ))
        stack.callback(workers.close)
        client = stack.enter_context(redis.Redis.from_url(server.url))
        began = time.monotonic()
        orders = Orders(chaos_app, dice, said.tasks, said.between)
        account = Account(chaos_app, client, folder, orders)

        def say(line):
            print(f"{time.monotonic() - began:6.1f} s  {line}", file=sys.stderr, flush=True)

        say(f"{len(orders.expected)} tasks published")
        if said.outage:
            time.sleep(3)
            say(restart(away_seconds=said.outage))
        kinds = [] if said.outage else [workers.kill_one, workers.freeze_one, workers.kill_child, restart]
        due = began + FAULT_EVERY_SECONDS[0]
        while time.monotonic() - began < said.seconds and (
            orders.again or account.missing() or account.childless()
        ):
            orders.publish_again()
            if kinds and time.monotonic() > due:
                say(dice.choice(kinds)(dice))
                due = time.monotonic() + dice.uniform(*FAULT_EVERY_SECONDS)
            time.sleep(0.2)
        seconds = round(time.monotonic() - began, 1)
        workers.close()
        lost = popped.lost(server.directory) if said.broker == "redis" else {}
        figures, bad = account.told(lost)
        figures["seconds"] = seconds
        for task in account.missing()[:5]:
            say(f"without an end: {task} {orders.expected[task]}{' (lost by the transport)' * (task in lost)}")
        print(json.dumps({"seed": said.seed, "broker": said.broker, "tx": said.tx, **figures}))
        if said.keep:
            shutil.copytree(folder, said.keep)
        return 1 if bad else 0


def main():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--tasks", type=int, default=1000)
    words.add_argument("--seconds", type=float, default=120, help="give up after so long")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    words.add_argument("--outage", type=float, default=0, help="instead of faults: Redis away for so many seconds")
    words.add_argument("--tx", choices=["postgresql", "sqlite"], help="effects in a database, with tx=")
    words.add_argument("--between", type=float, nargs=2, default=(0.01, 2.0), help="shortest and longest task, s")
    words.add_argument("--keep", help="copy the logs and the journal there")
    return play(words.parse_args())


if __name__ == "__main__":
    raise SystemExit(main())
