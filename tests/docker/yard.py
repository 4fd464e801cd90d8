"""What a test does with the containers, and what they have written down."""

import json
import time
from contextlib import contextmanager, suppress

import pytest
import redis

STOP_SECONDS = 20


class Yard:
    """Two workers, their broker and their store.

    Args:
        setup: Of pytest-celery.
        network: That all containers are in.
    """

    def __init__(self, setup, network):
        self._setup, self._network = setup, network
        self.workers = list(setup.worker_cluster)
        self.store = setup.backend.container
        self.redis = redis.Redis(host="127.0.0.1", port=self.store.port, decode_responses=True)
        self.redis.delete("journal")

    def publish(self, task, *args):
        """By name; the id of the task."""
        return self.signature(task, *args).apply_async().id

    def signature(self, task, *args):
        return self._setup.app.signature(f"depot.{task}", args=args)

    def journal(self, what=None, **fields):
        """The lines written so far; only those with these fields."""
        rows = [json.loads(line) for line in self.redis.lrange("journal", 0, -1)]
        return [
            row
            for row in rows
            if (what is None or row["what"] == what) and all(row.get(k) == v for k, v in fields.items())
        ]

    def until(self, condition, *, seconds=40.0, every=0.05, what="the condition"):
        """Wait for a truthy value and return it; a store that is away is asked again."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(redis.ConnectionError):
                if value := condition():
                    return value
            time.sleep(every)
        pytest.fail(f"waited {seconds} s in vain for {what}; journal: {self.journal()}\n{self._logs()}")

    def results(self, ids, *, seconds=60.0):
        """What the tasks ended with, all of them; each must be a success."""
        waiting = [self._setup.app.AsyncResult(one) for one in ids]
        for result in waiting:
            self.until(lambda result=result: result.state == "SUCCESS", seconds=seconds, what=f"task {result.id}")
        return [result.result for result in waiting]

    def runs_in(self, order):
        """The worker that has begun with ``order``, and the other one."""
        row = self.until(lambda: self.journal("start", order=order), what=f"{order} to start")[-1]
        here = next(worker for worker in self.workers if host(worker) == row["host"])
        return here, next(worker for worker in self.workers if worker is not here)

    def start(self, worker):
        """Start one that was killed or stopped, and wait until it takes messages."""
        before = len(self.journal("ready", host=host(worker)))
        raw(worker).start()
        self.until(lambda: len(self.journal("ready", host=host(worker))) > before, what=f"{worker.name()} ready")
        worker.container.reload()

    def stop(self, worker):
        """In order: it finishes what it has begun. How it ended."""
        raw(worker).stop(timeout=STOP_SECONDS)
        worker.container.reload()
        return worker.container.attrs["State"]["ExitCode"]

    def kill(self, node):
        """As a machine that fails does; when that was."""
        node.kill()
        return time.time()

    @contextmanager
    def frozen(self, worker):
        raw(worker).pause()
        try:
            yield
        finally:
            raw(worker).unpause()

    @contextmanager
    def cut_off(self, worker):
        """Outside of the network, with all connections open."""
        self._network.disconnect(raw(worker), force=True)
        try:
            yield
        finally:
            self._network.connect(raw(worker))

    def restart_store(self):
        raw(self._setup.backend).restart(timeout=STOP_SECONDS)
        self.until(self.redis.ping, what="the store")

    def heal(self):
        """Both workers at work, and nothing on its way to them."""
        for worker in self.workers:
            worker.container.reload()
            if worker.container.status != "running":
                self.start(worker)
        self.until(self._idle, what="all messages to be done with")
        self.redis.close()

    def _idle(self):
        if not self._setup.app.conf.broker_url.startswith("amqp"):
            return self.redis.llen("celery") == 0 and self.redis.hlen("unacked") == 0
        with self._setup.app.connection_for_write() as connection:
            return connection.default_channel.queue_declare("celery", passive=True).message_count == 0

    def _logs(self):
        return "\n".join(f"{worker.name()}:\n{worker.logs()[-3000:]}" for worker in self.workers)


def host(node):
    """What a container calls itself."""
    return node.container.id[:12]


def raw(node):
    """The container itself, with all that can be done to one."""
    return node.container._container
