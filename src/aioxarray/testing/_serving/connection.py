"""HTTP/1.1: the connection, which parses requests and sends answers and faults.

It uses asyncio protocols, without a task or a stream per connection, so that tests and
benchmarks do not measure the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from http import HTTPStatus
from urllib.parse import parse_qsl, unquote

from aioxarray.testing._log import Counted, Outcome, Request
from aioxarray.testing._serving import s3
from aioxarray.testing._serving.faults import Effect, Fault, flipped, reset
from aioxarray.testing._serving.messages import Answer, Incoming, parse_range
from aioxarray.testing._serving.site import CONTROL, Site, worded

__all__ = ["Connection"]

# The bytes that follow a body that is too long.
EXCESS = b"\0" * 16


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
        self._counted: Counted | None = None
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
        method, _, version = self._start
        incoming = self._incoming(headers, body)
        request = incoming.request
        keep_alive = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if request.key.startswith(CONTROL):
            self._send(method, self._site.control(request, body), keep_alive)
            return
        self._counted = self._site.log.begin(request)
        fault = self._site.fault_of(request)
        effect = None if fault is None else fault.effect
        if effect == "stall":
            # Never done: the request ends when the client disconnects.
            self._pending = asyncio.get_running_loop().create_future()
            return
        finish = partial(self._finish, method, len(body), keep_alive, effect)
        answer = partial(self._site.answer, incoming)
        if fault is not None and isinstance(effect, int):
            answer = partial(_refused, incoming, fault)
        elif effect == "reset":
            answer = partial(Answer, HTTPStatus.OK)
        step = partial(
            self._later, self._site.next_latency_s(), partial(self._answer, answer, finish)
        )
        if self._site.gate is None:
            step()
        else:
            self._passing(self._site.gate.passage(request.key), step)

    def _incoming(self, headers: Mapping[str, str], body: bytes) -> Incoming:
        method, target, _ = self._start
        path, has_query, parameters = target.partition("?")
        key = unquote(path).removeprefix("/")
        query = dict(parse_qsl(parameters, keep_blank_values=True)) if has_query else {}
        is_s3 = s3.speaks_s3(headers, query)
        if is_s3:
            if s3.is_listing(method, key, query):
                method, key = s3.LIST, s3.listed_key(key, query)
            if "aws-chunked" in headers.get("content-encoding", ""):
                body = s3.unchunked(body)
        part = parse_range(headers["range"]) if "range" in headers else None
        return Incoming(Request(method, key, part), body, headers, query, is_s3)

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

    def _finish(
        self,
        method: str,
        received: int,
        keep_alive: bool,
        effect: int | Effect | None,
        answer: Answer,
    ) -> None:
        now = asyncio.get_running_loop().time()
        at = self._site.carried_at(received + len(answer.body), now)
        send = partial(self._send_counted, method, answer, keep_alive)
        if isinstance(effect, str):
            send = partial(self._send_faulty, method, answer, effect)
        self._later(at - now, send)

    def _send_counted(self, method: str, answer: Answer, keep_alive: bool) -> None:
        # Counted before it is sent: a client that has the answer finds it counted.
        self._count_out("completed")
        self._send(method, answer, keep_alive)

    def _send_faulty(self, method: str, answer: Answer, effect: Effect) -> None:
        if effect == "stall-body":
            # As with "stall", the request ends when the client disconnects.
            self._pending = asyncio.get_running_loop().create_future()
        else:
            self._count_out("failed")
        if effect in ("reset", "lose"):
            reset(self._transport)
            return
        body = bytes(answer.body)
        if effect in ("extend", "flip"):
            body = body + EXCESS if effect == "extend" else flipped(body)
            self._send(method, replace(answer, body=body), keep_alive=True)
            return
        length = len(body) if answer.length is None else answer.length
        head = self._head(answer, length, keep_alive=True)
        if method == "HEAD":
            body = b""
        self._transport.write(head + body + EXCESS if effect == "overrun" else _half(head, body))
        if effect == "truncate":
            self._transport.close()

    def _count_out(self, outcome: Outcome) -> None:
        if self._counted is not None:
            self._site.log.end(self._counted, outcome)
            self._counted = None

    def _send(self, method: str, answer: Answer, keep_alive: bool) -> None:
        length = len(answer.body) if answer.length is None else answer.length
        head = self._head(answer, length, keep_alive)
        if method == "HEAD":
            self._transport.write(head)
        elif len(answer.body) < 1 << 16:
            self._transport.write(head + answer.body)
        else:  # joining would copy a large body
            self._transport.write(head)
            self._transport.write(answer.body)
        if not keep_alive:
            self._transport.close()

    def _head(self, answer: Answer, length: int, keep_alive: bool) -> bytes:
        lines = [_STATUS_LINES[answer.status]]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if answer.status is not HTTPStatus.NO_CONTENT:
            lines.append(f"Content-Length: {length}")
        if not keep_alive:
            lines.append("Connection: close")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _refused(incoming: Incoming, fault: Fault) -> Answer:
    """Return the answer for a fault that is a status."""
    assert isinstance(fault.effect, int)
    return worded(incoming, Answer(HTTPStatus(fault.effect), fault.headers), fault.code)


def _half(head: bytes, body: bytes) -> bytes:
    """Return an answer up to the middle of its body or, if it has none, of its head."""
    return head + body[: len(body) // 2] if body else head[: len(head) // 2]
