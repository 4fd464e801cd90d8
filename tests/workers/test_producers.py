"""The key of one call may come with the message of any producer."""

import subprocess
import sys
from pathlib import Path

import pytest
from kombu import Producer

pytestmark = pytest.mark.worker
HERE = Path(__file__).parent


def test_a_message_of_another_language_brings_its_key(shop):
    arguments = [["a"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    ids = ["5f0c9e3e-0001", "5f0c9e3e-0002"]
    with shop.tasks.app.connection_for_write() as connection, Producer(connection) as producer:
        for task_id in ids:
            headers = {"lang": "go", "task": "shop.by_id", "id": task_id, "idempotency_key": "mine"}
            producer.publish(
                arguments, routing_key="celery", serializer="json", headers=headers, correlation_id=task_id
            )
    assert [["a"], ["a"]] == [shop.tasks.app.AsyncResult(one).get(timeout=20) for one in ids]
    assert 1 == len(shop.journal("start"))


def test_the_ticks_of_a_schedule_may_share_a_key(shop_with):
    tick = {"task": "shop.by_id", "schedule": 0.2, "args": ["a"], "options": {"headers": {"idempotency_key": "t"}}}
    shop = shop_with(beat_schedule={"tick": tick}, beat_max_loop_interval=0.1)
    shop.start()
    words = ["-A", "shop", "beat", "-s", str(shop.folder / "schedule"), "--pidfile="]
    with (shop.folder / "beat.log").open("wb") as log:
        beat = subprocess.Popen([sys.executable, "-m", "celery", *words], cwd=HERE, stdout=log, stderr=log)
    try:
        shop.until(lambda: len(shop.journal("replayed")) > 1)
    finally:
        beat.terminate()
        beat.wait()
    assert 1 == len(shop.journal("start"))
