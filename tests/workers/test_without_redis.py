"""``tx=`` while the Redis of the records is away: the row decides alone, and says so."""

import pytest
from conftest import silent

pytestmark = pytest.mark.worker


@pytest.fixture
def ledger(ledger_with, records, monkeypatch):
    monkeypatch.setenv("QX_CACHE__SOCKET_TIMEOUT_SECONDS", "0.3")
    ledger = ledger_with(qx_cache_backend_url=records.url)
    ledger.start()
    assert "paid first" == ledger.tasks.capture.delay("first").get(timeout=20)
    return ledger


def test_a_task_runs_once_and_is_replayed_by_its_row(ledger, records):
    tasks = ledger.tasks
    with silent(records):
        assert "paid a" == tasks.capture.delay("a").get(timeout=40)
        assert "paid a" == tasks.capture.delay("a").get(timeout=40)
        assert "paid first" == tasks.capture.delay("first").get(timeout=40)
    assert "paid a" == tasks.capture.delay("a").get(timeout=20)
    assert [1, 1] == [tasks.effects("a"), tasks.effects("first")]
    assert 2 == len(ledger.journal("start"))
    assert 3 == len(ledger.journal("degraded"))


@pytest.mark.parametrize("point", ["body", "commit", "end"])
def test_a_killed_run_takes_effect_once(ledger, records, point):
    tasks, order = ledger.tasks, f"die-{point}"
    with silent(records):
        assert f"paid {order}" == tasks.capture.delay(order).get(timeout=60)
    assert 1 == tasks.effects(order)
    assert 1 == len(ledger.journal("died"))


def test_two_at_once_take_effect_once(ledger, records):
    tasks = ledger.tasks
    with silent(records):
        first = tasks.capture.delay("a", gate="go")
        ledger.until(lambda: ledger.journal("start", order="a"))
        second = tasks.capture.delay("a", gate="go")
        ledger.until(lambda: ledger.journal("deferred", id=second.id), what="a wait for the row, with an end")
        ledger.open("go")
        assert ["paid a", "paid a"] == [first.get(timeout=40), second.get(timeout=40)]
    assert 1 == tasks.effects("a")
    assert 1 == len(ledger.journal("start", order="a"))


def test_a_result_is_kept_while_redis_is_away_at_its_end(ledger, records):
    tasks = ledger.tasks
    result = tasks.capture.delay("a", gate="go")
    ledger.until(lambda: ledger.journal("start", order="a"))
    with silent(records):
        ledger.open("go")
        assert "paid a" == result.get(timeout=40)
    assert "paid a" == tasks.capture.delay("a").get(timeout=40)
    assert 1 == tasks.effects("a")
    assert 1 == len(ledger.journal("start", order="a"))
