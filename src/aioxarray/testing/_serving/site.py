"""The answers of the server: objects, listings and faults, counted."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from aioxarray.testing._gate import Gate
from aioxarray.testing._log import LogSnapshot, Request, RequestLog
from aioxarray.testing._serving.faults import Fault, Faults
from aioxarray.testing._serving.webdav import multistatus

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray.testing._serving.connection import Connection
    from aioxarray.testing._serving.objects import Objects

__all__ = ["CONTROL", "Answer", "Site", "from_json", "parse_range", "span", "to_json"]

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
        self.faults = Faults()
        # How many requests may be served at once, and how many are.
        self.most: float = math.inf
        self.serving = 0

    def carried_at(self, byte_count: int, now: float) -> float:
        """Return when ``byte_count`` more bytes will have been transferred, from ``now`` on."""
        if self._bytes_per_s <= 0:
            return now
        self._line_free_at = max(now, self._line_free_at) + byte_count / self._bytes_per_s
        return self._line_free_at

    def answer(self, request: Request, body: bytes, deep: bool = True) -> Answer:
        """Return the answer to a request; ``deep`` makes a listing recursive."""
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
                # Clients of S3 expect the new tag.
                written = self.objects.find(request.key)
                tag = {} if written is None else {"ETag": written.etag}
                return Answer(HTTPStatus.CREATED, tag)
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
            case ("fault", _, _):
                self.faults.add(Fault.from_json(body))
                return Answer(HTTPStatus.OK)
            case ("most", _, _):
                self.most = float(body)
                return Answer(HTTPStatus.OK)
            case ("keys", _, _):
                return Answer(HTTPStatus.OK, body=json.dumps(list(self.objects)).encode())
            case ("objects", _, key):
                return self.answer(Request(request.method, key, request.byte_range), body)
        return Answer(HTTPStatus.NOT_FOUND)
