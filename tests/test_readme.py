"""The README's own code blocks run."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from celery import _state

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TRANSACTIONS = (Path(__file__).parent.parent / "docs" / "transactions.md").read_text()
HOW_TO = re.findall(r"```python\n(.*?)```", TRANSACTIONS, re.DOTALL)


async def run(code, names):
    body = "\n".join(f"    {line}" for line in code.splitlines())
    exec(f"async def block():\n{body}\n    return locals()", names)  # noqa: S102  # our own text
    return await names["block"]()


async def test_the_usage_of_the_redis_layer_runs_as_it_stands(qx_redis_url):
    ran = []

    async def run_once():
        ran.append(1)

    async def place_order(order_id):
        return f"receipt {order_id}"

    names = {
        "settings": SimpleNamespace(cache=SimpleNamespace(url=qx_redis_url)),
        "key": "readme",
        "result": SimpleNamespace(value={"a": 1}),
        "relay": SimpleNamespace(run_once=run_once),
        "place_order": place_order,
        "order_id": 42,
    }
    usage, one_call = BLOCKS[1:3]
    made = await run(usage, dict(names))
    assert made["cached"] is None
    assert [1] == ran
    assert {"a": 1} == await made["store"].get("readme")
    again = await run(one_call, {**names, **made})
    assert "receipt 42" == again["receipt"]
    await made["redis"].delete("qx:idem:1:{readme}", "qx:idem:1:{order:42}", "qx:lock:1:{outbox-relay-leader}:f")
    await made["redis"].aclose()


@pytest.fixture
def alone(monkeypatch):
    """The tasks of the test are not shared with the apps of later ones."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set())


def test_the_celery_example_defines_its_tasks(alone):
    names = {"charge": lambda order_id, amount: (order_id, amount)}
    exec(BLOCKS[0], names)  # noqa: S102  # our own text
    assert (1, 2) == names["capture"](1, 2)
    assert names["nightly_report"]() is None
    names["app"].close()


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_on_the_first_screen(command):
    assert command in "\n".join(README.splitlines()[:45])


def test_the_how_to_of_tx_charges_once_where_it_is_called(tmp_path):
    from celery import Celery
    from sqlalchemy import create_engine, func, select
    from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

    from qx_cache_celery import IdempotentTask

    class Base(DeclarativeBase):
        pass

    class Payment(Base):
        __tablename__ = "payments"
        id: Mapped[int] = mapped_column(primary_key=True)
        order_id: Mapped[int]
        amount: Mapped[int]

    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    Base.metadata.create_all(engine)
    app = Celery("how-to", broker="memory://", set_as_current=False)
    Session = sessionmaker(engine)  # noqa: N806  # as the page has it
    names = {
        "app": app,
        "Session": Session,
        "Payment": Payment,
        "IdempotentTask": IdempotentTask,
        "engine": engine,
    }
    after, tables = [block for block in HOW_TO if "tx=Session" in block or "create_inbox(engine)" in block]
    exec(tables, names)  # noqa: S102  # our own text
    exec(after.replace("@app.task(", "@app.task(shared=False, "), names)  # noqa: S102  # our own text
    names["capture"](1, 5)
    with Session() as session:
        assert 1 == session.scalar(select(func.count()).select_from(Payment))
    engine.dispose()
    app.close()
