"""HTTP/1.1 for `server`: answers to requests, and the connection.

It uses asyncio protocols, without a task or a stream per connection, so that tests and
benchmarks do not measure the server.
"""

from __future__ import annotations

import asyncio
import html
import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from aioxarray.testing._gate import Gate
from aioxarray.testing._log import LogSnapshot, Outcome, Request, RequestLog
from aioxarray.testing._webdav import multistatus

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray.testing._objects import Objects

__all__ = ["Connection", "Site", "parse_range", "span", "to_json"]

# Prefix of the private control requests (to read and reset the counters), which are not counted.
CONTROL = "-/"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body of an answer."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    # For HEAD: the length of the body that is not sent.
    length: int | None = None


def parse_range(header: str) -> ByteRequest | None:
    """Parse a Range header; None if the standard says to ignore it."""
    unit, _, spec = header.partition("=")
    first, dash, last = (part.strip() for part in spec.partition("-"))
    if unit.strip() != "bytes" or not dash or not (first + last).isdecimal():
        return None  # several ranges in one header may be ignored too
    if not first:
        return SuffixByteRequest(int(last))
    if not last:
        return OffsetByteRequest(int(first))
    if int(last) < int(first):
        return None
    return RangeByteRequest(int(first), int(last) + 1)


def span(part: ByteRequest, size: int) -> tuple[int, int] | None:
    """Return start and end of a part in an object of ``size`` bytes; None if it is empty there."""
    match part:
        case RangeByteRequest(start, end):
            start, end = start, min(end, size)
        case OffsetByteRequest(offset):
            start, end = offset, size
        case SuffixByteRequest(suffix):
            start, end = max(0, size - suffix), size
    return (start, end) if start < end else None


def _range_header(part: ByteRequest | None) -> str | None:
    match part:
        case RangeByteRequest(start, end):
            return f"bytes={start}-{end - 1}"
        case OffsetByteRequest(offset):
            return f"bytes={offset}-"
        case SuffixByteRequest(suffix):
            return f"bytes=-{suffix}"
    return None


def to_json(log: LogSnapshot) -> bytes:
    """Serialize a snapshot of a log for `from_json`."""
    requests = [(r.method, r.key, _range_header(r.byte_range)) for r in log.requests]
    counters = {name: getattr(log, name) for name in LogSnapshot.__slots__ if name != "requests"}
    return json.dumps({"requests": requests, **counters}).encode()


def from_json(data: bytes) -> LogSnapshot:
    """Parse the output of `to_json`."""
    values = json.loads(data)
    requests = tuple(
        Request(method, key, parse_range(part) if part else None)
        for method, key, part in values.pop("requests")
    )
    return LogSnapshot(requests=requests, **values)


class Site:
    """The server's state: it answers requests for objects, and counts them.

    Parameters
    ----------
    objects : Objects
        The objects to serve.
    latency_s : float
        Delay of each answer in seconds.
    bytes_per_s : float
        Bandwidth for bodies, shared by all connections, which use it one after the other; 0 for
        no limit.
    off_loop : bool
        Make answers in worker threads, because they read files, and tests may forbid blocking any
        event loop. Unnecessary when the server has its own process.
    """

    def __init__(
        self, objects: Objects, latency_s: float, bytes_per_s: float, off_loop: bool
    ) -> None:
        self.objects = objects
        self.latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        # When everything sent so far has been transferred.
        self._line_free_at = 0.0
        self.off_loop = off_loop
        self.log = RequestLog()
        self.connections: set[Connection] = set()
        # Holds requests by key; None holds none.
        self.gate: Gate | None = None
        # Globs of keys and the statuses to fail with; the last match decides.
        self.faults: list[tuple[str, HTTPStatus | None]] = []

    def fault(self, key: str) -> HTTPStatus | None:
        """Return the status that a request for ``key`` has to fail with, or None."""
        faults = (status for glob, status in reversed(self.faults) if fnmatchcase(key, glob))
        return next(faults, None)

    def carried_at(self, byte_count: int, now: float) -> float:
        """Return when ``byte_count`` more bytes will have been transferred, from ``now`` on."""
        if self._bytes_per_s <= 0:
            return now
        self._line_free_at = max(now, self._line_free_at) + byte_count / self._bytes_per_s
        return self._line_free_at

    def answer(self, request: Request, body: bytes, deep: bool = True) -> Answer:
        """Return the answer to a request; ``deep`` makes a listing recursive."""
        if (status := self.fault(request.key)) is not None:
            return Answer(status)
        try:
            return self._do(request, body, deep)
        except OSError:  # a file that cannot be read, or was deleted meanwhile
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR)

    def _do(self, request: Request, body: bytes, deep: bool) -> Answer:
        match request.method:
            case "GET" | "HEAD":
                return self._read(request)
            case "PUT":
                try:
                    self.objects[request.key] = body
                except (KeyError, OSError):
                    return Answer(HTTPStatus.BAD_REQUEST)
                return Answer(HTTPStatus.CREATED)
            case "DELETE":
                if self.objects.pop(request.key, None) is None:
                    return Answer(HTTPStatus.NOT_FOUND)
                return Answer(HTTPStatus.NO_CONTENT)
            case "PROPFIND":
                listed = multistatus(self.objects, request.key, deep)
                if listed is None:
                    return Answer(HTTPStatus.NOT_FOUND)
                headers = {"Content-Type": "application/xml; charset=utf-8"}
                return Answer(HTTPStatus.MULTI_STATUS, headers, listed)
        allowed = "GET, HEAD, PUT, DELETE, PROPFIND"
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": allowed})

    def _read(self, request: Request) -> Answer:
        found = self.objects.find(request.key)
        if found is None:
            return self._index(request)
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": found.etag,
        }
        if request.method == "HEAD":
            return Answer(HTTPStatus.OK, headers, length=found.size)
        if request.byte_range is None:
            return Answer(HTTPStatus.OK, headers, found.read(0, found.size))
        where = span(request.byte_range, found.size)
        if where is None:
            headers["Content-Range"] = f"bytes */{found.size}"
            return Answer(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, headers)
        start, end = where
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, found.read(start, end))

    def _index(self, request: Request) -> Answer:
        """List a directory, with or without a trailing slash, as a page of links."""
        prefix = request.key and request.key.removesuffix("/") + "/"
        names = self.objects.children(prefix)
        if not names and prefix:
            return Answer(HTTPStatus.NOT_FOUND)
        links = [f'<a href="/{quote(prefix + name)}">{html.escape(name)}</a>' for name in names]
        page = "<!DOCTYPE html>\n" + "<br>\n".join(links)
        headers = {"Content-Type": "text/html; charset=utf-8"}
        body = page.encode()
        if request.method == "HEAD":
            return Answer(HTTPStatus.OK, headers, length=len(body))
        return Answer(HTTPStatus.OK, headers, body)

    def control(self, request: Request, body: bytes) -> Answer:
        """Answer a control request of the parent process; neither counted nor delayed."""
        match request.key.removeprefix(CONTROL).partition("/"):
            case ("stats", _, _):
                return Answer(HTTPStatus.OK, body=to_json(self.log.snapshot()))
            case ("reset", _, _):
                self.log.clear()
                return Answer(HTTPStatus.OK)
            case ("latency", _, _):
                self.latency_s = float(body)
                return Answer(HTTPStatus.OK)
            case ("keys", _, _):
                return Answer(HTTPStatus.OK, body=json.dumps(list(self.objects)).encode())
            case ("objects", _, key):
                return self.answer(Request(request.method, key, request.byte_range), body)
        return Answer(HTTPStatus.NOT_FOUND)


@lru_cache(maxsize=256)
def _headers(lines: str) -> Mapping[str, str]:
    """Return the headers of a request by name; cached, because clients repeat them."""
    parts = (line.partition(":") for line in lines.split("\r\n"))
    return {name.lower(): value.strip() for name, _, value in parts}


_STATUS_LINES = {status: f"HTTP/1.1 {status.value} {status.phrase}" for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client's connection; it answers requests one after the other.

    Parameters
    ----------
    site : Site
        Where the answers come from.
    """

    _transport: asyncio.Transport

    def __init__(self, site: Site) -> None:
        self._site = site
        self._received = bytearray()
        self._headers: Mapping[str, str] | None = None  # of a request whose body has not arrived
        self._start: tuple[str, str, str] = ("", "", "")
        # The log's token for the current request.
        self._counted: object = None
        # The timer, gate or task that delays the answer to the current request.
        self._pending: asyncio.TimerHandle | asyncio.Future[Answer] | asyncio.Task[None] | None = (
            None
        )

    # asyncio's signature allows any transport; ours is always TCP.
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._site.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._site.connections.discard(self)
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        self._count_out("cancelled")

    def abort(self) -> None:
        """Drop the client."""
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._proceed()

    def _proceed(self) -> None:
        # One request at a time: a pipelined request waits for its turn.
        while self._pending is None and not self._transport.is_closing():
            if self._headers is None and not (self._received and self._read_head()):
                return
            assert self._headers is not None
            length = int(self._headers.get("content-length", 0))
            if len(self._received) < length:
                return
            body = b""
            if length:
                with memoryview(self._received) as received:
                    body = bytes(received[:length])  # slicing the array would copy once more
                del self._received[:length]
            headers, self._headers = self._headers, None
            self._begin(headers, body)

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        start, _, lines = self._received[:end].decode("latin-1").partition("\r\n")
        del self._received[: end + 4]
        try:
            method, target, version = start.split(" ")
            headers = _headers(lines)
            length = int(headers.get("content-length", 0))
        except ValueError:
            length = -1
        if length < 0:
            self._send("", Answer(HTTPStatus.BAD_REQUEST), keep_alive=False)
            return False
        if "transfer-encoding" in headers:
            self._send("", Answer(HTTPStatus.LENGTH_REQUIRED), keep_alive=False)
            return False
        if headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._start = (method, target, version)
        self._headers = headers
        return True

    def _begin(self, headers: Mapping[str, str], body: bytes) -> None:
        method, target, version = self._start
        key = unquote(target.partition("?")[0]).removeprefix("/")
        part = parse_range(headers["range"]) if "range" in headers else None
        request = Request(method, key, part)
        keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if key.startswith(CONTROL):
            self._send(method, self._site.control(request, body), keep_alive)
            return
        self._counted = self._site.log.begin(request)
        deep = headers.get("depth", "infinity") == "infinity"
        finish = partial(self._finish, method, len(body), keep_alive)
        answer = partial(self._site.answer, request, body, deep)
        step = partial(self._later, self._site.latency_s, partial(self._answer, answer, finish))
        if self._site.gate is None:
            step()
        else:
            self._passing(self._site.gate.passage(key), step)

    def _passing(self, passage: Coroutine[object, object, None], step: Callable[[], None]) -> None:
        """Call ``step`` when the gate lets the request pass, and go on with the next request."""

        def go_on(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self._pending = None
                step()
                self._proceed()

        task = asyncio.get_running_loop().create_task(passage)
        task.add_done_callback(go_on)
        self._pending = task

    def _later(self, seconds: float, step: Callable[[], None]) -> None:
        """Call ``step`` after ``seconds``, or now, and go on with the next request."""
        if seconds <= 0:
            step()
            return

        def go_on() -> None:
            self._pending = None
            step()
            self._proceed()

        self._pending = asyncio.get_running_loop().call_later(seconds, go_on)

    def _answer(self, answer: Callable[[], Answer], finish: Callable[[Answer], None]) -> None:
        if not self._site.off_loop:
            finish(answer())
            return

        def finish_with(answered: asyncio.Future[Answer]) -> None:
            if not answered.cancelled():
                self._pending = None
                finish(answered.result())
                self._proceed()

        self._pending = asyncio.get_running_loop().run_in_executor(None, answer)
        self._pending.add_done_callback(finish_with)

    def _finish(self, method: str, received: int, keep_alive: bool, answer: Answer) -> None:
        now = asyncio.get_running_loop().time()
        at = self._site.carried_at(received + len(answer.body), now)
        self._later(at - now, partial(self._send_counted, method, answer, keep_alive))

    def _send_counted(self, method: str, answer: Answer, keep_alive: bool) -> None:
        # Counted before it is sent: a client that has the answer finds it counted.
        self._count_out("completed")
        self._send(method, answer, keep_alive)

    def _count_out(self, outcome: Outcome) -> None:
        if self._counted is not None:
            self._site.log.end(self._counted, outcome)
            self._counted = None

    def _send(self, method: str, answer: Answer, keep_alive: bool) -> None:
        length = len(answer.body) if answer.length is None else answer.length
        lines = [_STATUS_LINES[answer.status]]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if answer.status is not HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {length}")
        if not keep_alive:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        if method == "HEAD":
            self._transport.write(head)
        elif len(answer.body) < 1 << 16:
            self._transport.write(head + answer.body)
        else:  # joining would copy a large body
            self._transport.write(head)
            self._transport.write(answer.body)
        if not keep_alive:
            self._transport.close()
