"""``python -m qx_cache_celery.demo``: arguments, exit codes, and the clean-up that always happens."""

import argparse
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from qx_cache import CacheError
from qx_cache.embedded import start_server
from qx_cache_celery.demo.orders import SHIPPED, OrdersError, load
from qx_cache_celery.demo.processes import DemoError

try:
    from rich.console import CONSOLE_SVG_FORMAT, Console  # type: ignore[attr-defined]  # documented all the same

    from qx_cache_celery.demo import report
    from qx_cache_celery.demo.scenario import Scenario
except ImportError as missing:
    print(f'the demo needs its extra ({missing}): pip install "qx-cache-celery[demo]"', file=sys.stderr)
    raise SystemExit(2) from None

_PICTURE_COLUMNS = 88


def main() -> int:
    """Run the demo.

    Returns:
        0 when the idempotent side lost no order, charged none twice, and no beat job overlapped; 1 when not;
        2 when the orders file or the installation cannot be used; 143 when told to stop.
    """
    arguments = _arguments()
    try:
        orders = load(arguments.orders)
    except OrdersError as error:
        print(error, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="qx-demo-"))
    screen = Console(stderr=arguments.json, highlight=False)
    try:
        told = _play(orders, arguments.seed, folder, screen)
    except (DemoError, CacheError) as error:
        print(f"the demo did not come to its end: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        _leave(folder, keep=arguments.keep)
    return _tell(told, screen, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="qx_cache_celery.demo", description=__doc__)
    parser.add_argument("--orders", type=Path, default=SHIPPED, help="CSV: order_id,customer,amount,currency")
    parser.add_argument("--seed", type=int, default=1, help="fixes which orders the faults hit")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--picture", type=Path, help="write the table there as well, as an SVG")
    parser.add_argument("--keep", action="store_true", help="keep the folder with ledger and worker logs")
    return parser.parse_args()


def _play(orders: Any, seed: int, folder: Path, screen: Any) -> dict[str, Any]:
    began = time.monotonic()
    with start_server() as server, screen.status("starting") as status:

        def say(text: str) -> None:
            line = f"{time.monotonic() - began:5.1f} s  {text}"
            status.update(line)
            screen.print(line)

        scenario = Scenario(orders, seed, folder, server, say)
        for side in report.SIDES:
            scenario.play(side)
        return report.numbers(scenario, time.monotonic() - began)


def _leave(folder: Path, *, keep: bool) -> None:
    if keep:
        print(f"ledger and worker logs: {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)


def _tell(told: dict[str, Any], screen: Any, arguments: argparse.Namespace) -> int:
    if arguments.json:
        print(json.dumps(told))
    else:
        screen.print(report.table(told))
    if arguments.picture is not None:
        _draw(told, arguments.picture)
    found = report.faults_found(told)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


def _draw(told: dict[str, Any], path: Path) -> None:
    """The table as an SVG that loads nothing."""
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # no file of ours
        board = Console(record=True, width=_PICTURE_COLUMNS, file=nowhere)
        board.print(report.table(told))
    style = re.sub(r"@font-face {{.*?}}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    board.save_svg(str(path), title="make demo", code_format=style, unique_id="qx-demo")


if __name__ == "__main__":
    sys.exit(main())
