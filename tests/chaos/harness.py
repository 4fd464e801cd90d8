"""One cell of the fault matrix: a chord whose first task meets a fault at a point, and what became of it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import redis
import servers
from processes import HERE, RABBITMQ_TRANSPORT, REDIS_TRANSPORT, read_journal, start_worker

from qx_cache.embedded import start_server

POINTS = (
    "before claim",
    "after claim",
    "mid-body",
    "after the effect",
    "after commit",
    "after complete",
    "after callbacks",
    "before ack",
)
FAULTS = ("kill child", "kill worker", "cold shutdown", "hard limit", "freeze", "record lost", "Redis stopped")
KINDS = ("plain", "IdempotentTask", "tx, SQLite", "tx, PostgreSQL")
TASKS = {"plain": "work_plain", "IdempotentTask": "work_guarded"}
POOLS = ("prefork", "threads")
AFTER_THE_EFFECT = POINTS[POINTS.index("after the effect") :]
FREEZE_SECONDS = 6.0
"""Past the visibility timeout and the lease, with room for another to take over."""
PATIENCE_SECONDS = 40.0


@dataclass(frozen=True)
class Cell:
    """Where and how a run is disturbed."""

    fault: str
    point: str
    kind: str
    pool: str
    broker: str = "redis"

    @property
    def tx(self):
        """True where the effect is a row in the transaction of its record."""
        return self.kind.startswith("tx")

    @property
    def window(self):
        """True in the three situations in which the docs say that a body can take effect twice."""
        if self.tx:
            return False
        dies_before_the_record = self.fault in {"kill child", "kill worker", "cold shutdown"}
        if dies_before_the_record or self.fault == "freeze":
            return self.point == "after the effect"
        return self.fault == "record lost"

    @property
    def name(self):
        return f"{self.broker} / {self.pool} / {self.kind} / {self.fault} / {self.point}"


def cells(broker="redis"):
    """All that make sense: threads have no child and no hard limit; before the ack stands the main process."""
    for pool, fault, point, kind in itertools.product(POOLS, FAULTS, POINTS, KINDS):
        if pool == "threads" and fault in {"kill child", "hard limit"}:
            continue
        if point == "before ack" and fault in {"kill child", "hard limit"}:
            continue
        if fault == "freeze" and broker != "redis":  # nobody delivers again what a frozen worker holds
            continue
        if fault == "record lost" and point not in AFTER_THE_EFFECT:
            continue
        cell = Cell(fault, point, kind, pool, broker)
        if cell.tx or (point != "after commit" and fault != "Redis stopped"):
            yield cell


@dataclass(frozen=True)
class Found:
    """What a cell showed."""

    runs: int
    effects: int
    state: str
    chord: str
    bodies: int
    seconds: float

    def wrong(self, cell):
        """What must not be, for a task of ours; empty when all is as documented."""
        problems = []
        if self.state not in {"SUCCESS", "FAILURE"} or self.chord not in {"SUCCESS", "FAILURE"}:
            problems.append("lost")
        if self.state == "FAILURE" and cell.fault != "hard limit":
            problems.append("failed")
        if self.chord == "SUCCESS" and self.bodies != 1:
            problems.append(f"{self.bodies} chord bodies")
        if self.effects > (2 if cell.window else 1) or (cell.tx and self.state == "SUCCESS" and self.effects != 1):
            problems.append(f"{self.effects} effects")
        return ", ".join(problems)


class Arena:
    """Two workers of which one is struck, and a calm one for all else, on a broker of their own.

    The calm one has a queue to itself: kombu's Redis transport takes a message off a queue before it notes it as
    unacknowledged, so one that is published while a worker stands still for us would be lost with that worker,
    with or without this package.
    """

    def __init__(self, cell, folder, broker_url, servers, database_url):
        self.cell, self.folder = cell, folder
        backend, self._store = servers
        transport = RABBITMQ_TRANSPORT
        if cell.broker == "redis":
            transport = {"visibility_timeout": 2, **REDIS_TRANSPORT}
        self.environment = {
            **os.environ,
            "QX_CHAOS_FOLDER": str(folder),
            "QX_CHAOS_POINT": cell.point,
            "QX_CHAOS_QUEUES": folder.name,
            "QX_CHAOS_BROKER": broker_url,
            "QX_CHAOS_BACKEND": backend.broker_url,
            "QX_CHAOS_STORE": self._store.url,
            "QX_CHAOS_TRANSPORT": json.dumps(transport),
        }
        if cell.tx:
            self.environment["QX_CHAOS_DATABASE"] = database_url
            subprocess.run([sys.executable, "-c", MAKE_TABLES], cwd=HERE, env=self.environment, check=True)
        self.workers = [self._start(0, "struck"), self._start(1, "struck"), self._start(2, "calm")]
        for number in range(3):
            self.until(lambda number=number: "ready." in self.log(number), f"worker {number}")

    def _start(self, number, queue):
        pool = self.cell.pool if queue == "struck" else "solo"
        words = ["-P", pool, "-c", "2", "-n", f"c{number}@{self.folder.name}", "-Q", f"{queue}-{self.folder.name}"]
        return start_worker(self.folder / f"worker-{number}.log", self.environment, *words)

    def log(self, number):
        return (self.folder / f"worker-{number}.log").read_text(errors="replace")

    def journal(self, what):
        return read_journal(self.folder, what)

    def until(self, condition, what, seconds=PATIENCE_SECONDS):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        logs = "\n".join(self.log(number)[-1500:] for number in range(3))
        raise TimeoutError(f"{self.cell.name}: waited {seconds} s in vain for {what}\n{logs}")

    def strike(self):
        """Do what the cell says to whoever stands at its point."""
        (reached,) = self.until(lambda: self.journal("reached"), "the point")
        if self.cell.fault == "hard limit":
            return
        pid = reached["pid"]
        worker = next(w for w in self.workers if w.pid == pid or _parent(pid) == w.pid)
        if self.cell.fault == "kill child":
            os.kill(pid, signal.SIGKILL)
        elif self.cell.fault == "kill worker":
            os.killpg(worker.pid, signal.SIGKILL)
        elif self.cell.fault == "freeze":
            os.killpg(worker.pid, signal.SIGSTOP)
            time.sleep(FREEZE_SECONDS)
            (self.folder / "go").touch()
            os.killpg(worker.pid, signal.SIGCONT)
        elif self.cell.fault in {"record lost", "Redis stopped"}:
            if self.cell.fault == "record lost":
                self._lose_record()
            else:
                self._store.stop()
            os.killpg(worker.pid, signal.SIGKILL)
        else:
            os.kill(worker.pid, signal.SIGQUIT)

    def _lose_record(self):
        """What a failover to a replica that lags, or an eviction, does to it."""
        victim = next(row["id"] for row in self.journal("run") if row["order"] == "victim")
        with redis.Redis.from_url(self._store.url) as client:
            for key in client.scan_iter(f"*:idem:*{victim}*"):
                client.delete(key)

    def effects(self):
        """How often the victim took effect."""
        if not self.cell.tx:
            return sum(row["order"] == "victim" for row in self.journal("effect"))
        words = [sys.executable, "-c", COUNT_EFFECTS]
        told = subprocess.run(words, cwd=HERE, env=self.environment, check=True, capture_output=True, text=True)
        return int(told.stdout)

    def close(self):
        (self.folder / "go").touch()
        for worker in self.workers:
            with suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _parent(pid):
    with suppress(OSError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


MAKE_TABLES = "import chaos_app; chaos_app.make_tables()"
COUNT_EFFECTS = """
import chaos_app
from sqlalchemy import text
with chaos_app.engine.connect() as connection:
    print(connection.execute(text("SELECT count(*) FROM effects WHERE order_id = 'victim'")).scalar())
"""
PUBLISH = """
import json, os, sys, time
from celery import chord
import chaos_app
name = os.environ["QX_CHAOS_QUEUES"]
task, limit, patience = getattr(chaos_app, sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
victim = task.s("victim").set(queue=f"struck-{name}", **({"time_limit": limit} if limit else {}))
calm = task.s("bystander").set(queue=f"calm-{name}")
whole = chord([victim, calm])(chaos_app.collect.s().set(queue=f"calm-{name}"))
print("published", flush=True)
ids = {row.id for row in whole.parent.results}
first = whole.parent.results[0]
until = time.monotonic() + patience
while time.monotonic() < until and not (whole.ready() and first.ready()):
    time.sleep(0.05)
time.sleep(0.5)  # a second body would come about now
print(json.dumps({"state": first.state, "chord": whole.state}))
"""


def play(cell, broker_url=None, postgresql_url=None):
    """Play one cell on servers of its own, but for the broker and PostgreSQL that are given; what it showed."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="qc-")))
        server = stack.enter_context(start_server())
        store = stack.enter_context(start_server()) if cell.fault == "Redis stopped" else server
        database_url = f"sqlite:///{folder}/effects.db"
        if cell.kind == "tx, PostgreSQL":
            database_url = servers.new_database(postgresql_url)
        arena = Arena(cell, folder, broker_url or server.broker_url, (server, store), database_url)
        try:
            limit = "1" if cell.fault == "hard limit" else "0"
            task = TASKS.get(cell.kind, "work_tx")
            words = [sys.executable, "-c", PUBLISH, task, limit, str(PATIENCE_SECONDS)]
            publisher = subprocess.Popen(
                words,
                cwd=HERE,
                env=arena.environment,
                stdout=subprocess.PIPE,
                text=True,
                stderr=subprocess.DEVNULL,
            )
            try:
                assert "published" == publisher.stdout.readline().strip()
                arena.strike()
                (folder / "struck").touch()
                said = json.loads(publisher.communicate(timeout=PATIENCE_SECONDS + 20)[0])
            finally:
                publisher.kill()
                publisher.wait()
                publisher.stdout.close()
            mine = [row for row in arena.journal("run") if row["order"] == "victim"]
            took = round(time.monotonic() - began, 1)
            return Found(
                len(mine), arena.effects(), said["state"], said["chord"], len(arena.journal("collect")), took
            )
        finally:
            arena.close()


def row(cell, found):
    """A line of the results file."""
    return json.dumps({**asdict(cell), **asdict(found), "wrong": found.wrong(cell)})
