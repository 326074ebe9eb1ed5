"""OpenTelemetry spans of calls and of their requests."""

from __future__ import annotations

import functools
import importlib
import logging
import threading
import time
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from aioxarray._runtime.workers import in_worker
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.observing.observers import observed_here
from aioxarray._zarr.stores.observing.records import Recorder, RequestRecord
from aioxarray._zarr.stores.printable import without_secrets

_logger = logging.getLogger("aioxarray")
_FAILED = "a span failed, and others may be missing; the call is not affected"

_NAMES = {"opened": "open", "loaded": "load", "saved": "save"}


@functools.cache
def _otel() -> Any:
    """Return the module `opentelemetry.trace`, which is optional."""
    return importlib.import_module("opentelemetry.trace")


@functools.cache
def _tracer() -> Any:
    # Before the application has set its provider, this is a stand-in that will use it.
    return _otel().get_tracer("aioxarray")


def spans_of_call(aim: str) -> CallSpans | None:
    """Start the span of a call; None if nobody records it.

    Errors of the application's span processors are logged, here and at the end of the call.
    """
    try:
        spans = CallSpans(aim)
        return spans if spans.enter() else None
    except Exception:
        _logger.exception(_FAILED)
        return None


class CallSpans(Recorder):
    """The span of a call, which is current during the call, and those of its requests.

    Spans of requests are made when the call has ended, with the times that were recorded: making
    one takes longer than many a request.

    Parameters
    ----------
    aim
        The aim of the call: "opened", "loaded" or "saved".
    """

    def __init__(self, aim: str) -> None:
        super().__init__(tuning.REQUEST_SPANS)
        # All times are those of the clock of the records, so that no request seems to outlast its
        # call; they are counted from here.
        self._zero_ns = time.time_ns() - round(perf_counter() * 1e9)
        self._span = _tracer().start_span(
            f"aioxarray {_NAMES[aim]}", start_time=self._ns(perf_counter())
        )
        self._contexts: list[AbstractContextManager[Any]] = []
        # Of all requests: the records of some may be dropped.
        self._nbytes = 0
        self._lock = threading.Lock()

    def _next_number(self, nbytes: int) -> int:
        with self._lock:
            self._nbytes += nbytes
        # The span of the call counts the records that are dropped, and not the process.
        return next(self._request_numbers)

    def enter(self) -> bool:
        """Make the span current; return False, and end it, if nobody records it."""
        if not self._span.is_recording():
            self._span.end()
            return False
        self._contexts = [_otel().use_span(self._span, record_exception=False), observed_here(self)]
        for context in self._contexts:
            context.__enter__()
        return True

    async def end(self, error: BaseException | None) -> None:
        """End the span of the call with ``error``, if any, and make those of its requests."""
        ended = perf_counter()
        for context in reversed(self._contexts):
            context.__exit__(None, None, None)
        try:
            records = self.requests
            self._end(error, ended, records)
            if len(records) <= tuning.SPANS_AT_ONCE:
                self._make_spans(records)
            else:
                await in_worker(lambda: self._make_spans(records))
        except Exception:
            _logger.exception(_FAILED)

    def _end(self, error: BaseException | None, ended: float, records: list[RequestRecord]) -> None:
        left_out = max((each.number + 1 for each in records), default=0) - len(records)
        span = self._span
        span.set_attribute("aioxarray.requests", len(records) + left_out)
        span.set_attribute("aioxarray.requests_without_span", left_out)
        span.set_attribute("aioxarray.bytes", self._nbytes)
        if isinstance(error, Exception):
            message = without_secrets(str(error))
            kind = type(error).__qualname__
            span.add_event("exception", {"exception.type": kind, "exception.message": message})
            _fail(span, kind, message)
        elif error is not None:
            span.set_attribute("aioxarray.outcome", "cancelled")
        span.end(self._ns(ended))

    def _make_spans(self, records: list[RequestRecord]) -> None:
        otel = _otel()
        parent = otel.set_span_in_context(self._span)
        for each in records:
            group, variable = each.place
            attributes: dict[str, Any] = {
                "aioxarray.store": each.store,
                "aioxarray.key": each.key,
                "aioxarray.phase": each.phase,
                "aioxarray.bytes": each.nbytes,
                "aioxarray.attempt": each.attempt,
                "aioxarray.reason": each.reason,
                "aioxarray.outcome": each.outcome,
                "aioxarray.queued_s": each.begun - each.asked,
            }
            optional = {"range": each.range, "group": group, "variable": variable}
            attributes |= {f"aioxarray.{name}": text for name, text in optional.items() if text}
            address = urlsplit(each.store)
            if address.scheme in ("http", "https") and address.hostname:
                attributes["server.address"] = address.hostname
            span = _tracer().start_span(
                f"aioxarray {each.kind}",
                parent,
                otel.SpanKind.CLIENT,
                attributes,
                start_time=self._ns(each.begun),
            )
            if each.error:
                _fail(span, each.error, each.error)
            span.end(self._ns(each.ended))

    def _ns(self, seconds: float) -> int:
        return self._zero_ns + round(seconds * 1e9)


def _fail(span: Any, kind: str, message: str) -> None:
    span.set_attribute("error.type", kind)
    span.set_status(_otel().Status(_otel().StatusCode.ERROR, message))
