"""What a worker is told at its start."""

import pytest
from celery import Celery

from qx_cache.embedded import start_server
from qx_cache_celery import IdempotentTask
from qx_cache_celery.advice import advice

SOUND = {
    "broker_transport_options": {"visibility_timeout": 60, "unacked_mutex_expire": 10},
    "task_time_limit": 300,
    "qx_cache_result_ttl": 86_400,
}


def charge():
    """What is to be taken once."""


@pytest.fixture
def told():
    apps = []

    def told(server, **changed):
        app = Celery("advised", broker=server.broker_url, set_as_current=False)
        app.conf.update({**SOUND, "qx_cache_backend_url": server.url, **changed})
        app.task(base=IdempotentTask, name="advised.charge", shared=False)(charge)
        apps.append(app)
        app.finalize()
        return advice(app)

    yield told
    for app in apps:
        app.close()


@pytest.fixture(scope="module")
def kept():
    with start_server(config={"appendonly": "yes"}) as server:
        yield server


def test_nothing_where_all_is_well(told, kept):
    assert [] == told(kept)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"task_time_limit": None}, "task_time_limit"),
        ({"qx_cache_result_ttl": 30}, r"advised.charge: result_ttl 30 s is not above visibility_timeout 60 s"),
        ({"broker_transport_options": {"visibility_timeout": 60}}, "unacked_mutex_expire"),
        ({"broker_url": "amqp://guest@127.0.0.1:1//", "broker_transport_options": {}}, "confirm_publish"),
        ({"qx_cache_backend_url": "redis://:secret@127.0.0.1:1/0"}, "could not be looked at"),
    ],
)
def test_each_setting_that_makes_a_promise_hollow_is_named(told, kept, changed, words):
    (line,) = told(kept, **changed)
    assert words in line
    assert "secret" not in line


@pytest.mark.parametrize("host", ["redis.internal", "10.0.0.7", "[fd00::7]"])
def test_a_network_that_may_drop_connections_wants_timeout_and_keepalive(told, kept, host):
    (line,) = told(kept, broker_url=f"redis://:secret@{host}:6379/0")
    assert "set socket_timeout, socket_keepalive, socket_keepalive_options in" in line
    assert "secret" not in line
    options = {**SOUND["broker_transport_options"], "socket_keepalive": True, "socket_keepalive_options": {4: 10}}
    (line,) = told(kept, broker_url=f"redis://{host}:6379/0", broker_transport_options=options)
    assert "set socket_timeout in" in line
    options["socket_timeout"] = 5
    assert [] == told(kept, broker_url=f"redis://{host}:6379/0", broker_transport_options=options)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", ""])
def test_a_loopback_drops_none(told, kept, host):
    assert [] == told(kept, broker_url=f"redis://{host}:6379/0")


def test_an_evicting_redis_is_named(told):
    with start_server(config={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        lines = told(server)
    assert any("allkeys-lru" in line for line in lines)
    assert any("appendonly" in line for line in lines)
