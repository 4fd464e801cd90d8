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


def test_an_evicting_redis_is_named(told):
    with start_server(config={"maxmemory": "100mb", "maxmemory-policy": "allkeys-lru"}) as server:
        lines = told(server)
    assert any("allkeys-lru" in line for line in lines)
    assert any("appendonly" in line for line in lines)
