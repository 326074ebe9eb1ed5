"""Requests: this package makes every request to a store through this module.

A request takes a place in the limit. It belongs to a call, which names it in a timeout error. It
notifies observers when it starts and ends, and adds its key and store to an error. If it fails in
a way that may pass, it is made again: each attempt takes a place and is observed.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from aioxarray._runtime.threads.cancel_scope import has_scope, request_scope
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.calls import current_call, current_concurrency
from aioxarray._zarr.stores.grants import is_long, requests
from aioxarray._zarr.stores.observing.observers import Observer, listeners
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.retries import attempts as retrying
from aioxarray._zarr.stores.retries.attempts import Attempts
from aioxarray._zarr.stores.retries.silence import first_answer
from aioxarray._zarr.stores.servers.pacing import request_share
from aioxarray._zarr.stores.servers.turns import has_place_now, place

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.servers.room import Room

T = TypeVar("T")

Kind = Literal["get", "exists", "list", "set", "delete"]

Reason = Literal["first", "retry", "silence", "hedge"]

DOCUMENTS = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"})
"""The names of all keys that hold metadata."""


class Request:
    """A request to a store, as a context that is open while the request is in flight.

    Parameters
    ----------
    kind
        The operation.
    store, key
        The store, and the key or prefix in it.
    byte_range
        The part of the value that is read; None for all of it.

    Attributes
    ----------
    attempt
        The number of attempts so far, including this one.
    reason
        Why this attempt is made: it is the first, another one has failed, was silent, or slow.
    attempts
        The attempts that failed; None if none did.
    repeatable
        Whether it may be made again if it is unknown what the last attempt has done.
    nbytes
        The bytes that were read or written; None while that is unknown.
    variable
        The variable that it is made for; None if it is made for none, or for several.
    asked, begun, ended
        The time (of `time.perf_counter`) since which this attempt has waited for a place, when it
        began, and when it ended. The last two are set only if there are observers.
    """

    __slots__ = (
        "_call",
        "_observers",
        "asked",
        "attempt",
        "attempts",
        "begun",
        "byte_range",
        "ended",
        "key",
        "kind",
        "nbytes",
        "reason",
        "repeatable",
        "store",
        "variable",
    )

    begun: float
    ended: float

    def __init__(
        self,
        kind: Kind,
        store: Any,
        key: str,
        byte_range: ByteRequest | None = None,
        nbytes: int | None = None,
        *,
        repeatable: bool = True,
    ) -> None:
        self.kind = kind
        self.store = store
        self.key = key
        self.byte_range = byte_range
        self.nbytes = nbytes
        self.attempt = 1
        self.reason: Reason = "first"
        self.attempts: Attempts | None = None
        self.repeatable = repeatable
        self.variable = _variable.get()
        self._call = current_call()
        self._observers: tuple[Observer, ...] = ()
        self.asked = perf_counter()

    @property
    def phase(self) -> str | None:
        """The aim of its call: "opened", "loaded" or "saved"; None outside of calls."""
        return None if self._call is None else self._call.aim

    @property
    def is_first_contact(self) -> bool:
        """Whether it is made for an open that has had no answer so far."""
        return self.phase == "opened" and self._call is not None and not self._call.has_answers

    @property
    def _is_for_chunk(self) -> bool:
        # Without a key, it is made for a file.
        is_value = self.kind in ("get", "set") and self.key != ""
        return is_value and self.key.rpartition("/")[2] not in DOCUMENTS

    def repeat(self, attempt: int, reason: Reason) -> None:
        """Make this attempt number ``attempt``, which waits for a place from now on."""
        self.attempt = attempt
        self.reason = reason
        self.asked = perf_counter()

    def again(self, attempt: int, reason: Reason) -> Request:
        """Return the same request, made for the same call, as attempt number ``attempt``."""
        other = copy.copy(self)
        other.repeat(attempt, reason)
        return other

    @contextlib.contextmanager
    def waiting(self, attempts: Attempts) -> Iterator[None]:
        """Open a context in which the request waits for its next attempt."""
        self.attempts = attempts
        if self._call is not None:
            self._call.began(self)
        try:
            yield
        finally:
            if self._call is not None:
                self._call.ended(self, answered=False)

    def __enter__(self) -> Self:
        if self._call is not None:
            self._call.began(self)
        # The same are told of the end: others may come or go meanwhile.
        self._observers = listeners()
        if self._observers:
            self.begun = perf_counter()
            for observer in self._observers:
                observer.started(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._call is not None:
            self._call.ended(self, answered=error is None)
        if isinstance(error, Exception):
            self.name_in(error)
        if not self._observers:
            return
        self.ended = perf_counter()
        for observer in self._observers:
            if error is None:
                observer.done(self)
            else:
                observer.failed(self, error)

    def name_in(self, error: Exception) -> None:
        """Add key and store to an error of this request."""
        # The errors of chunks get a note from `chunk_noted`, which is there for decoding too.
        if not self._is_for_chunk:
            store = repr(printable(self.store))
            place = f"{self.key!r} of {store}" if self.key else store
            note(error, f"in request for {place}")


def note(error: Exception, text: str) -> None:
    """Add a note to an error, unless it has that note already."""
    # A read that waits for another read's chunk may get an error that was noted there.
    if text not in getattr(error, "__notes__", ()):
        error.add_note(text)


class chunk_noted:
    """A context that adds the key of a chunk and its store to an error.

    The body requests and decodes the chunk, and puts it in the result.
    """

    __slots__ = ("_key", "_store")

    def __init__(self, key: str, store: Any) -> None:
        self._key = key
        self._store = store

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            note(error, f"in chunk {self._key!r} of {printable(self._store)!r}")


# --- making requests -------------------------------------------------------------------------


async def send(
    request: Request,
    places: Share | None,
    ask: Callable[[], Awaitable[T]],
    size: int = 0,
    room: Room | None = None,
) -> T:
    """Await ``ask()``, which makes ``request``, in a place of ``places`` and with ``room``.

    If ``places`` is None, the caller already has a place and memory. ``size`` is the number of
    bytes that are expected, as far as it is known. A request for a thread is cancelled with the
    work of that thread; see `aioxarray._runtime.threads.cancel_scope`. If the request fails in a
    way that may pass, ``ask()`` is awaited again (see `send_again`), and if it is silent, another
    time beside it (see `aioxarray._zarr.stores.retries.silence`).
    """
    if not has_scope():
        return await _send(request, places, ask, size, room)
    with request_scope():
        return await _send(request, places, ask, size, room)


async def _send(
    request: Request,
    places: Share | None,
    ask: Callable[[], Awaitable[T]],
    size: int,
    room: Room | None,
) -> T:
    """Do what `send` does, but for the cancel scope."""
    try:
        if places is None:
            return await first_answer(request, places, ask, size)
        long = size > tuning.LONG_BYTES
        if has_place_now(request, places, long=long, room=room):
            # As the context of `place`, for most requests, without its objects and coroutines.
            try:
                return await first_answer(request, places, ask, size)
            except BaseException:
                if room is not None:
                    room.failed()
                raise
            finally:
                places.release(long=long)
        async with place(request, places, long=long, room=room):
            return await first_answer(request, places, ask, size)
    except Exception as error:
        attempts = Attempts(request, places)
        if not attempts.goes_on(error):
            raise
    return await send_again(request, places, ask, attempts, size, room)


async def send_again(
    request: Request,
    places: Share | None,
    ask: Callable[[], Awaitable[T]],
    attempts: Attempts,
    size: int = 0,
    room: Room | None = None,
) -> T:
    """Await ``ask()``, as `send` does, after the ``attempts`` that failed, until one succeeds.

    Neither a place nor room is held while it waits for the next attempt. Cancelling ends the wait
    at once.
    """
    while True:
        with request.waiting(attempts):
            await retrying.sleep(attempts.wait_s)
        request.repeat(request.attempt + 1, "retry")
        try:
            async with (
                nullcontext()
                if places is None
                else place(request, places, long=is_long(size), room=room)
            ):
                return await first_answer(request, places, ask, size)
        except Exception as error:
            if not attempts.goes_on(error):
                raise


async def send_alone(request: Request, ask: Callable[[], Awaitable[T]]) -> T:
    """Await ``ask()``, which makes ``request`` outside of a load, in a share of its own."""
    with request_share(requests, current_concurrency()) as places:
        return await send(request, places, ask)


# --- the variable ----------------------------------------------------------------------------

_variable: contextvars.ContextVar[str | None] = contextvars.ContextVar(
    "aioxarray_variable", default=None
)


def current_variable() -> str | None:
    """Return the variable for which the current code makes requests; None if there is none."""
    return _variable.get()


@contextlib.contextmanager
def for_variable(name: str) -> Iterator[None]:
    """Set the variable for which the requests in the body are made."""
    token = _variable.set(name)
    try:
        yield
    finally:
        _variable.reset(token)
