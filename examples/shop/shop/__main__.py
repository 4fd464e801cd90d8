"""``python -m shop``: the whole shop by one command, on a server of its own. Ctrl-C ends it, data and all."""

import argparse
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path

from qx_cache import EmbeddedServerError
from qx_cache.embedded import EmbeddedServer, start_server
from shop.migrate import make_tables
from shop.models import open_database, order_id
from shop.processes import Stage, StageError

_READY = {"web": "Application startup complete", "worker": " ready."}
_KEY = "my-first-order"


def main() -> int:
    """Run until somebody stops it.

    Returns:
        0 when it was stopped; 1 when it cannot go on; 2 when the port is taken or no server can be started.
    """
    arguments = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be stopped is one thing, however one is told
    folder = Path(tempfile.mkdtemp(prefix="shop-"))
    try:
        port = _free(arguments.port)
        with start_server(config={"appendonly": "yes"}) as server:
            _play(folder, server, port)
    except KeyboardInterrupt:
        print("\nThe shop is closed.")
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except (EmbeddedServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m shop", description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="of the web front; 0 takes any that is free")
    return parser.parse_args()


def _free(port: int) -> int:
    """The port, if nobody listens there.

    Raises:
        OSError: Somebody does; says what to do.
    """
    try:
        with socket.create_server(("127.0.0.1", port)) as probe:
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise OSError(f"port {port} cannot be used ({error}); choose another one: --port 8001") from None


def _play(folder: Path, server: EmbeddedServer, port: int) -> None:
    database_url = f"sqlite:///{folder / 'shop.sqlite'}"
    environment = {
        "SHOP_REPORT_EVERY_SECONDS": "10",  # a night is long
        **os.environ,
        "SHOP_DATABASE_URL": database_url,
        "SHOP_REDIS_URL": server.broker_url,
        "SHOP_BROKER_URL": server.broker_url,
        "TMPDIR": str(folder),  # what a killed worker leaves goes with it
        "PYTHONUNBUFFERED": "1",
    }
    make_tables(open_database(database_url))
    stage = Stage(environment)
    try:
        _start(stage, folder, port)
        _show(stage, port, server)
    finally:
        stage.stop()


def _start(stage: Stage, folder: Path, port: int) -> None:
    """One web front, one worker, and two beats, of which one leads."""
    celery = ("celery", "-q", "-A", "shop.tasks")
    stage.start("web", "uvicorn", "shop.web:app", "--port", str(port), "--no-use-colors")
    stage.start("worker", *celery, "worker", "-c", "2", "-l", "INFO", "--without-mingle", "--without-gossip")
    for beat in ("beat1", "beat2"):
        stage.start(beat, *celery, "beat", "-l", "INFO", "-s", str(folder / beat), "--pidfile", "")


def _show(stage: Stage, port: int, server: EmbeddedServer) -> None:
    """Print what the processes say, and what to try once they are ready."""
    awaited = dict(_READY)
    for name, line in stage.follow():
        print(f"{name:>6} | {line}", flush=True)
        if awaited.get(name, line + ".") in line:
            del awaited[name]
            if not awaited:
                print(_invitation(port, server), flush=True)


def _invitation(port: int, server: EmbeddedServer) -> str:
    url = f"http://127.0.0.1:{port}"
    order = '{"customer": "Ada", "item": "teapot", "amount_cents": 1250}'
    headers = f"-H 'Idempotency-Key: {_KEY}' -H 'Content-Type: application/json'"
    return f"""
The shop is open: {url} (all it can do: {url}/docs; its Redis: {server.socket_path})

curl -i {url}/orders {headers} -d '{order}'
curl -s {url}/orders/{order_id(_KEY)}
curl -s {url}/reports/latest

Send the first one twice: there is one order, and one payment. Ctrl-C ends the shop, and nothing is kept.
"""


if __name__ == "__main__":
    sys.exit(main())
