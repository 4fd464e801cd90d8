"""What the ledger says, as numbers, as a table, and as a verdict."""

from typing import Any

from qx_cache_celery.demo.charges import counted
from qx_cache_celery.demo.ledger import REPORT_SECONDS, Ledger
from qx_cache_celery.demo.scenario import POINTS, Scenario

SIDES = ("plain", "idempotent")
WINDOW_NOTE = "killed after the effect and before its record: with tx= both are one transaction"


def numbers(scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Everything that the demo tells; read from the ledger."""
    return {
        "seconds": round(seconds, 1),
        **{side: _side(scenario, side) for side in SIDES},
        "window": {side: counted(scenario.folder, side).get(scenario.target("window"), 0) for side in SIDES}
        | {"note": WINDOW_NOTE},
        "singleton": {side: _reports(scenario.ledger, side) for side in SIDES},
        "unfinished": scenario.missing,
    }


def faults_found(told: dict[str, Any]) -> list[str]:
    """What the idempotent side did wrong; empty when all is well."""
    side, found = told["idempotent"], list(told["unfinished"])
    found += [f"order {order_id} was lost" for order_id in side["lost_orders"]]
    found += [f"order {order_id} was charged more than once" for order_id in side["duplicate_orders"]]
    overlaps = told["singleton"]["idempotent"]["overlapping_runs"]
    return found + ([f"{overlaps} runs of the singleton overlapped"] if overlaps else [])


def table(told: dict[str, Any]) -> Any:
    """The same as a rich table."""
    from rich.table import Table  # noqa: PLC0415  # an optional extra

    made = Table(title=f"the same orders, the same faults ({told['seconds']} s)")
    made.add_column("")
    made.add_column("plain acks_late", justify="right")
    made.add_column("IdempotentTask", justify="right")
    sides = [told[side] for side in SIDES]
    for name in ("published", "effects", "lost", "duplicate_effects", "replays", "deferrals", "takeovers"):
        made.add_row(name.replace("_", " "), *(str(side[name]) for side in sides))
    for point in POINTS[:-1]:
        made.add_row(f"recovery, {point}", *(_shown(side["recovery_seconds"].get(point)) for side in sides))
    made.add_section()
    made.add_row("killed between effect and record: effects", *(str(told["window"][side]) for side in SIDES))
    made.add_section()
    reports = [told["singleton"][side] for side in SIDES]
    for name in ("ticks", "runs", "skips", "overlapping_runs"):
        made.add_row(f"beat job (SingletonTask): {name.replace('_', ' ')}", *(str(row[name]) for row in reports))
    made.caption = WINDOW_NOTE
    return made


def _side(scenario: Scenario, side: str) -> dict[str, Any]:
    ledger, charged = scenario.ledger, counted(scenario.folder, side)
    return {
        "published": _events(ledger, "published", side),
        "effects": sum(charged.values()),
        "lost": sum(order.order_id not in charged for order in scenario.orders),
        "lost_orders": [order.order_id for order in scenario.orders if order.order_id not in charged],
        "duplicate_effects": sum(n - 1 for n in charged.values()),
        "duplicate_orders": [order_id for order_id, n in charged.items() if n > 1],
        "replays": _events(ledger, "replayed", side),
        "deferrals": _events(ledger, "deferred", side),
        "takeovers": _events(ledger, "taken_over", side),
        "recovery_seconds": {point: _recovery(scenario, side, point) for point in POINTS},
    }


def _recovery(scenario: Scenario, side: str, point: str) -> float | None:
    """From the fault until the order's body runs again, or its result is replayed."""
    query = """SELECT min(later.at) - fault.at FROM events fault JOIN events later
               ON later.side = fault.side AND later.order_id = fault.order_id AND later.at > fault.at
               WHERE fault.kind=? AND fault.side=? AND later.kind IN ('start','replayed')"""
    seconds = scenario.ledger.rows(query, f"killed {point}", side)[0][0]
    return None if seconds is None else round(seconds, 2)


def _reports(ledger: Ledger, side: str) -> dict[str, int]:
    starts = ledger.rows("SELECT pid, at FROM events WHERE kind='report start' AND side=? ORDER BY at", side)
    spans = [(at, _end(ledger, side, pid, at)) for pid, at in starts]
    overlapping = sum(
        any(begin < other_end and other_begin < begin for other_begin, other_end in spans) for begin, _ in spans
    )
    return {
        "ticks": _events(ledger, "tick", side),
        "runs": len(spans),
        "skips": _events(ledger, "skipped", side),
        "overlapping_runs": overlapping,
    }


def _end(ledger: Ledger, side: str, pid: int, at: float) -> float:
    query = "SELECT min(at) FROM events WHERE kind='report end' AND side=? AND pid=? AND at>?"
    ended = ledger.rows(query, side, pid, at)[0][0]
    return float(ended) if ended is not None else at + REPORT_SECONDS  # cut off by the end of the phase


def _events(ledger: Ledger, kind: str, side: str) -> int:
    return int(ledger.rows("SELECT count(*) FROM events WHERE kind=? AND side=?", kind, side)[0][0])


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f} s"
