"""The fault matrix: every cell, or a seeded sample; resumable, and written as the table that the docs show.

``make matrix`` plays all cells that ``results.jsonl`` does not have yet (a few minutes on two cores).
"""

import argparse
import itertools
import json
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import pytest
import servers
from harness import FAULTS, KINDS, POINTS, Cell, cells, play, row

HOME = Path(__file__).parent
RESULTS, TABLE = HOME / "results.jsonl", HOME / "matrix.md"
AT_ONCE = 3


def read(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Cell(**{name: one[name] for name in Cell.__dataclass_fields__}): one for one in rows}


def sample(wanted, number, seed):
    """So many cells, all of the documented windows among them, of our own kind first."""
    window = [cell for cell in wanted if cell.window and cell.kind != "plain"]
    others = [cell for cell in wanted if cell not in window]
    random.Random(seed).shuffle(others)  # noqa: S311  # a repeatable choice
    others.sort(key=lambda cell: cell.kind == "plain")
    return (window + others)[:number]


def table(rows):
    """A section a broker and pool; one line a fault and point, a column a kind of task."""
    told = "Made by `make matrix`: runs/effects of the struck task, its state, how often its chord's body ran."
    lines = ["# The fault matrix", "", told]
    for broker, pool in sorted({(cell.broker, cell.pool) for cell in rows}):
        lines += ["", f"## {broker}, {pool}", "", "| fault | point | " + " | ".join(KINDS) + " |"]
        lines.append("|---|---|" + "---|" * len(KINDS))
        for fault, point in itertools.product(FAULTS, POINTS):
            found = [rows.get(Cell(fault, point, kind, pool, broker)) for kind in KINDS]
            if any(found):
                lines.append(f"| {fault} | {point} | " + " | ".join(map(_shown, found)) + " |")
    return "\n".join(lines) + "\n"


def _shown(one):
    if one is None:
        return "-"
    state = one["state"] if one["state"] in {"SUCCESS", "FAILURE"} else f"**LOST** ({one['state']})"
    body = f"body {one['bodies']}" if one["chord"] in {"SUCCESS", "FAILURE"} else "**body lost**"
    effects = f"**{one['effects']}**" if one["effects"] > 1 else one["effects"]
    return f"{one['runs']}/{effects} {state}, {body}"


def main():
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--sample", type=int, help="only so many cells, kept apart from the results file")
    words.add_argument("--seed", type=int, default=1)
    words.add_argument("--kind", default="", help="only these: plain, IdempotentTask, tx")
    words.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    said = words.parse_args()
    with ExitStack() as stack:
        broker_url = stack.enter_context(servers.rabbitmq()) if said.broker == "rabbitmq" else None
        try:
            return play_all(said, broker_url, stack.enter_context(servers.postgresql()))
        except pytest.skip.Exception as reason:
            print(f"without PostgreSQL: {reason}", file=sys.stderr)
            return play_all(said, broker_url, None)


def play_all(said, broker_url, postgresql_url):
    wanted = [cell for cell in cells(said.broker) if cell.kind.startswith(said.kind)]
    wanted = [cell for cell in wanted if postgresql_url or cell.kind != "tx, PostgreSQL"]
    known = {} if said.sample else read(RESULTS)
    todo = (
        sample(wanted, said.sample, said.seed) if said.sample else [cell for cell in wanted if cell not in known]
    )
    wrong = 0
    with ThreadPoolExecutor(AT_ONCE) as pool:
        played = pool.map(lambda cell: play(cell, broker_url, postgresql_url), todo)
        for cell, found in zip(todo, played, strict=True):
            problem = found.wrong(cell) if cell.kind != "plain" else ""
            wrong += bool(problem)
            print(
                f"{cell.name}: {found.runs}/{found.effects} {found.state} {problem}", file=sys.stderr, flush=True
            )
            if not said.sample:
                with RESULTS.open("a") as results:
                    results.write(row(cell, found) + "\n")
    if not said.sample:
        TABLE.write_text(table(read(RESULTS)))
    print(f"{len(todo)} cells played, {wrong} of ours not as documented (seed {said.seed})")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
