"""What goes wrong, told as ``application/problem+json`` (RFC 9457)."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy.exc import OperationalError as DatabaseError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.exceptions import HTTPException

from qx_cache import IdempotencyMismatchError, InProgressError, LeaseLostError, StoreError
from shop.orders import OtherOrderError

_REUSED = "This Idempotency-Key came before with another order. Use a new key for a new order."
_AWAY = "A part of the shop cannot be reached. Send this again: an order with the same Idempotency-Key."
_RUNNING = "An order with this Idempotency-Key is being taken at this moment. Send it again a little later."


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A response that says what is wrong and what to do."""
    body = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def _invalid(_: Request, error: Any) -> JSONResponse:
    """400 where the header is at fault, 422 where the body is. What was sent is not repeated."""
    found = error.errors()
    if any(one["loc"][0] == "header" for one in found):
        return problem(400, "POST /orders needs the header Idempotency-Key: 8 to 128 of A-Z a-z 0-9 . _ : ~ -")
    places = [".".join(str(part) for part in one["loc"]) for one in found]
    return problem(422, "; ".join(f"{place}: {one['msg']}" for place, one in zip(places, found, strict=True)))


def _reused(_: Request, __: Any) -> JSONResponse:
    return problem(422, _REUSED)


def _in_progress(_: Request, error: Any) -> JSONResponse:
    later = max(1, math.ceil(error.remaining_seconds))
    return problem(409, _RUNNING, {"Retry-After": str(later)})


def _away(_: Request, __: Any) -> JSONResponse:
    return problem(503, _AWAY, {"Retry-After": "1"})


def _other(_: Request, error: Any) -> JSONResponse:
    return problem(error.status_code, error.detail, error.headers)


def tell_problems(app: FastAPI) -> None:
    """Make the responses of ``app`` to errors such problems."""
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _other)
    app.add_exception_handler(IdempotencyMismatchError, _reused)
    app.add_exception_handler(OtherOrderError, _reused)
    app.add_exception_handler(InProgressError, _in_progress)
    for kind in (StoreError, LeaseLostError, BrokerError, DatabaseError, PoolTimeoutError, TimeoutError):
        app.add_exception_handler(kind, _away)
