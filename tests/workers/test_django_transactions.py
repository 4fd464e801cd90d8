"""``tx="default"``: the effects of plain ORM calls, in the transaction of their record, with real workers.

The app runs in processes of its own, as Django has one configuration a process.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

pytestmark = pytest.mark.worker


@pytest.fixture
def ledger(shop_with, database_url, monkeypatch):
    monkeypatch.setenv("QX_TEST_DATABASE", database_url)
    ledger = shop_with(name="django_ledger", imported=False)
    subprocess.run([sys.executable, "django_ledger.py"], cwd=Path(__file__).parent, check=True)
    ledger.start()
    return ledger


@pytest.fixture
def count(database_url):
    engine = create_engine(database_url)

    def count(table="django_ledger_payment", where="true"):
        with engine.connect() as connection:
            return connection.execute(text(f"SELECT count(*) FROM {table} WHERE {where}")).scalar()  # noqa: S608

    yield count
    engine.dispose()


def publish(ledger, name, *args, **kwargs):
    return ledger.tasks.app.send_task(f"django_ledger.{name}", args, kwargs)


def test_a_key_published_twice_takes_effect_once_and_so_does_its_child(ledger, count):
    for how in ("", "savepoint"):
        assert "paid a" == publish(ledger, "capture", "a", how=how).get(timeout=20)
    assert "paid b" == publish(ledger, "capture", "b", how="savepoint").get(timeout=20)
    ledger.until(lambda: len(ledger.journal("child")) == 2)
    ledger.until(ledger.idle)
    assert [2, 4] == [count(), count("qx_inbox", "state = 'done'")]
    assert ["a", "b"] == [row["order"] for row in ledger.journal("start")]
    assert 2 == len(ledger.journal("child"))


def test_a_failure_leaves_nothing_and_the_next_run_does_it_all(ledger, count):
    with pytest.raises(ValueError, match="a"):
        publish(ledger, "capture", "a", how="fails once").get(timeout=20)
    assert [0, 0] == [count(), count("qx_inbox")]
    assert "paid a" == publish(ledger, "capture", "a", how="fails once").get(timeout=20)
    assert 1 == count()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (("capture", "marks"), "TransactionBrokenError", "went on after a database error"),
        (("capture", "session"), "AttributeError", "use the models of 'default'"),
        (("wrapped", None), "NestedTransactionError", "open already when the task began"),
        (("elsewhere", None), "InvalidValueError", "tx='elsewhere' is no database of this project"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(ledger, count, call, error, words):
    name, how = call
    with pytest.raises(Exception, match=words) as caught:
        publish(ledger, name, "a", **({"how": how} if how else {})).get(timeout=20)
    assert error == type(caught.value).__name__
    assert [0, 0] == [count(), count("qx_inbox")]


def test_a_swallowed_error_fails_the_run_where_it_broke_the_transaction(ledger, count, database_url):
    result = publish(ledger, "capture", "a", how="swallows")
    if database_url.startswith("sqlite"):  # an error there is of one statement only
        assert "paid a" == result.get(timeout=20)
        return
    with pytest.raises(Exception, match="went on after a database error"):
        result.get(timeout=20)
    assert [0, 0] == [count(), count("qx_inbox")]
