"""Real worker processes on a server of their own."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from beating import Clock
from celery import Celery
from clockworks import Clockwork
from journals import rows_in

from qx_cache.embedded import start_server

HERE = Path(__file__).parent


class Publisher:
    """Publishes by name, for an app that this process cannot import."""

    def __init__(self, url):
        self.app = Celery("publisher", broker=url, backend=url, set_as_current=False)


class Shop:
    """One broker, one store, some workers, and what they wrote down."""

    def __init__(self, folder, server, settings, name="shop", *, imported=True):
        self.folder, self.server, self.name = folder, server, name
        self.redis = redis.Redis.from_url(server.url)
        self.workers = []
        os.environ.update(
            QX_TEST_FOLDER=str(folder),
            QX_TEST_BROKER=server.broker_url,
            QX_TEST_VISIBILITY_TIMEOUT=str(settings.pop("visibility_timeout", 60)),
            QX_TEST_CONF=json.dumps(settings),
        )
        self._forget_modules()
        self.tasks = importlib.import_module(name) if imported else Publisher(server.broker_url)

    def start(self, *, concurrency=2, pool="prefork", queues="celery"):
        """Start one worker and wait until it takes messages."""
        number = len(self.workers)
        log = (self.folder / f"worker-{number}.log").open("wb")
        words = ["worker", "-c", str(concurrency), "-P", pool, "-n", f"w{number}@qx", "-l", "INFO", "-Q", queues]
        words += ["--without-mingle", "--without-gossip"]
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", self.name, *words],
            cwd=HERE,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.workers.append(process)
        self.until(lambda: f"w{number}@qx ready" in self.log(number), what=f"worker {number} ready")
        return process

    def log(self, number):
        return (self.folder / f"worker-{number}.log").read_text(errors="replace")

    def journal(self, what=None, **fields):
        """The lines written so far; only those with these fields."""
        return [
            row
            for row in rows_in(self.folder / "journal")
            if (what is None or row["what"] == what) and all(row.get(k) == v for k, v in fields.items())
        ]

    def until(self, condition, *, seconds=30.0, what="the condition"):
        """Wait for a truthy value and return it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if value := condition():
                return value
            time.sleep(0.02)
        sys.stdout.write(f"journal: {self.journal()}\n{self._logs()}\n")  # pytest shows it with the failure
        pytest.fail(f"waited {seconds} s in vain for {what}")

    def open(self, gate):
        (self.folder / gate).touch()

    def running_in(self, row):
        """The worker whose pool child wrote this line."""
        return next(w for w in self.workers if row["parent"] == w.pid or row["pid"] == w.pid)

    def group(self, worker, number):
        """Send a signal to a worker and all its children."""
        os.killpg(worker.pid, number)

    def idle(self):
        """True when the broker holds no message, neither waiting nor unacknowledged."""
        return self.redis.llen("celery") == 0 and self.redis.hlen("unacked") == 0

    def stop(self):
        """End the workers; safe to repeat."""
        for worker in self.workers:
            if worker.poll() is None:
                for number in (signal.SIGCONT, signal.SIGKILL):
                    os.killpg(worker.pid, number)
            worker.wait()
        self.workers.clear()
        self.tasks.app.close()
        consumer = self.tasks.app.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None  # a result that is collected later would look for the server in vain
        self.redis.close()
        self._forget_modules()

    def _forget_modules(self):
        for name in (self.name, "backroom"):
            sys.modules.pop(name, None)

    def _logs(self):
        return "\n".join(self.log(number)[-3000:] for number in range(len(self.workers)))


@contextmanager
def silent(server):
    """A server that nothing comes from: frozen, as behind a network that is cut."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@pytest.fixture
def records():
    """A Redis for records apart from the broker's."""
    with start_server() as server:
        yield server


@pytest.fixture
def shop_with(tmp_path):
    """Make a shop with these settings; ``visibility_timeout`` is the broker's, the rest is the app's."""
    made = []

    def make(name="shop", *, imported=True, **settings):
        server = start_server()
        made.append((server, None))
        settings = {"qx_cache_lease_ttl": 2, "qx_cache_lock_ttl": 2, **settings}
        shop = Shop(tmp_path, server, settings, name, imported=imported)
        made[-1] = (server, shop)
        return shop

    yield make
    for server, shop in made:
        if shop is not None:
            shop.stop()
        server.stop()


@pytest.fixture
def ledger_with(shop_with, database_url, monkeypatch):
    """Make a shop whose tasks keep their effects in a database."""
    monkeypatch.setenv("QX_TEST_DATABASE", database_url)
    made = []

    def make(**settings):
        ledger = shop_with(name="ledger", **settings)
        made.append(ledger.tasks)
        ledger.tasks.make_tables()
        return ledger

    yield make
    for tasks in made:
        tasks.engine.dispose()


@pytest.fixture
def ledger(ledger_with):
    """One worker of two processes."""
    ledger = ledger_with()
    ledger.start()
    return ledger


@pytest.fixture
def shop(shop_with):
    """A shop with one worker of two processes, and short leases."""
    shop = shop_with()
    shop.start()
    return shop


@pytest.fixture
def clockwork(tmp_path):
    Clock.set("2026-06-11T02:00:00Z")
    with start_server() as server:
        clockwork = Clockwork(tmp_path, server)
        yield clockwork
        clockwork.stop()


@pytest.fixture
def said(caplog):
    caplog.set_level("INFO", logger="qx_cache_celery.beat")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "qx_cache_celery.beat"]
