"""The containers of the tests, as fixtures: those of pytest-celery where it has one of that name.

One Redis is store and result backend; it, or RabbitMQ, is the broker. Brokers and workers stand for the whole
session: a test heals what it has hurt.
"""

import contextlib
import gc
import json
import os
import signal
import warnings
from pathlib import Path

import docker
import pytest
import servers
from docker.errors import DockerException, ImageNotFound
from pytest_celery import (
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestSetup,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RabbitMQTestBroker,
    RedisContainer,
    RedisTestBackend,
    RedisTestBroker,
)
from pytest_docker_tools import build, container, network
from yard import Yard

ROOT = Path(__file__).parents[2]
REDIS = os.environ.get("QX_TEST_REDIS_IMAGE", "redis:8-alpine")
RABBITMQ = os.environ.get("QX_TEST_RABBITMQ_IMAGE", "rabbitmq:4-management")
PYTHON = "python:3.13-slim"
LABELS = {"qx-cache-celery": "tests"}
VISIBILITY_SECONDS = 4.0
TRANSPORTS = {
    "redis": {
        "visibility_timeout": VISIBILITY_SECONDS,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
        "unacked_mutex_expire": 2,  # its holder may be killed
    },
    "amqp": {"confirm_publish": True, "read_timeout": 5, "write_timeout": 5},
}


def _missing(client, image):
    """Why there is no such image; empty when there is one, if need be from a registry."""
    try:
        client.images.get(image)
    except ImageNotFound:
        try:
            client.images.pull(image)
        except DockerException as error:
            return f"image {image} is not here and cannot be pulled: {error}"
    return ""


def _engine():
    """What speaks to the engine, or None and why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # docker-py forgets its socket when nobody answers
        try:
            return docker.from_env(timeout=60), ""
        except DockerException as error:
            why_not = f"no engine answers: {error}"
        gc.collect()
    return None, why_not


@pytest.fixture(scope="session")
def docker_client():
    """What all containers, networks and images here are made with; without an engine or an image none is."""
    client, why_not = _engine()
    servers.need("docker", client, why_not)
    with contextlib.closing(client):
        missing = next(filter(None, (_missing(client, image) for image in (PYTHON, REDIS, RABBITMQ))), "")
        servers.need("docker", not missing, missing)
        before = signal.signal(signal.SIGTERM, lambda *_: pytest.exit("told to end"))  # all is removed then, too
        yield client
        signal.signal(signal.SIGTERM, before)
        client.images.prune({"dangling": True, "label": "qx-cache-celery=tests"})  # of earlier versions


class Published:
    """A server that is reached on the loopback, and on no address that another may have after it.

    The plugin believes that it is in a container itself wherever there is a ``/.dockerenv``.
    """

    @property
    def port(self):
        ((inside, _),) = self.ports_wanted().items()
        return self.ports[inside][0]

    @property
    def host_url(self):
        return f"{self.prefix()}127.0.0.1:{self.port}/{self.vhost}"

    @classmethod
    def ports_wanted(cls):
        """On a port that stays the same when the container is started anew."""
        return {inside: ("127.0.0.1", servers.free_port()) for inside in cls.ports()}


class Redis(Published, RedisContainer):
    """Redis, with all that it was told still there after a restart."""

    @classmethod
    def command(cls, *args, **_):
        durable = ["--appendonly", "yes", "--dir", "/tmp"]  # noqa: S108  # of the container's own
        return ["redis-server", "--save", "", "--maxmemory-policy", "noeviction", *durable, *args]


class RabbitMQ(Published, RabbitMQContainer):
    """RabbitMQ."""


class Worker(CeleryWorkerContainer):
    """A worker of one process: while that is busy, no request for another message is on its way."""

    @classmethod
    def command(cls, *args, **_):
        quiet = ["--without-mingle", "--without-gossip", "--without-heartbeat"]  # of events, not of AMQP
        return ["celery", "-A", "depot", "worker", "-l", "INFO", "-c", "1", "-n", "depot@%h", *quiet, *args]


class Beat(CeleryWorkerContainer):
    """A beat; which of them leads is not said here."""

    @classmethod
    def command(cls, *args, **_):
        scheduler = ["-S", "qx_cache_celery.beat:SingletonScheduler", "-s", "/tmp/schedule"]  # noqa: S108
        return ["celery", "-A", "depot", "beat", "-l", "INFO", "--pidfile=", *scheduler, *args]

    @property
    def ready_prompt(self):
        return "beat: Starting"


class Setup(CeleryTestSetup):
    """The tests' own app publishes by name, and knows no task."""

    @classmethod
    def name(cls):
        return "depot"

    @classmethod
    def update_app_config(cls, app):
        app.conf.broker_transport_options = TRANSPORTS[app.conf.broker_url.partition(":")[0]]

    def teardown(self):
        self.app.close()
        consumer = self.app.backend.result_consumer
        consumer.stop()
        consumer._pubsub = None  # a result that is collected later would look for the store in vain
        self.app.backend.client.close()


default_pytest_celery_network = network(scope="session", labels=LABELS)
worker_image = build(path=str(ROOT), dockerfile="tests/docker/Dockerfile", tag="qx-cache-celery/worker:tests")


@pytest.fixture(scope="session")
def redis_ports():
    return Redis.ports_wanted()


@pytest.fixture(scope="session")
def rabbitmq_ports():
    return RabbitMQ.ports_wanted()


def _server(image, wrapper_class, **more):
    inside = "{default_pytest_celery_network.name}"
    options = {"scope": "session", "labels": LABELS, "timeout": 90}
    return container(image=image, network=inside, wrapper_class=wrapper_class, **options, **more)


# a tmpfs where the image has a volume, which would be left behind; the data are in the container itself
redis_server = _server(
    REDIS, Redis, ports=lambda redis_ports: redis_ports, command=Redis.command(), tmpfs={"/data": ""}
)
rabbitmq_server = _server(
    RABBITMQ,
    RabbitMQ,
    ports=lambda rabbitmq_ports: rabbitmq_ports,
    environment={"RABBITMQ_MNESIA_BASE": "/tmp/mnesia"},  # noqa: S108  # of the container's own
    tmpfs={"/var/lib/rabbitmq": ""},
)


@pytest.fixture(scope="session", params=["redis", "rabbitmq"])
def celery_broker_cluster(request, redis_server):
    if request.param == "redis":
        return CeleryBrokerCluster(RedisTestBroker(redis_server))
    return CeleryBrokerCluster(RabbitMQTestBroker(request.getfixturevalue("rabbitmq_server")))


@pytest.fixture(scope="session")
def celery_backend_cluster(redis_server):
    return CeleryBackendCluster(RedisTestBackend(redis_server))


@pytest.fixture(scope="session")
def worker_environment(celery_broker_cluster, celery_backend_cluster):
    broker, backend = celery_broker_cluster.config(), celery_backend_cluster.config()
    clusters = {"celery_broker_cluster_config": broker, "celery_backend_cluster_config": backend}
    kind = broker["urls"][0].partition(":")[0]
    conf = {"broker_transport_options": TRANSPORTS[kind], "qx_cache_namespace": f"depot-{kind}"}
    return Worker.initial_env(clusters, {"DEPOT_CONF": json.dumps(conf)})


def _celery(wrapper_class, scope, **more):
    return container(
        image="{worker_image.id}",
        scope=scope,
        command=wrapper_class.command(),
        network="{default_pytest_celery_network.name}",
        environment=lambda worker_environment: worker_environment,  # one named by fxtr() is not waited for
        wrapper_class=wrapper_class,
        labels=LABELS,
        timeout=60,
        **more,
    )


# what crashes is started anew, what is killed is not
one_worker = _celery(Worker, "session", restart_policy={"Name": "on-failure"})
other_worker = _celery(Worker, "session", restart_policy={"Name": "on-failure"})
one_beat = _celery(Beat, "function")
other_beat = _celery(Beat, "function")


@pytest.fixture(scope="session")
def celery_worker_cluster(one_worker, other_worker):
    return CeleryWorkerCluster(CeleryTestWorker(one_worker, app=None), CeleryTestWorker(other_worker, app=None))


@pytest.fixture
def celery_setup_cls():
    return Setup


@pytest.fixture
def yard(celery_setup, default_pytest_celery_network):
    """Two workers and what they wrote down; whatever becomes of them in the test, they are well after it."""
    yard = Yard(celery_setup, default_pytest_celery_network)
    yield yard
    yard.heal()
