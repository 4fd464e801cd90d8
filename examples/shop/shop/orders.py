"""Taking an order: its row, and then its charge."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.exc import IntegrityError

from shop.models import Order, order_id
from shop.tasks import Session, charge

Words = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100, pattern=r"^\P{Cc}+$")
]


class NewOrder(BaseModel):
    """The body of ``POST /orders``."""

    model_config = ConfigDict(extra="forbid")

    customer: Words
    item: Words
    amount_cents: Annotated[int, Field(gt=0, le=100_000_000, strict=True)]


class OtherOrderError(Exception):
    """The key came before, with another order."""


def place(key: str, new: NewOrder) -> dict[str, Any]:
    """Store the order and publish its charge. Whatever of it was done before stays as it is.

    The process can end between the two. Then the client, which has had no answer, sends the order again: the id
    comes from the key, so the row is found and not made twice, and ``charge`` goes by that id, so publishing it a
    second time takes no money. If the client never comes back, ``charge_forgotten`` finds the row and publishes.
    For an order that is paid nothing is published, however old it is and whatever else has forgotten it.

    Raises:
        OtherOrderError: The key belongs to another order.
    """
    wanted, state = new.model_dump(), "placed"
    try:
        with Session.begin() as session:
            session.add(Order(id=order_id(key), **wanted))
    except IntegrityError:
        state = _expect(key, wanted)
    if state == "placed":
        charge.delay(order_id(key))
    return {"id": order_id(key), "state": "placed", **wanted}


def _expect(key: str, wanted: dict[str, Any]) -> str:
    """Redis keeps a key for a day; what was ordered with it, and its state, the row knows for ever."""
    with Session() as session:
        order = session.get_one(Order, order_id(key))
        if wanted != {name: getattr(order, name) for name in wanted}:
            raise OtherOrderError(key)
        return order.state
