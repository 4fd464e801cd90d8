"""The orders file: read whole, and refused whole with every problem named."""

import csv
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

COLUMNS = ("order_id", "customer", "amount", "currency")
SHIPPED = Path(__file__).with_name("orders.csv")
_FEWEST = 10  # five of them are to be hit by a fault each


@dataclass(frozen=True, slots=True)
class Order:
    """One line of the file."""

    order_id: str
    customer: str
    amount: str
    currency: str


class OrdersError(Exception):
    """The file cannot be used; one line of text a problem."""


def load(path: Path) -> list[Order]:
    """Read and check the orders.

    Raises:
        OrdersError: Names the file, and each problem with its line number.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                raise OrdersError(
                    f"{path}: line 1: missing column {', '.join(missing)}; needed: {', '.join(COLUMNS)}"
                )
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise OrdersError(f"{path}: cannot be read: {error}") from None
    problems: list[str] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        problems += [f"{path}: line {line}: {problem}" for problem in _problems(row, line, seen)]
    if len(rows) < _FEWEST and not problems:
        problems = [f"{path}: {len(rows)} orders; at least {_FEWEST} are needed"]
    if problems:
        raise OrdersError("\n".join(problems))
    return [Order(*(row[name].strip() for name in COLUMNS)) for _, row in rows]


def _problems(row: dict[str, str], line: int, seen: dict[str, int]) -> list[str]:
    found = [f"{name} is empty" for name in COLUMNS if not (row.get(name) or "").strip()]
    order_id = (row.get("order_id") or "").strip()
    if order_id in seen:
        found.append(f"duplicate order_id {order_id!r}, first on line {seen[order_id]}")
    elif order_id:
        seen[order_id] = line
    if (row.get("amount") or "").strip():
        found += _amount_problems(row["amount"].strip())
    return found


def _amount_problems(text: str) -> list[str]:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        return [f"amount {text!r} is no number"]
    return [] if amount.is_finite() and amount > 0 else [f"amount {text!r} must be more than 0"]
