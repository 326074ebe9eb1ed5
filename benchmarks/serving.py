"""A server for benchmarks of the client: several processes on one port, with prebuilt answers.

Each process holds the answers to whole objects as bytes and sends large ones from the file's pages;
a request costs it some 15 µs. ``ObjectServer`` counts, delays and fails requests instead, and takes
ten times as long.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

# Larger answers are not copied into the memory of each process.
_KEPT_BYTES = 64 << 10
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_DATE = "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\nAccept-Ranges: bytes\r\n"


class PrebuiltServer:
    """Serves the files of a directory, as a context; GET and HEAD, whole or with one range.

    Parameters
    ----------
    root
        The directory; files that are added later are found, changed ones are not.
    processes
        The number of processes; the kernel divides the connections among them.
    """

    def __init__(self, root: Path, processes: int = 2) -> None:
        self._root = root
        self._count = processes
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        port = 0
        for _ in range(self._count):
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.serving", str(self._root), str(port)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
            assert process.stdout is not None
            port = int(process.stdout.readline())
        self.url = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            # Each ends when its input does.
            with process:
                assert process.stdin is not None
                process.stdin.close()

    def cpu_s(self) -> float:
        """Return the processor time in seconds that the server has taken so far."""
        total = 0.0
        for process in self._processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            total += float(json.loads(process.stdout.readline()))
        return total


class _Connection:
    """A client's connection: what it has sent, and what has not been sent to it."""

    __slots__ = ("received", "sending", "socket")

    def __init__(self, accepted: socket.socket) -> None:
        self.socket = accepted
        self.received = b""
        self.sending: list[memoryview] = []


class _Answers:
    """The answers to requests, each built once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[bytes, tuple[memoryview, ...]] = {}

    def to(self, request: bytes) -> tuple[memoryview, ...]:
        """Return the parts of the answer to ``request``, the text of a request's head."""
        method, path, _ = request.split(b" ", 2)
        lowered = request.lower()
        at = lowered.find(b"\r\nrange: bytes=")
        wanted = b"" if at < 0 else lowered[at + 15 : lowered.index(b"\r\n", at + 2)]
        name = b" ".join((method, path, wanted))
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = self._made(method, path, wanted)
        return known

    def _made(self, method: bytes, path: bytes, wanted: bytes) -> tuple[memoryview, ...]:
        import mmap
        from urllib.parse import unquote

        file = self._root / unquote(path.decode()).split("?")[0].lstrip("/")
        if not file.is_file():
            return (memoryview(_NOT_FOUND),)
        with file.open("rb") as opened:
            size = file.stat().st_size
            # The pages of the file are shared among the processes.
            mapped: Any = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        body, status = memoryview(mapped), "200 OK"
        more = _DATE + f'ETag: "{size:x}"\r\n'
        if wanted:
            first, _, last = wanted.decode().partition("-")
            start = int(first) if first else max(0, size - int(last))
            stop = min(int(last) + 1, size) if first and last else size
            body, status = body[start:stop], "206 Partial Content"
            more += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode()
        if method == b"HEAD":
            return (memoryview(head),)
        if len(body) <= _KEPT_BYTES:
            return (memoryview(head + body),)
        return memoryview(head), body


def _serve(root: Path, port: int) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(1024)
    listener.setblocking(False)
    print(listener.getsockname()[1], flush=True)
    answers = _Answers(root)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    waiting.register(sys.stdin, selectors.EVENT_READ)
    while True:
        for key, events in waiting.select():
            if key.fileobj is listener:
                _accept(listener, waiting)
            elif key.fileobj is sys.stdin:
                if not os.read(0, 4096):
                    return
                used = os.times()
                print(used.user + used.system, flush=True)
            else:
                _answer(key.data, events, answers, waiting)


def _accept(listener: socket.socket, waiting: selectors.BaseSelector) -> None:
    accepted, _ = listener.accept()
    accepted.setblocking(False)
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    waiting.register(accepted, selectors.EVENT_READ, _Connection(accepted))


def _answer(
    connection: _Connection, events: int, answers: _Answers, waiting: selectors.BaseSelector
) -> None:
    """Receive and send as much as the connection takes now."""
    was_sending = bool(connection.sending)
    try:
        if events & selectors.EVENT_READ:
            data = connection.socket.recv(65536)
            if not data:
                raise ConnectionResetError
            connection.received += data
            while (end := connection.received.find(b"\r\n\r\n")) >= 0:
                request, connection.received = (
                    connection.received[: end + 2],
                    connection.received[end + 4 :],
                )
                connection.sending += answers.to(request)
        _send(connection)
    except ConnectionError:
        waiting.unregister(connection.socket)
        connection.socket.close()
        return
    if bool(connection.sending) != was_sending:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.sending else 0)
        waiting.modify(connection.socket, wanted, connection)


def _send(connection: _Connection) -> None:
    parts = connection.sending
    while parts:
        try:
            count = (
                connection.socket.send(parts[0])
                if len(parts) == 1
                else connection.socket.sendmsg(parts[:8])
            )
        except BlockingIOError:
            return
        while parts and count >= len(parts[0]):
            count -= len(parts[0])
            del parts[0]
        if count:
            parts[0] = parts[0][count:]


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
