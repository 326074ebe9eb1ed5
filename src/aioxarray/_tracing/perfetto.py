"""The trace events of a recording, for Perfetto and other viewers of Chrome's format."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from aioxarray._tracing.summary import name_of

if TYPE_CHECKING:
    from aioxarray._tracing.recording import Recording
    from aioxarray._zarr.stores.observing.records import DecodeRecord, RequestRecord


def trace_events(recording: Recording) -> str:
    """Return the events as JSON: a process for each variable, with threads for what overlaps."""
    tracks = _Tracks()
    begun = recording.begun
    events: list[dict[str, Any]] = []
    for request in recording.requests:
        events.append(
            {
                "name": request.key or request.kind,
                "cat": request.phase,
                **tracks.place("requests", request),
                **_span(request.begun - begun, request.ended - begun),
                "args": {
                    "kind": request.kind,
                    "range": request.range,
                    "bytes": request.nbytes,
                    "queued_ms": 1e3 * (request.begun - request.asked),
                    "attempt": request.attempt,
                    "reason": request.reason,
                    "outcome": request.outcome,
                    "error": request.error or "",
                    "store": request.store,
                },
            }
        )
    for decode in recording.decodes:
        events.append(
            {
                "name": f"decode {decode.key}",
                "cat": "decode",
                **tracks.place("decoding", decode),
                **_span(decode.begun - begun, decode.ended - begun),
                "args": {"chunks": decode.chunks, "bytes": decode.nbytes},
            }
        )
    return json.dumps({"traceEvents": [*tracks.names(), *events], "displayTimeUnit": "ms"})


def _span(begun: float, ended: float) -> dict[str, Any]:
    return {"ph": "X", "ts": round(1e6 * begun, 1), "dur": round(1e6 * (ended - begun), 1)}


class _Tracks:
    """Processes and threads, in the words of the format: no two events of a thread overlap."""

    def __init__(self) -> None:
        self._processes: dict[str, int] = {}
        # The threads of each kind in a process: when each is free again, and its number.
        self._free: dict[tuple[int, str], list[tuple[float, int]]] = {}
        self._threads: dict[tuple[int, int], str] = {}
        self._numbers = itertools.count(1)

    def place(self, kind: str, record: RequestRecord | DecodeRecord) -> dict[str, int]:
        """Return the process and thread of an event; called in the order in which they begin."""
        process = self._processes.setdefault(name_of(record), len(self._processes) + 1)
        free = self._free.setdefault((process, kind), [])
        if free and free[0][0] <= record.begun:
            _, thread = heapq.heappop(free)
        else:
            thread = next(self._numbers)
            self._threads[process, thread] = kind
        heapq.heappush(free, (record.ended, thread))
        return {"pid": process, "tid": thread}

    def names(self) -> Iterator[dict[str, Any]]:
        """Yield the events that name processes and threads."""
        for name, process in self._processes.items():
            yield _named("process_name", name, process, 0)
        for (process, thread), kind in self._threads.items():
            yield _named("thread_name", kind, process, thread)


def _named(event: str, name: str, process: int, thread: int) -> dict[str, Any]:
    return {"name": event, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
