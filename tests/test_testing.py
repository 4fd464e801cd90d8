"""The fixtures for users: a server, a namespace, and an eye on keys that never expire."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import redis

TWO_TESTS = """
import redis

def test_mortal(qx_redis_url, qx_namespace):
    with redis.Redis.from_url(qx_redis_url) as client:
        client.set(f"{qx_namespace}:mortal", 1, ex=600)

def test_immortal(qx_redis_url, qx_namespace):
    with redis.Redis.from_url(qx_redis_url) as client:
        client.set(f"{qx_namespace}:mortal", 1, ex=600)
        client.set(f"{qx_namespace}:immortal", 1)
"""
WHERE = """
from pathlib import Path
import redis

def test_first(qx_redis_url, qx_namespace):
    with redis.Redis.from_url(qx_redis_url) as client:
        Path("pid").write_text(str(client.info("server")["process_id"]))
    Path("seen").write_text(f"{qx_redis_url}\\n{qx_namespace}\\n")

def test_second(qx_redis_url, qx_namespace):
    with open("seen", "a") as seen:
        seen.write(f"{qx_redis_url}\\n{qx_namespace}\\n")
"""


@pytest.fixture
def inner(tmp_path):
    """Runs pytest on a file of its own, with no configuration but an empty one."""

    def run(source, *, url="", plugin=("-p", "qx_cache.testing")):
        (tmp_path / "pytest.ini").write_text("[pytest]\n")
        (tmp_path / "test_it.py").write_text(source)
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            "pytest.ini",
            "--rootdir",
            ".",
            "-p",
            "no:cacheprovider",
            "-rA",
        ]
        env = {**os.environ, "QX_CACHE_TEST_URL": url, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
        words += [*plugin, "test_it.py"]
        return subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    return run


def test_a_key_without_a_ttl_is_an_error_of_its_test_and_one_with_a_ttl_is_none(inner):
    done = inner(TWO_TESTS)
    assert "2 passed, 1 error" in done.stdout
    assert "ERROR test_it.py::test_immortal - Failed: keys without a TTL: test-" in done.stdout
    assert "ERROR test_it.py::test_mortal" not in done.stdout
    (named,) = [line for line in done.stdout.splitlines() if line.startswith("keys without a TTL")]
    assert named.endswith(":immortal")
    assert ":mortal" not in named
    assert 1 == done.returncode


def test_what_is_left_is_deleted_and_nothing_else(inner, qx_redis_url, qx_namespace):
    with redis.Redis.from_url(qx_redis_url) as client:
        client.set(f"{qx_namespace}:mine", 1, ex=600)
        before = set(client.scan_iter("*"))

        done = inner(TWO_TESTS, url=qx_redis_url)

        assert "2 passed, 1 error" in done.stdout
        assert before == set(client.scan_iter("*"))


def test_one_server_a_session_and_one_namespace_a_test(inner, tmp_path, until):
    assert 0 == inner(WHERE).returncode
    first_url, first, second_url, second = (tmp_path / "seen").read_text().split()
    assert first_url == second_url
    assert first.startswith("test-")
    assert second.startswith("test-")
    assert first != second
    until(lambda: not Path(first_url.removeprefix("unix://").partition("?")[0]).parent.exists())


def test_the_url_in_the_environment_is_used_and_its_server_is_left_running(inner, tmp_path, qx_redis_url):
    assert 0 == inner(WHERE, url=qx_redis_url).returncode
    assert qx_redis_url == (tmp_path / "seen").read_text().split()[0]
    with redis.Redis.from_url(qx_redis_url) as client:
        assert str(client.info("server")["process_id"]) == (tmp_path / "pid").read_text()


def test_the_fixtures_are_loaded_only_where_they_are_asked_for(inner):
    assert "fixture 'qx_redis_url' not found" in inner(WHERE, plugin=()).stdout


def test_without_pytest_the_command_names_its_extra(tmp_path):
    (tmp_path / "pytest.py").write_text("raise ModuleNotFoundError(name='pytest')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "qx_cache.testing", "embedded://"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    assert (2, "") == (done.returncode, done.stdout)
    assert 'pip install "qx-cache-celery[testing]"' in done.stderr
    assert "Traceback" not in done.stderr
