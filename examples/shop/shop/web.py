"""The web front: ``uvicorn shop.web:app``."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import date, datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel, ConfigDict
from redis.exceptions import RedisError
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from qx_cache import CacheSettings, IdempotencyStore, create_client
from shop.models import Order, Report
from shop.orders import NewOrder, OtherOrderError, place
from shop.problems import tell_problems
from shop.tasks import Session, settings

WAIT_SECONDS = 2
"""How long a request waits for another one with the same key, before it is told to come back."""
ORDER_SECONDS = 5
"""How long the row and the charge of an order may take, together."""
HEALTH_SECONDS = 2
"""How long Redis and the database may each take to say that they are well."""
_asking = ThreadPoolExecutor(1, "health")  # a database that hangs keeps this thread busy, and none of the orders'


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open Redis before the first request, and close it after the last."""
    cache = CacheSettings(
        url=settings.redis_url,
        socket_timeout_seconds=1,  # somebody waits for the answer
        socket_connect_timeout_seconds=1,
    )
    app.state.redis = await create_client(cache)
    app.state.store = IdempotencyStore(app.state.redis, ttl_seconds=86_400, lease_seconds=10, namespace="shop-web")
    yield
    await app.state.redis.aclose()


app = FastAPI(title="The shop", lifespan=lifespan)
tell_problems(app)


def store_of(request: Request) -> IdempotencyStore:
    """The store of this process."""
    return request.app.state.store  # type: ignore[no-any-return]  # Starlette's state is of any type


Key = Annotated[
    str, Header(alias="Idempotency-Key", pattern=r'^(?:"[A-Za-z0-9._:~-]{8,128}"|[A-Za-z0-9._:~-]{8,128})$')
]
Store = Annotated[IdempotencyStore, Depends(store_of)]


class _Shown(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class PaymentShown(_Shown):
    """A payment, as it is shown."""

    id: int
    amount_cents: int
    reference: str
    paid_at: datetime


class OrderShown(_Shown):
    """An order, as it is shown."""

    id: str
    customer: str
    item: str
    amount_cents: int
    state: str
    payments: list[PaymentShown]


class ReportShown(_Shown):
    """A report, as it is shown."""

    day: date
    payments: int
    total_cents: int
    made_at: datetime


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder, key: Key, store: Store, response: Response) -> dict[str, Any]:
    """Take an order, once per `Idempotency-Key`, however often it is sent."""
    key = key.strip('"')
    replayed = True

    async def take() -> dict[str, Any]:
        nonlocal replayed
        replayed = False
        # out of time the thread goes on, and may still place the order: the next request finds its row
        return await asyncio.wait_for(asyncio.to_thread(place, key, new), ORDER_SECONDS)

    try:
        placed = await store.run(key, take, fingerprint=new.model_dump_json(), wait_seconds=WAIT_SECONDS)
    except OtherOrderError:
        await _forget(store, key)
        raise
    response.headers["Location"] = f"/orders/{placed['id']}"
    if replayed:
        response.headers["Idempotency-Replayed"] = "true"
    return placed


async def _forget(store: IdempotencyStore, key: str) -> None:
    """The record has the fingerprint of an order that was refused: it would refuse the right one."""
    seen = await store.peek(key)
    if seen is not None and seen.state == "ended":
        await store.forget(key, fence=seen.fence)


@app.get("/orders/{order_id}")
def show_order(order_id: UUID) -> OrderShown:
    """An order, its state, and what was paid for it."""
    with Session() as session:
        order = session.get(Order, str(order_id))
        if order is None:
            raise HTTPException(404, "There is no such order.")
        return OrderShown.model_validate(order)


@app.get("/reports/latest")
def latest_report() -> ReportShown:
    """What the last day that has a report brought in."""
    with Session() as session:
        report = session.scalar(select(Report).order_by(Report.day.desc()).limit(1))
        if report is None:
            raise HTTPException(404, "No report has been made yet.")
        return ReportShown.model_validate(report)


@app.get("/healthz")
async def healthz(request: Request, response: Response) -> dict[str, str]:
    """Whether Redis and the database answer; 503 when one does not."""
    found = {
        "redis": await _answer(request.app.state.redis.ping()),
        "database": await _answer(asyncio.get_running_loop().run_in_executor(_asking, _ask_database)),
    }
    response.status_code = 200 if set(found.values()) == {"ok"} else 503
    return found


async def _answer(asked: Awaitable[Any]) -> str:
    try:
        await asyncio.wait_for(asked, HEALTH_SECONDS)
    except (RedisError, SQLAlchemyError, TimeoutError):
        return "away"
    return "ok"


def _ask_database() -> None:
    with Session() as session:
        session.execute(select(1))
