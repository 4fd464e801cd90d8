"""A proxy before a server, for what goes wrong on the way."""

import selectors
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path


class Proxy:
    """Stands before a server's socket; told to, it swallows a reply and cuts the connection, or hangs."""

    def __init__(self, upstream):
        self._folder = tempfile.TemporaryDirectory(prefix="qp-")
        self.path = Path(self._folder.name) / "p.sock"
        self._upstream = str(upstream)
        self._armed = False
        self._flows = threading.Event()
        self._flows.set()
        self.lost = 0
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(self.path))
        self._door.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_next(self):
        self._armed = True

    def hang(self):
        """Nothing passes any more, and no connection is closed, as when a cable is pulled."""
        self._flows.clear()

    def flow(self):
        self._flows.set()

    @property
    def url(self):
        return f"unix://{self.path}?db=0"

    def close(self):
        self.flow()
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()
        self._folder.cleanup()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._door.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(self._upstream)
                threading.Thread(target=self._serve, args=(client, server), daemon=True).start()

    def _serve(self, client, server):
        swallow = False
        with client, server, selectors.DefaultSelector() as ready, suppress(OSError):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            while True:
                for key, _ in ready.select():
                    self._flows.wait()
                    data = key.fileobj.recv(65536)
                    if not data:
                        return
                    if key.fileobj is client and self._armed and b"EVALSHA" in data:
                        self._armed, swallow = False, True
                    if key.fileobj is server and swallow:
                        self.lost += 1
                        return
                    key.data.sendall(data)
