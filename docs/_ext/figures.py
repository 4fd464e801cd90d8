"""Blocks that are made of measured results, each written by a target of make."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from block import block, row, table

ROOT = Path(__file__).parents[2]


def results() -> dict[str, Any]:
    """What ``make bench`` measured."""
    return json.loads((ROOT / "benchmarks" / "results.json").read_text())  # type: ignore[no-any-return]


@block("sizes")
def _sizes() -> Iterator[str]:
    found = results()
    waking, rows = found["waking"], found["transactions"]
    yield from table("what", "bytes")
    yield row("the record of a running claim", waking["running_bytes"])
    yield row("a record with a result of 100 bytes", waking["done_bytes"])
    yield row(f"a row of the inbox (`tx=`), with a result of {rows['result_bytes']} bytes", rows["row_bytes"])


@block("commands")
def _commands() -> Iterator[str]:
    found = results()
    claim, lock = (
        found["uncontended"]["claim, hiredis"]["qx_cache"],
        found["uncontended"]["lock, hiredis"]["qx_cache"],
    )
    kinds = found["transactions"]["kinds"]
    yield from table("what", "how many")
    yield row("round trips of a claim and its completion", f"{claim['round_trips']:g}")
    yield row("round trips of a lock, taken and released", f"{lock['round_trips']:g}")
    yield row(
        "SQL statements of a task with its own transaction", f"{kinds['its own transaction']['statements']:g}"
    )
    yield row("SQL statements of one with `tx=`", f"{kinds['IdempotentTask, tx=']['statements']:g}")
    for one in found["leases"]:
        yield row(
            f"threads and connections that renew {one['leases']} leases", f"{one['threads']}, {one['connections']}"
        )


@block("throughput")
def _throughput() -> Iterator[str]:
    found = results()
    pools = found["throughput"]
    yield from table("no-op tasks through one worker", *(f"{pool}, times plain" for pool in pools))
    for kind in next(iter(pools.values())):
        yield row(kind, *(_ratio(measured[kind]) for measured in pools.values()))


@block("lock-ratios")
def _lock_ratios() -> Iterator[str]:
    found = results()
    yield f"Measured {found['when']}, in times of the floor (median, and the middle four fifths of the rounds):"
    yield ""
    yield from table("lock, nobody else there", "blocking", "async")
    uncontended = found["uncontended"]
    for kind, measured in uncontended["lock, hiredis"].items():
        other = uncontended["async lock, hiredis"].get(kind)
        yield row(kind, _ratio(measured), _ratio(other) if other else "")


@block("handover")
def _handover() -> Iterator[str]:
    yield from table(
        "nine processes for one lock",
        "handover p50",
        "p99",
        "overtaken",
        "reads a second of 8 idle waiters",
        "gave up",
    )
    for kind, one in results()["contention"].items():
        times = (f"{one['p50_ms']} ms", f"{one['p99_ms']} ms", f"{one['overtaken_percent']} %")
        yield row(kind, *times, one["reads_per_second"], f"{one['gave_up']} of 8")


def _ratio(one: dict[str, float]) -> str:
    return f"{one['ratio']:.2f} ({one['ratio_low']:.2f} to {one['ratio_high']:.2f})"


@block("waking")
def _waking() -> Iterator[str]:
    one = results()["waking"]
    yield from table("from completion to the result", "p50", "the last")
    yield row("one waiter", f"{one['one_p50_ms']} ms", "")
    yield row("100 waiting tasks of one client", f"{one['tasks_p50_ms']} ms", f"{one['tasks_last_ms']} ms")
    yield row("100 waiting clients in one process", f"{one['p50_ms']} ms", f"{one['last_ms']} ms")


@block("leases")
def _leases() -> Iterator[str]:
    yield from table("leases", "threads", "one renewal of all", "of a core", "lost")
    for one in results()["leases"]:
        yield row(
            one["leases"],
            one["threads"],
            f"{one['round_ms']} ms",
            f"{one['heartbeat_cpu_percent']} %",
            one["lost"],
        )


@block("matrix-summary")
def _matrix() -> Iterator[str]:
    """What the fault matrix showed, counted over brokers and pools."""
    cells = [json.loads(line) for line in (ROOT / "tests" / "chaos" / "results.jsonl").read_text().splitlines()]
    yield from table("", "cells", "one effect", "more than one", "where")
    for kind in dict.fromkeys(cell["kind"] for cell in cells):
        of_kind = [cell for cell in cells if cell["kind"] == kind]
        counts = Counter(min(cell["effects"], 2) for cell in of_kind)
        yield row(kind, len(of_kind), counts[1], counts[2], _where(of_kind) or "nowhere")
    without = Counter(cell["fault"] for cell in cells if cell["effects"] == 0)
    told = ", ".join(f"{number} of {fault!r}" for fault, number in without.items())
    wrong = sum(bool(cell["wrong"]) for cell in cells if cell["kind"] != "plain")
    yield ""
    yield f"{len(cells)} cells in all. Those without an effect ({told}) ended with a recorded failure before it"
    yield f"was made or committed. Cells of ours that went against what is promised: {wrong}."


def _where(cells: list[dict[str, Any]]) -> str:
    """The points at which there was more than one effect, by fault."""
    points: dict[str, dict[str, None]] = {}
    for cell in cells:
        if cell["effects"] > 1:
            points.setdefault(cell["fault"], {})[cell["point"]] = None
    faults: dict[str, list[str]] = {}
    for fault, where in points.items():
        faults.setdefault(", ".join(where), []).append(fault)
    return "; ".join(f"{', '.join(those)}: {where}" for where, those in faults.items())


@block("peers")
def _peers() -> Iterator[str]:
    """Our row as the tests saw it, beside what was found of the others."""
    ours = dict(
        re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", (ROOT / "docs" / "singleton.md").read_text(), re.MULTILINE)
    )
    found = json.loads((ROOT / "docs" / "peers.json").read_text())
    yield f"Seen on {found['when']}, with celery {found['celery']}, by `make rivals`:"
    yield ""
    yield from table("what happens", "`SingletonTask`, `until_executed`", *found["peers"])
    for what, told in found["rows"].items():
        yield row(what, ours[what], *told)
