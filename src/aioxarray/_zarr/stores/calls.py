"""Calls in progress (opens, loads, saves): what each of them waits for, and its timeout."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from aioxarray._runtime.queueing import current_ticket, queued
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.observing.observers import listeners, logged_here
from aioxarray._zarr.stores.printable import printable
from aioxarray.config import is_otel, queue_limit
from aioxarray.errors import TimedOutError

if TYPE_CHECKING:
    from aioxarray._zarr.stores.observing.spans import CallSpans
    from aioxarray._zarr.stores.request import Request
    from aioxarray.config import Concurrency


# The most things named in a note.
_NAMED = 3


class Call:
    """An open, a load or a save in progress, and its requests.

    A nested call, such as the load of index coordinates during an open, is part of the outer one.

    Attributes
    ----------
    concurrency
        The call's own limit on requests in flight; None for the configured one.
    aim
        The past participle for its timeout error: "loaded" in "not loaded within the timeout".
    progress
        Describes how far the call has come; None if the call does not track that.
    """

    def __init__(self, aim: str, concurrency: Concurrency | None = None) -> None:
        self.aim = aim
        self.concurrency = concurrency
        self._done = 0
        self._lock = threading.Lock()
        self.progress: Callable[[], str] | None = None
        # Ordered by start. Dictionaries, because several threads can change them at once.
        self._requests: dict[Request, None] = {}
        self._labels: dict[_Labelled, None] = {}
        self._inner: dict[Call, None] = {}

    def _all(self) -> Iterator[Call]:
        yield self
        for call in list(self._inner):
            yield from call._all()

    def awaiting(self, what: str) -> _Labelled:
        """Return a context in which the call waits for ``what``, such as ``"variable 'v'"``.

        `state` names it if no `Request` is in flight: some backends make requests of their own.
        """
        return _Labelled(self, what)

    def began(self, request: Request) -> None:
        """Record that a request of the call has started; thread-safe."""
        self._requests[request] = None

    def ended(self, request: Request, *, answered: bool) -> None:
        """Record that a request of the call has ended; thread-safe."""
        del self._requests[request]
        if answered:
            with self._lock:
                self._done += 1

    @property
    def has_answers(self) -> bool:
        """Whether a request of the call has been answered."""
        return any(call._done for call in self._all())

    def state(self) -> str:
        """Describe how far the call has come, and what it waits for."""
        calls = list(self._all())
        parts = [call.progress() for call in calls if call.progress is not None][:1]
        requests = [each for call in calls for each in list(call._requests)]
        labels = [each.label for call in calls for each in list(call._labels)]
        if requests:
            first = requests[0]
            more = f" and {len(requests) - 1} more" if len(requests) > 1 else ""
            store = printable(first.store)
            place = f"{first.key!r}{more} of {store}" if first.key else f"{store}{more}"
            tried = "" if first.attempts is None else f", {first.attempts}"
            parts.append(f"waiting for {place}{tried}")
        elif labels:
            more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
            parts.append(f"waiting for {labels[0]}{more}")
        others = grants.requests.in_use
        if not requests and others:
            parts.append(f"{others} requests of other calls are in flight")
        done = sum(call._done for call in calls)
        if done or requests:
            parts.append(f"{done} {'request' if done == 1 else 'requests'} done")
        return "; ".join(parts) or "no request had been made"

    def awaited(self) -> str:
        """Name what the call waits for, such as ``"variable 'v' and 3 more"``; "" if unknown."""
        calls = list(self._all())
        variables = [each.variable for call in calls for each in list(call._requests)]
        labels = [each.label for call in calls for each in list(call._labels)]
        names = list(dict.fromkeys(filter(None, [*variables, *labels])))
        most = (
            names if len(names) <= _NAMED + 1 else [*names[:_NAMED], f"{len(names) - _NAMED} more"]
        )
        return " and ".join(filter(None, [", ".join(most[:-1]), *most[-1:]]))

    def _end(self, inner: Call) -> None:
        with self._lock:
            self._done += inner._done
        self._inner.pop(inner, None)


_current: contextvars.ContextVar[Call | None] = contextvars.ContextVar(
    "aioxarray_call", default=None
)


def current_call() -> Call | None:
    """Return the call that the current code works for; None outside of calls."""
    return _current.get()


def current_concurrency() -> Concurrency | None:
    """Return the current call's own limit on requests; None if it has none."""
    call = _current.get()
    return None if call is None else call.concurrency


def awaiting(what: str) -> AbstractContextManager[None]:
    """Return a context in which the current call waits for ``what``."""
    call = _current.get()
    return nullcontext() if call is None else call.awaiting(what)


class calling:
    """A context that opens a call.

    Parameters
    ----------
    aim
        The past participle in its timeout error ("not loaded within …"), which also says what the
        call was waiting for when the time was up.
    timeout
        The most seconds that the call may take; None for no limit.
    concurrency
        The call's own limit on requests in flight; None for that of the enclosing call.
    """

    # A class, because a generator costs more, and there may be thousands of loads.
    __slots__ = ("_begun", "_call", "_limit", "_logged", "_outer", "_queued", "_spans", "_token")

    def __init__(
        self, aim: str, timeout: float | None = None, concurrency: Concurrency | None = None
    ) -> None:
        self._outer = _current.get()
        if concurrency is None and self._outer is not None:
            concurrency = self._outer.concurrency
        self._call = Call(aim, concurrency)
        self._limit = None if timeout is None else _limited(self._call, timeout)
        # A nested call has its turn with the outer one, and the calls of a stream with the stream.
        has_turn = self._outer is not None or current_ticket() is not None
        length = None if has_turn else queue_limit()
        self._queued = None if length is None else queued(length)

    async def __aenter__(self) -> Call:
        self._token = _current.set(self._call)
        self._begun = perf_counter()
        if self._queued is not None:
            self._queued.__enter__()
        self._logged = logged_here() if self._outer is None else None
        if self._logged is not None:
            self._logged.__enter__()
        self._spans = _spans(self._call.aim) if self._outer is None and is_otel() else None
        if self._outer is not None:
            self._outer._inner[self._call] = None
        if self._limit is not None:
            await self._limit.__aenter__()
        return self._call

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._limit is not None:
                await self._limit.__aexit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            _current.reset(self._token)
            if self._queued is not None:
                self._queued.__exit__()
            if self._outer is not None:
                self._outer._end(self._call)
            elif observers := listeners():
                ended = perf_counter()
                for observer in observers:
                    observer.called(self._call.aim, self._begun, ended)
            if self._logged is not None:
                self._logged.__exit__(None, None, None)
            if self._spans is not None:
                await self._spans.end(error)


def _spans(aim: str) -> CallSpans | None:
    # Imported here: it imports the module of requests, which imports this one.
    from aioxarray._zarr.stores.observing.spans import spans_of_call

    return spans_of_call(aim)


@asynccontextmanager
async def _limited(this: Call, timeout: float) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    when = loop.time() + timeout
    state, names = "", ""

    def look() -> None:
        nonlocal state, names
        state, names = this.state(), this.awaited()

    # Runs when the timeout cancels the requests, before any of them has ended.
    timer = loop.call_at(when, look)
    try:
        async with asyncio.timeout_at(when) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        late = TimedOutError(
            f"not {this.aim} within the timeout of {timeout} s: {state or this.state()}"
        )
        if names:
            late.add_note(f"while waiting for {names}")
        raise late from error
    finally:
        timer.cancel()


class _Labelled:
    """A context in which a call waits for something other than a `Request`."""

    __slots__ = ("_call", "label")

    def __init__(self, call: Call, label: str) -> None:
        self._call = call
        self.label = label

    def __enter__(self) -> None:
        self._call._labels[self] = None

    def __exit__(self, *error: object) -> None:
        del self._call._labels[self]
