"""Workers and a store that are restarted in order, in the middle of work."""

from collections import Counter

import pytest
from celery import chord

pytestmark = pytest.mark.docker
BATCH = 40


def test_a_rolling_restart_during_load_loses_nothing_and_does_nothing_twice(yard):
    orders, published = [], []

    def load():
        batch = [f"load-{len(orders) + number}" for number in range(BATCH)]
        published.extend(yard.publish("capture", order, 0.05) for order in batch)
        orders.extend(batch)

    members = [f"member-{number}" for number in range(10)]
    load()
    body = chord([yard.signature("capture", order, 0.2) for order in members])(yard.signature("pack", "packed"))
    for worker in yard.workers:
        load()
        assert 0 == yard.stop(worker)
        yard.start(worker)

    assert orders == [result.split(" by ")[0] for result in yard.results(published)]
    assert [len(members)] == yard.results([body.id])
    assert dict.fromkeys([*orders, *members, "packed"], 1) == effects(yard)


def test_all_tasks_end_when_the_store_is_restarted_while_both_workers_work(yard):
    orders = [f"order-{number}" for number in range(8)]
    published = [yard.publish("capture", order, 1.0) for order in orders]
    yard.until(lambda: len({row["host"] for row in yard.journal("start")}) == len(yard.workers))
    yard.restart_store()

    assert orders == [result.split(" by ")[0] for result in yard.results(published)]
    assert set(orders) == set(effects(yard))


def effects(yard):
    return Counter(row["order"] for row in yard.journal("effect"))
