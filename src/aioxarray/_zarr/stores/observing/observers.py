"""Observers: objects that are notified of requests, of shared reads and of decoded chunks.

An observer listens to the whole process, or only to the code of a block and the calls that it
makes. One of the latter writes to the logger ``aioxarray.requests``, if its level is DEBUG.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.retries.errors import failure_of

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray._zarr.stores.request import Request

_logger = logging.getLogger("aioxarray.requests")


# The start and the end (exclusive, None for the end of the value) of a byte range. A negative start
# counts from the end of the value.
Part = tuple[int, int | None]


class Origin(NamedTuple):
    """The name of the store that is read, the aim of the call, and the variable; see `Request`."""

    store: str
    aim: str | None
    variable: str | None


class Observer:
    """Is notified of requests, of reads that share one, and of decoded chunks; ignores them.

    The methods are called in the thread of the request, the read or the decoding. They must be
    quick, and not raise. Times are those of `time.perf_counter`.
    """

    def started(self, request: Request) -> None:
        """Called when a request has its place and starts."""

    def done(self, request: Request) -> None:
        """Called when a request has been answered."""

    def failed(self, request: Request, error: BaseException) -> None:
        """Called when a request has failed or was cancelled."""

    def read(
        self,
        origin: Origin,
        key: str,
        part: Part | None,
        nbytes: int,
        begun: float,
        ended: float,
        error: BaseException | None,
    ) -> None:
        """Called when a value in memory or in a local file was read, which makes no `Request`.

        Parameters
        ----------
        origin
            The store, the aim of the call, and the variable.
        key, part, nbytes
            The key, the byte range (None for the whole value), and the bytes that were read.
        begun, ended
            The time when the read began and ended.
        error
            Its error; None if it succeeded.
        """

    def read_in_a_row(
        self, origin: Origin, keys: Sequence[str], sizes: Sequence[int], times: Sequence[float]
    ) -> None:
        """Called when whole values were read as for `read`, one after the other, without an error.

        Parameters
        ----------
        origin
            The store, the aim of the call, and the variable.
        keys, sizes
            Their keys, and the bytes that were read.
        times
            The time when the first read began, and those when each of them ended.
        """
        for key, nbytes, (begun, ended) in zip(keys, sizes, pairwise(times), strict=True):
            self.read(origin, key, None, nbytes, begun, ended, None)

    def shared(self, part: Hashable) -> None:
        """Called when a read waits for a part of a store that another read is fetching.

        The read makes no request for it, unless the other one gives up. ``part`` is a tuple that
        begins with the key.
        """

    def cached(self, part: Hashable) -> None:
        """Called when a read finds a part of a store in the cache; for ``part`` see `shared`."""

    def called(self, aim: str, begun: float, ended: float) -> None:
        """Called when an open, a load or a save has ended; for ``aim`` see `Call`.

        It is called in the thread of the I/O loop, and not for calls inside of others.
        """

    def decoded(
        self, key: str, variable: str | None, chunks: int, nbytes: int, begun: float, ended: float
    ) -> None:
        """Called when chunks have been decoded and put in the result.

        Parameters
        ----------
        key
            The key of the first of them; for inner chunks, that of the shard.
        variable
            The variable that they are read for, as `Request.variable`.
        chunks, nbytes
            Their number, and the bytes that were decoded.
        begun, ended
            The time when this began and ended.
        """


class _Log(Observer):
    """Writes a record for every request that has ended."""

    def done(self, request: Request) -> None:
        self._of_request(request, None)

    def failed(self, request: Request, error: BaseException) -> None:
        self._of_request(request, error)

    def _of_request(self, request: Request, error: BaseException | None) -> None:
        more = f", queued for {1e3 * (request.begun - request.asked):.1f} ms"
        if request.attempt > 1:
            more += f", attempt {request.attempt} ({request.reason})"
        self._write(
            request.kind,
            request.key,
            None if request.byte_range is None else part_of(request.byte_range),
            printable(request.store),
            _outcome(request.nbytes, error),
            request.ended - request.begun,
            more,
        )

    def read(
        self,
        origin: Origin,
        key: str,
        part: Part | None,
        nbytes: int,
        begun: float,
        ended: float,
        error: BaseException | None,
    ) -> None:
        self._write("get", key, part, origin.store, _outcome(nbytes, error), ended - begun, "")

    def _write(
        self,
        kind: str,
        key: str,
        part: Part | None,
        store: str,
        outcome: str,
        seconds: float,
        more: str,
    ) -> None:
        what = repr(key) if part is None else f"{key!r} ({range_text(part)})"
        _logger.debug("%s %s of %r: %s %.1f ms%s", kind, what, store, outcome, 1e3 * seconds, more)


def _outcome(nbytes: int | None, error: BaseException | None) -> str:
    if error is not None:
        return f"{cause_of(error) or 'cancelled'} after"
    return "in" if nbytes is None else f"{nbytes} bytes in"


def cause_of(error: BaseException) -> str | None:
    """Return a short description of an error without a URL; None if it was cancelled."""
    if not isinstance(error, Exception):
        return None
    found = failure_of(error)
    return type(error).__name__ if found is None else found.cause


def part_of(byte_range: ByteRequest) -> Part:
    """Return a byte range as a `Part`."""
    match byte_range:
        case RangeByteRequest(start=start, end=end):
            return start, end
        case OffsetByteRequest(offset=offset):
            return offset, None
        case SuffixByteRequest(suffix=suffix):
            return -suffix, None
    raise TypeError(f"unexpected byte range {byte_range!r}")


def range_text(part: Part | tuple[None, None]) -> str:
    """Return a byte range as "0-1023", "512-" or "-512" (the last bytes); "" for no start."""
    start, stop = part
    if start is None:
        return ""
    if stop is None:
        return str(start) if start < 0 else f"{start}-"
    return f"{start}-{stop - 1}"


# --- who listens -----------------------------------------------------------------------------

# Each change makes a new tuple, so that iterating needs no lock.
_observers: tuple[Observer, ...] = ()
_lock = threading.Lock()
# The observers of a block.
_here: contextvars.ContextVar[tuple[Observer, ...]] = contextvars.ContextVar(
    "aioxarray_observers", default=()
)
_log = _Log()


@after_fork
def _renew_lock() -> None:
    # A thread of the parent may have held it.
    global _lock
    _lock = threading.Lock()


def listeners() -> tuple[Observer, ...]:
    """Return the observers of the current code."""
    here = _here.get()
    return (*_observers, *here) if here else _observers


def tell_shared(part: Hashable) -> None:
    """Notify the observers that a read waits for ``part``, which another read is fetching."""
    for observer in listeners():
        observer.shared(part)


def tell_cached(part: Hashable) -> None:
    """Notify the observers that a read found ``part`` in the cache."""
    for observer in listeners():
        observer.cached(part)


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Notify ``observer`` of all requests of this process while the context is open."""
    global _observers
    with _lock:
        _observers = (*_observers, observer)
    try:
        yield
    finally:
        with _lock:
            rest = list(_observers)
            rest.remove(observer)
            _observers = tuple(rest)


@contextlib.contextmanager
def observed_here(observer: Observer) -> Iterator[None]:
    """Notify ``observer`` of the requests that are made for the code in this context.

    These are the requests of the calls in it, in any loop or thread, and of its child tasks.
    """
    _here.set((*_here.get(), observer))
    try:
        yield
    finally:
        # Not by a token: a generator may be left in another context than it was entered in.
        _here.set(tuple(each for each in _here.get() if each is not observer))


def logged_here() -> AbstractContextManager[None] | None:
    """Return a context whose requests are logged; None if the logger is off.

    It is entered for each call: asking the logger for each request would take too long.
    """
    return observed_here(_log) if _logger.isEnabledFor(logging.DEBUG) else None
