"""The README's own code blocks run."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


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


def test_the_celery_example_defines_its_tasks():
    names = {"charge": lambda order_id, amount: (order_id, amount)}
    exec(BLOCKS[0], names)  # noqa: S102  # our own text
    assert (1, 2) == names["capture"](1, 2)
    assert names["nightly_report"]() is None
    names["app"].close()


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_the_two_commands_are_on_the_first_screen(command):
    assert command in "\n".join(README.splitlines()[:45])
