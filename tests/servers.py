"""Real servers for tests, beyond the embedded one: on TCP, with TLS, a Sentinel set, a cluster."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path

import pytest
import redis

from qx_cache import embedded


def need(what, path, cure):
    """Skip when ``what`` is not on this machine; fail where ``QX_TEST_REQUIRE`` names it."""
    if path:
        return path
    reason = f"{what} is not on this machine: {cure}"
    if what in os.environ.get("QX_TEST_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def redis_7():
    return need("redis", shutil.which("redis-server"), "apt-get install redis-server (Debian's 7.0)")


def until_true(condition, seconds=20.0, what="the condition"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(redis.RedisError, OSError):
            if found := condition():
                return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {seconds} s")


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


class Server:
    """A server on a port of the loopback; ``start`` again after ``kill`` keeps port and directory."""

    def __init__(self, binary=None, *, sentinel="", **config):
        self.port = free_port()
        self._binary = binary or embedded._binary()
        self._folder = tempfile.TemporaryDirectory(prefix="qs-")
        self.directory = Path(self._folder.name)
        self._sentinel = sentinel
        ports = {"port": 0, "tls-port": self.port} if "tls_cert_file" in config else {"port": self.port}
        self._config = {
            **ports, "bind": "127.0.0.1", "dir": self.directory, "protected-mode": "no",
            "logfile": self.directory / "log", **({} if sentinel else {"save": '""'}),
            **{name.replace("_", "-"): value for name, value in config.items()},
        }  # fmt: skip
        self._file = self.directory / "server.conf"
        self._file.write_text("".join(f"{name} {value}\n" for name, value in self._config.items()) + sentinel)
        self._process = None
        self.start()

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    @property
    def url(self):
        return f"redis://{self.address}/0"

    @property
    def pid(self):
        """Of the server itself, which is the only child of its supervisor."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def start(self):
        read_end, write_end = os.pipe()
        words = [self._binary, str(self._file), *(["--sentinel"] if self._sentinel else [])]
        with FileIO(read_end) as stdin:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", embedded._SUPERVISOR, "qx-test", str(self.directory / "gone"), *words],
                stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", start_new_session=True,
            )  # fmt: skip
        self._leash = FileIO(write_end, "w")
        until_true(self.answers, what=f"an answer of {self._binary}")

    def answers(self):
        with socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True

    def kill(self):
        """End the server at once, as a crash does."""
        if self._process is not None:
            self._leash.close()
            self._process.wait(20)
            self._process = None

    def close(self):
        self.kill()
        self._folder.cleanup()

    def raw(self, **options):
        return redis.Redis(port=self.port, socket_timeout=5, **options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@contextmanager
def cluster(binary=None, masters=3, replicas=0):
    """A cluster: ``masters`` with the slots in equal parts, then ``replicas`` of the first master."""
    config = {
        "cluster_enabled": "yes", "cluster_node_timeout": 1000, "cluster_require_full_coverage": "no",
        "cluster_replica_validity_factor": 0, "repl_diskless_sync_delay": 0,
    }  # fmt: skip
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(Server(binary, **config, cluster_port=free_port()))
            for _ in range(masters + replicas)
        ]
        raws = [stack.enter_context(node.raw()) for node in nodes]
        for i, raw in enumerate(raws[:masters]):
            raw.execute_command("CLUSTER ADDSLOTSRANGE", i * 16384 // masters, (i + 1) * 16384 // masters - 1)
        for node in nodes[1:]:
            raws[0].execute_command("CLUSTER MEET", "127.0.0.1", node.port, node._config["cluster-port"])
        until_true(lambda: all(len(raw.cluster("NODES")) == len(nodes) for raw in raws), what="acquaintance")
        for raw in raws[masters:]:
            raw.execute_command("CLUSTER REPLICATE", raws[0].cluster("MYID"))
        until_true(
            lambda: (
                all(raw.cluster("INFO")["cluster_state"] == "ok" for raw in raws)
                and all(raw.info("replication").get("master_link_status") == "up" for raw in raws[masters:])
            ),
            what="a cluster",
        )
        yield nodes


@contextmanager
def sentinels(binary, *, password="", count=3):
    """A master with a replica, watched by three sentinels, as ``(master, replica, [sentinel, …])``."""
    auth = {"requirepass": password, "masterauth": password} if password else {}
    with ExitStack() as stack:
        master = stack.enter_context(Server(binary, repl_diskless_sync_delay=0, **auth))
        replica = stack.enter_context(
            Server(binary, replicaof=f"127.0.0.1 {master.port}", repl_diskless_sync_delay=0, **auth)
        )
        lines = f"sentinel monitor mymaster 127.0.0.1 {master.port} 2\n"
        lines += "sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 3000\n"
        lines += f"sentinel auth-pass mymaster {password}\n" if password else ""
        watchers = [stack.enter_context(Server(binary, sentinel=lines)) for _ in range(count)]
        with replica.raw(password=password or None) as raw:
            until_true(lambda: raw.info("replication")["master_link_status"] == "up", what="replication")
        for watcher in watchers:
            with watcher.raw() as raw:
                until_true(
                    lambda raw=raw: (
                        raw.sentinel_masters()["mymaster"]["num-other-sentinels"] == count - 1
                        and raw.sentinel_masters()["mymaster"]["num-slaves"] == 1
                    ),
                    what="sentinels that know each other",
                )
        yield master, replica, watchers


@contextmanager
def rabbitmq():
    """A RabbitMQ of our own, as its URL; about five seconds."""
    home = "/usr/lib/rabbitmq/bin/rabbitmq-server"
    binary = need("rabbitmq", home if Path(home).exists() else None, "apt-get install rabbitmq-server")
    port, epmd = free_port(), str(free_port())
    with tempfile.TemporaryDirectory(prefix="qr-", ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ, "HOME": folder, "ERL_EPMD_PORT": epmd, "RABBITMQ_NODENAME": f"qx{port}@localhost",
            "RABBITMQ_NODE_PORT": str(port), "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_DIST_PORT": str(free_port()), "RABBITMQ_MNESIA_BASE": f"{folder}/m",
            "RABBITMQ_LOG_BASE": f"{folder}/l", "RABBITMQ_LOGS": f"{folder}/log",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins", "RABBITMQ_CONFIG_FILE": f"{folder}/none",
        }  # fmt: skip
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([binary], env=environment, start_new_session=True, **pipes)
        url = f"amqp://guest:guest@127.0.0.1:{port}//"
        try:
            until_true(lambda: _speaks_amqp(url), 60, "RabbitMQ")
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killer = shutil.which("epmd") or next(
                map(str, Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), "true"
            )
            subprocess.run([killer, "-port", epmd, "-kill"], check=False, **pipes)


@contextmanager
def postgresql(**config):
    """A PostgreSQL of our own, as a SQLAlchemy URL; about two seconds."""
    homes = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    home = homes[-1] if homes else shutil.which("initdb") and Path(shutil.which("initdb")).parent
    binaries = need("postgresql", home, "apt-get install postgresql")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="qp-", ignore_cleanup_errors=True) as folder:
        data = f"{folder}/data"
        words, manner = [], {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "cwd": folder}
        if os.geteuid() == 0:  # it refuses to run as root
            shutil.chown(folder, "postgres")
            words = ["runuser", "-u", "postgres", "--"]
        make = [*words, binaries / "initdb", "-D", data, "-U", "qx", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(make, check=True, **manner)
        told = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": folder, "fsync": "off"}
        told |= config
        settings = [word for name, value in told.items() for word in ("-c", f"{name}={value}")]
        line = [*words, binaries / "postgres", "-D", data, *settings]
        with Path(folder, "log").open("wb") as log:
            server = subprocess.Popen(line, stderr=log, start_new_session=True, **manner)
        try:
            ready = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            until_true(lambda: subprocess.run(ready, check=False).returncode == 0, what="PostgreSQL")
            yield f"postgresql+psycopg://qx@127.0.0.1:{port}/postgres"
        finally:
            os.killpg(server.pid, signal.SIGQUIT)  # at once, and none of its processes is left behind
            server.wait()


def new_database(url):
    """A database of a name of its own on the server of ``url``; it goes when the server does."""
    from sqlalchemy import create_engine, make_url, text

    name = f"d{secrets.token_hex(4)}"
    server = create_engine(url, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    server.dispose()
    return make_url(url).set(database=name).render_as_string(hide_password=False)


def _speaks_amqp(url):
    import kombu
    from kombu.exceptions import OperationalError

    with suppress(OperationalError), kombu.Connection(url, connect_timeout=1) as connection:
        return connection.connect()
