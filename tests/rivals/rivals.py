"""Play the rows of docs/singleton.md under the known helpers, and write what was seen to docs/peers.json.

``make rivals`` installs them beside everything else and runs this, one process for each helper.
"""

import json
import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rivals_rows import APART, SHARED
from rivals_stage import Stage

from benchmarks.server import server

ROOT = Path(__file__).parents[2]
RIVALS = ("celery-singleton", "celery-once", "celery-heimdall", "celery-once-task")


def play(rival, rows, visibility):
    """The rows on a stage of their own; a process plays one stage."""
    with server() as redis, tempfile.TemporaryDirectory() as folder:
        stage = Stage(rival, redis, Path(folder), visibility)
        try:
            stage.start()
            return {row: function(stage) for row, function in rows.items()}
        finally:
            stage.stop()


def main(words):
    """Without words: all of them, each in processes of its own; the file is written at the end."""
    if words:
        rival, part = words
        rows, visibility = (SHARED, 60.0) if part == "shared" else ({part: APART[part][0]}, APART[part][1])
        print(json.dumps(play(rival, rows, visibility)), flush=True)
        os._exit(0)  # results that never came would look for their server
    seen = {row: [] for row in (*SHARED, *APART)}
    for rival in RIVALS:
        for part in ("shared", *APART):
            command = [sys.executable, __file__, rival, part]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            for row, cell in json.loads(told.splitlines()[-1]).items():
                seen[row].append(cell)
                print(f"{rival}: {row}: {cell}", flush=True)
    found = {
        "when": datetime.now(UTC).date().isoformat(),
        "celery": version("celery"),
        "peers": [f"{rival} {version(rival)}" for rival in RIVALS],
        "rows": seen,
    }
    (ROOT / "docs" / "peers.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
