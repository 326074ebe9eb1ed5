"""The answers of the server: objects, listings and faults, counted."""

from __future__ import annotations

import html
import json
import threading
import time
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from aioxarray.testing._gate import Gate
from aioxarray.testing._log import LogSnapshot, Request, RequestLog
from aioxarray.testing._serving import s3
from aioxarray.testing._serving.faults import Fault, Faults
from aioxarray.testing._serving.messages import Answer, Incoming, http_date, parse_range, span
from aioxarray.testing._serving.webdav import multistatus
from aioxarray.testing.latency import Latency, latency_from_json, sampler

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray.testing._serving.connection import Connection
    from aioxarray.testing._serving.objects import Objects

__all__ = ["CONTROL", "Site", "from_json", "to_json", "worded"]

# Prefix of the private control requests (to read and reset the counters), which are not counted.
CONTROL = "-/"


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
    times = tuple((began, ended) for began, ended in values.pop("times"))
    return LogSnapshot(requests=requests, times=times, **values)


class Site:
    """The server's state: it answers requests for objects, and counts them.

    Parameters
    ----------
    objects : Objects
        The objects to serve.
    latency_s : Latency
        Delay of each answer.
    bytes_per_s : float
        Bandwidth for bodies, shared by all connections, which use it one after the other; 0 for
        no limit.
    off_loop : bool
        Make answers in worker threads, because they read files, and tests may forbid blocking any
        event loop. Unnecessary when the server has its own process.
    """

    def __init__(
        self, objects: Objects, latency_s: Latency, bytes_per_s: float, off_loop: bool
    ) -> None:
        self.objects = objects
        self.latency_s = latency_s
        self._uploads = s3.Uploads(objects)
        # Held by a write that depends on what is there.
        self._conditional = threading.Lock()
        self._bytes_per_s = bytes_per_s
        # When everything sent so far has been transferred.
        self._line_free_at = 0.0
        self.off_loop = off_loop
        self.log = RequestLog()
        self.connections: set[Connection] = set()
        # Holds requests by key; None holds none.
        self.gate: Gate | None = None
        self.faults = Faults()

    @property
    def latency_s(self) -> Latency:
        """Delay of each answer; can be set."""
        return self._latency_s

    @latency_s.setter
    def latency_s(self, latency: Latency) -> None:
        self.next_latency_s = sampler(latency)
        self._latency_s = latency

    def carried_at(self, byte_count: int, now: float) -> float:
        """Return when ``byte_count`` more bytes will have been transferred, from ``now`` on."""
        if self._bytes_per_s <= 0:
            return now
        self._line_free_at = max(now, self._line_free_at) + byte_count / self._bytes_per_s
        return self._line_free_at

    def fault_of(self, request: Request) -> Fault | None:
        """Return the fault of a request that was counted; None if it is answered well."""
        if not self.faults:
            return None
        return self.faults.of(request, self.log.in_flight, time.monotonic())

    def answer(self, incoming: Incoming) -> Answer:
        """Return the answer to a request."""
        try:
            answer = self._uploads.answer(incoming) if incoming.is_s3 else None
            if answer is None:
                answer = self._do(incoming)
        except OSError:  # a file that cannot be read, or was deleted meanwhile
            answer = Answer(HTTPStatus.INTERNAL_SERVER_ERROR)
        return worded(incoming, answer)

    def _do(self, incoming: Incoming) -> Answer:
        request = incoming.request
        match request.method:
            case "GET" | "HEAD":
                return self._read(incoming)
            case "PUT":
                return self._write(incoming)
            case "DELETE":
                if self.objects.pop(request.key, None) is None:
                    return Answer(HTTPStatus.NOT_FOUND)
                return Answer(HTTPStatus.NO_CONTENT)
            case "MKCOL":
                # A directory is there as long as something is in it; obstore asks for some after
                # a PUT that was answered with a 404.
                return Answer(HTTPStatus.CREATED)
            case "PROPFIND":
                deep = incoming.headers.get("depth", "infinity") == "infinity"
                listed = multistatus(self.objects, request.key, deep)
                if listed is None:
                    return Answer(HTTPStatus.NOT_FOUND)
                headers = {"Content-Type": "application/xml; charset=utf-8"}
                return Answer(HTTPStatus.MULTI_STATUS, headers, listed)
        allowed = "GET, HEAD, PUT, DELETE, PROPFIND, MKCOL"
        return Answer(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": allowed})

    def _write(self, incoming: Incoming) -> Answer:
        key = incoming.request.key
        if "if-match" in incoming.headers or "if-none-match" in incoming.headers:
            with self._conditional:
                found = self.objects.find(key)
                if not _holds(incoming, None if found is None else found.etag):
                    return Answer(HTTPStatus.PRECONDITION_FAILED)
                return self._store(incoming)
        return self._store(incoming)

    def _store(self, incoming: Incoming) -> Answer:
        key = incoming.request.key
        try:
            self.objects[key] = incoming.body
        except (KeyError, OSError):
            return Answer(HTTPStatus.BAD_REQUEST)
        written = self.objects.find(key)
        tag = {} if written is None else {"ETag": written.etag}
        return Answer(HTTPStatus.OK if incoming.is_s3 else HTTPStatus.CREATED, tag)

    def _read(self, incoming: Incoming) -> Answer:
        request = incoming.request
        found = self.objects.find(request.key)
        if found is None:
            return Answer(HTTPStatus.NOT_FOUND) if incoming.is_s3 else self._index(request)
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": found.etag,
            "Last-Modified": http_date(found.modified),
        }
        if not _holds(incoming, found.etag):
            is_changed = "if-match" in incoming.headers
            status = HTTPStatus.PRECONDITION_FAILED if is_changed else HTTPStatus.NOT_MODIFIED
            return Answer(status, headers)
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
                self.latency_s = latency_from_json(body)
                return Answer(HTTPStatus.OK)
            case ("mend", _, _):
                self.faults.clear()
                return Answer(HTTPStatus.OK)
            case ("fault", _, _):
                self.faults.add(Fault.from_json(body))
                return Answer(HTTPStatus.OK)
            case ("keys", _, _):
                return Answer(HTTPStatus.OK, body=json.dumps(list(self.objects)).encode())
            case ("objects", _, key):
                request = Request(request.method, key, request.byte_range)
                return self.answer(Incoming(request, body))
        return Answer(HTTPStatus.NOT_FOUND)


def worded(incoming: Incoming, answer: Answer, code: str | None = None) -> Answer:
    """Return an answer with S3's words for an error, if the client speaks S3's protocol."""
    if not incoming.is_s3 or answer.status < HTTPStatus.BAD_REQUEST or answer.body:
        return answer
    error = s3.error(answer.status, incoming.request.key, code)
    return replace(error, headers={**answer.headers, **error.headers})


def _holds(incoming: Incoming, etag: str | None) -> bool:
    """Return whether the conditions of a request hold for an object; None if there is none."""
    wanted, unwanted = (incoming.headers.get(name) for name in ("if-match", "if-none-match"))
    if wanted is not None and not _is_one_of(etag, wanted):
        return False
    return unwanted is None or not _is_one_of(etag, unwanted)


def _is_one_of(etag: str | None, tags: str) -> bool:
    # Like S3, it takes a tag without quotes, which icechunk sends.
    return etag is not None and (tags == "*" or etag.strip('"') == tags.strip('"'))
