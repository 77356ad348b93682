"""A peer that plays the daemon's part as a test scripts it."""

from __future__ import annotations

import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import Callable, NamedTuple

from notation import answer, welcome

HELLO = 0x01


class Received(NamedTuple):
    kind: int
    flags: int
    request_id: int
    body: bytes


class Connection:
    """One connection, on the side of the daemon."""

    def __init__(self, accepted: socket.socket, requests: list[Received]) -> None:
        self._socket = accepted
        self._requests = requests

    def request(self) -> Received | None:
        """The next frame; `None` at the end of the stream. Frames other than HELLO are remembered."""
        header = self._read(12)
        if header is None:
            return None
        length, _, kind, flags, request_id = struct.unpack("<IBBHI", header)
        received = Received(kind, flags, request_id, self._read(length - 8) or b"")
        if kind != HELLO:
            self._requests.append(received)
        return received

    def _read(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            received = self._socket.recv(count - len(data))
            if not received:
                return None
            data += received
        return data

    def send(self, *frames: bytes) -> None:
        self._socket.sendall(b"".join(frames))

    def welcome(self, **fields: int) -> None:
        """Receives HELLO and responds."""
        hello = self.request()
        assert hello is not None and hello.kind == HELLO
        self.send(welcome(hello.request_id, **fields))

    def serve(self) -> None:
        """Answers everything until the client ends the connection."""
        while (received := self.request()) is not None:
            self.send((welcome if received.kind == HELLO else answer)(received.request_id))

    def wait_for_end(self) -> None:
        """Reads until the client ends the connection."""
        while self._socket.recv(4096):
            pass


Script = Callable[[Connection], None]


def serve(connection: Connection) -> None:
    connection.serve()


class Peer:
    """Listens, and runs the next script with each connection. The last script is repeated."""

    def __init__(self, *scripts: Script) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = str(Path(self._directory.name) / "keyward.sock")
        #: Everything but HELLO that was received, in order.
        self.requests: list[Received] = []
        self.connections = 0
        self._scripts = scripts or (serve,)
        self._sockets: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.listen()

    def listen(self, backlog: int = 128) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(backlog)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Ends everything, as a daemon that is killed."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        Path(self.path).unlink()
        for accepted in self._sockets:
            _end(accepted)

    def close(self) -> None:
        try:
            self.stop()
        except OSError:
            pass
        self._directory.cleanup()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.connections, len(self._scripts) - 1)]
            self.connections += 1
            self._sockets.append(accepted)
            threading.Thread(target=self._run, args=(script, accepted), daemon=True).start()

    def _run(self, script: Script, accepted: socket.socket) -> None:
        try:
            script(Connection(accepted, self.requests))
        except OSError:
            pass
        _end(accepted)


def _end(accepted: socket.socket) -> None:
    try:
        accepted.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    accepted.close()
