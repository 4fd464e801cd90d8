"""``tx=``: the effects in a database, their record and its row, on SQLite and PostgreSQL, with real workers."""

import signal

import pytest
from celery import chord

pytestmark = pytest.mark.worker


def rows(ledger):
    from sqlalchemy import text

    with ledger.tasks.engine.connect() as connection:
        return connection.execute(text("SELECT key, state, attempt, staged FROM qx_inbox")).all()


def test_a_key_published_twice_takes_effect_once(ledger):
    tasks = ledger.tasks
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert 1 == tasks.effects("a")
    assert [("ledger:ledger.capture:key:a", "done", 1, None)] == rows(ledger)
    assert 1 == len(ledger.journal("start"))


@pytest.mark.parametrize("point", ["start", "body", "end"])
def test_a_killed_run_takes_effect_once_and_its_chord_goes_on(ledger, point):
    tasks, order = ledger.tasks, f"die-{point}"
    body = chord([tasks.capture.s(order), tasks.capture.s("b")])(tasks.collect.s())
    assert [f"paid {order}", "paid b"] == sorted(body.get(timeout=40), reverse=True)
    assert [1, 1] == [tasks.effects(order), tasks.effects("b")]
    assert 1 == len(ledger.journal("died"))
    assert 1 == len(ledger.journal("collect"))
