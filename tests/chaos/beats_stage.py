"""The processes and the Redis of a beat run, and what is done to them."""

import importlib
import json
import os
import signal
import sys
import time

import servers
from beats_account import Fault, ends_of_runs
from processes import HERE, RABBITMQ_TRANSPORT, REDIS_TRANSPORT, Crew, read_journal, start, start_worker

BEATS = ("beat-a", "beat-b", "beat-c")
WORKERS = {"prefork": 2, "threads": 2}
KINDS = ("kill", "freeze", "stop")
REDIS_KINDS = ("kill", "freeze", "long kill")
JOB_LOCK_SECONDS = 2.0
AWAY_SECONDS = 0.5
PATIENCE_SECONDS = 40.0
DRAIN_SECONDS = 15.0


class Stage:
    """Three beats, two workers and a Redis, and what can be done to them."""

    def __init__(self, said, stack, folder):
        self._folder, self._late = folder, said.acks == "late"
        self._frozen_for = max(said.lock_seconds, JOB_LOCK_SECONDS) + 1
        lasting = {} if said.lose_data else {"appendonly": "yes", "appendfsync": "always"}
        self._server = stack.enter_context(servers.Server(**lasting))
        broker = stack.enter_context(servers.rabbitmq()) if said.broker == "rabbitmq" else self._server.url
        os.environ.update(environment(said, folder, broker, self._server.url))
        self._environment = {**os.environ, "TMPDIR": str(folder)}  # what a killed process leaves there goes too
        self.app = fresh_app()
        self.app.make_ledger()
        self.faults = []
        self._beats = Crew(BEATS, self._beat)
        stack.callback(self._beats.close)
        self._workers = Crew(WORKERS, self._worker)
        stack.callback(self._workers.close)
        self._workers.supervise()

    def _beat(self, name, number):
        words = ["-A", "beats_app", "beat", "-S", "qx_cache_celery.beat:SingletonScheduler", "-l", "INFO"]
        words += ["--pidfile=", "-s", str(self._folder / f"schedule-{name}")]
        return start(self._folder / f"{number}-{name}.log", self._environment, *words)

    def _worker(self, pool, number):
        words = ["-P", pool, "-c", str(WORKERS[pool]), "-n", f"b{number}@beats"]
        return start_worker(self._folder / f"{number}-{pool}.log", self._environment, *words, app="beats_app")

    def journal(self):
        return read_journal(self._folder)

    def leader(self):
        """The beat that leads, by what it said last; None for now."""
        pids = {beat.pid: name for name, beat in self._beats.living.items()}
        said = {row["group"]: row for row in self.journal() if row["what"] in {"elected", "demoted"}}
        leading = [row for pid, row in said.items() if pid in pids and row["what"] == "elected"]
        return pids[max(leading, key=lambda row: row["at"])["group"]] if leading else None

    def at_work(self):
        """The worker in whose hands the job is, or None."""
        rows = self.journal()
        ends = ends_of_runs(rows)
        groups = [row["group"] for row in rows if row["what"] == "start" and row["run"] not in ends]
        return next((pool for pool, one in self._workers.living.items() if one.pid in groups), None)

    def steady(self):
        """Wait until all are there and one leads."""

        def all_there():
            there = {row["group"] for row in self.journal() if row["what"] in {"standing", "ready"}}
            everybody = [*self._beats.living.values(), *self._workers.living.values()]
            return {one.pid for one in everybody} <= there and self._server.answers() and self.leader()

        return servers.until_true(all_there, PATIENCE_SECONDS, "a leader, and all that was started anew")

    def strike_leader(self, kind):
        name = self.steady()
        fault = self._strike(self._beats, name, kind, "beat")
        self._taken_over(fault)
        return f"leader {kind}: {name}"

    def strike_worker(self, kind):
        name = servers.until_true(self.at_work, PATIENCE_SECONDS, "a run of the job")
        self._strike(self._workers, name, kind, "worker")
        return f"worker {kind}: {name}"

    def strike_redis(self, kind):
        fault = self._noted(kind, "redis", 0)
        if kind == "freeze":
            pid = self._server.pid
            os.kill(pid, signal.SIGSTOP)
            time.sleep(self._frozen_for)
            os.kill(pid, signal.SIGCONT)
        else:
            self._server.kill()
            time.sleep(AWAY_SECONDS if kind == "kill" else self._frozen_for)
            self._server.start()
        fault.until = time.time()
        return f"Redis {kind} for {fault.until - fault.at:.1f} s"

    def strike_worker_and_redis(self, _):
        """Redis loses its data while a worker stands still in the middle of the job."""
        name = servers.until_true(self.at_work, PATIENCE_SECONDS, "a run of the job")
        worker = self._workers.living[name]
        frozen = self._noted("freeze", "worker", worker.pid)
        os.killpg(worker.pid, signal.SIGSTOP)
        try:
            told = self.strike_redis("kill")
            time.sleep(self._frozen_for)
        finally:
            os.killpg(worker.pid, signal.SIGCONT)
        frozen.until = time.time()
        return f"worker frozen ({name}), {told} meanwhile"

    def _strike(self, crew, name, kind, role):
        fault = self._noted(kind, role, crew.living[name].pid)
        if kind == "freeze":
            crew.freeze(name, self._frozen_for)
            fault.until = time.time()
        else:
            crew.replace(name, crew.kill if kind == "kill" else crew.stop)
        return fault

    def _noted(self, kind, role, group):
        self.faults.append(Fault(kind, role, group, time.time()))
        return self.faults[-1]

    def _taken_over(self, fault):
        def others():
            later = [row for row in self.journal() if row["what"] == "elected" and row["at"] > fault.at]
            return any(row["group"] != fault.group for row in later)

        servers.until_true(others, PATIENCE_SECONDS, "another leader")

    def drain(self):
        """Let beats stop, and workers work off what was dispatched."""
        for name in BEATS:
            self._beats.stop(name)
        deadline = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < deadline and self._unsettled():
            time.sleep(0.1)

    def _unsettled(self):
        """Task ids that are not at their end, as far as is known: some have been lost with a worker or Redis."""
        rows = self.journal()
        last = {row["id"]: row for row in rows if row.get("id") and row["what"] != "lease_lost"}
        left = [one for one, row in last.items() if row["what"] not in {"finish", "skipped", "ended"}]
        if self._late:
            return left
        killed = {fault.group for fault in self.faults if fault.kind == "kill"}
        killed |= {row["group"] for row in rows if row["what"] == "crashed"}
        return [one for one in left if last[one]["what"] != "start" or last[one]["group"] not in killed]


def environment(said, folder, broker, url):
    """What the app reads its settings from."""
    transport = {"visibility_timeout": 3, **REDIS_TRANSPORT} if said.broker == "redis" else RABBITMQ_TRANSPORT
    conf = {
        "task_ignore_result": True,
        "task_track_started": False,
        "beat_max_loop_interval": 0.2,
        "qx_cache_lock_ttl": JOB_LOCK_SECONDS,
        "qx_cache_beat_lock_ttl": said.lock_seconds,
    }
    return {
        "QX_CHAOS_FOLDER": str(folder),
        "QX_CHAOS_BROKER": broker,
        "QX_CHAOS_BACKEND": url,
        "QX_CHAOS_TRANSPORT": json.dumps(transport),
        "QX_CHAOS_CONF": json.dumps(conf),
        "QX_CHAOS_BEATS": json.dumps({"late": said.acks == "late"}),
    }


def fresh_app():
    """The app, with the settings that are in the environment now."""
    sys.path.insert(0, str(HERE))
    for name in ("beats_app", "chaos_app"):
        sys.modules.pop(name, None)
    return importlib.import_module("beats_app")
