"""The stack of docker-compose.yml, from inside: ``docker compose run --rm tests``."""

import time
import uuid

import httpx
import pytest
from shop.settings import Settings
from sqlalchemy import create_engine, text

ORDER = {"customer": "Ada", "item": "a book", "amount_cents": 1250}


@pytest.fixture
def shop():
    with httpx.Client(base_url="http://web:8000", timeout=20) as client:
        yield client


@pytest.fixture
def rows():
    engine = create_engine(Settings().database_url.get_secret_value())

    def rows(query, **values):
        with engine.connect() as connection:
            return connection.execute(text(query), values).all()

    yield rows
    engine.dispose()


def until(condition, seconds=60.0, what="the condition"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.1)
    return pytest.fail(f"waited {seconds} s in vain for {what}")


def paid(shop, order_id):
    found = shop.get(f"/orders/{order_id}").json()
    return found if found["state"] == "paid" else None


def test_an_order_that_is_sent_twice_is_charged_once(shop):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    first, second = (shop.post("/orders", json=ORDER, headers=headers) for _ in range(2))
    assert [201, 201] == [first.status_code, second.status_code]
    assert first.json() == second.json()
    assert ("true", None) == (
        second.headers.get("Idempotency-Replayed"),
        first.headers.get("Idempotency-Replayed"),
    )
    order = until(lambda: paid(shop, first.json()["id"]), what="its payment")
    assert [1250] == [payment["amount_cents"] for payment in order["payments"]]


def test_a_key_with_another_order_is_refused(shop):
    headers = {"Idempotency-Key": uuid.uuid4().hex}
    assert 201 == shop.post("/orders", json=ORDER, headers=headers).status_code
    assert 422 == shop.post("/orders", json={**ORDER, "amount_cents": 1}, headers=headers).status_code


def test_many_orders_are_charged_once_each(shop, rows):
    ids = [
        shop.post("/orders", json=ORDER, headers={"Idempotency-Key": uuid.uuid4().hex}).json()["id"]
        for _ in range(50)
    ]
    until(lambda: all(paid(shop, one) for one in ids), what="fifty payments")
    counted = dict(rows("SELECT order_id, count(*) FROM payments GROUP BY order_id"))
    assert {1} == {counted[one] for one in ids}


def test_the_report_is_made_on_schedule(shop, rows):
    made = until(lambda: rows("SELECT made_at FROM reports ORDER BY day DESC"), what="a report")
    until(lambda: rows("SELECT made_at FROM reports ORDER BY day DESC") != made, what="the next one")
    assert 200 == shop.get("/reports/latest").status_code
