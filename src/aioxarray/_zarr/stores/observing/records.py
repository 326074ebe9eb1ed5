"""Records of requests and of decoded chunks, as compact rows of which the oldest go."""

from __future__ import annotations

import itertools
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr.stores.observing.observers import (
    Observer,
    Origin,
    Part,
    cause_of,
    part_of,
    range_text,
)
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.request import DOCUMENTS, current_variable

if TYPE_CHECKING:
    from aioxarray._zarr.stores.request import Kind, Reason, Request

Phase = Literal["metadata", "index", "data", "write"]

# The key of a chunk: the path of its array, and then "c/0/1", "c.0.1", "0/1" or "0.1".
_WITH_LETTER = re.compile(r"(?:(.*?)/)?c(?:[/.]\d+)*")
_NUMBERS = re.compile(r"(?:(.*?)/)?\d+(?:[/.]\d+)*")
# The name of a variable and its group, as loads write them for errors.
_LABEL = re.compile(r"variable(?: '(.*?)')?(?: of group '(.*?)')?(?: in .*)?")


class RequestRecord(NamedTuple):
    """One attempt of a request, which has ended.

    Attributes
    ----------
    number
        The number of the record, in the order of their ends.
    asked, begun, ended
        As in `Request`, in seconds.
    kind, attempt, reason
        As in `Request`.
    store
        The name of the store, without credentials.
    key
        As in `Request`.
    nbytes
        The bytes that were read or written; 0 if there are none, or if the attempt did not succeed.
    range
        The byte range as "0-1023", "512-" or "-512" (the last bytes); "" for the whole value.
    error
        Why it failed; "" if it succeeded, None if it was cancelled.
    aim
        The aim of its call: "opened", "loaded" or "saved"; None outside of calls.
    label
        The variable, as in errors; None if that is unknown.
    """

    number: int
    asked: float
    begun: float
    ended: float
    kind: Kind
    attempt: int
    reason: Reason
    store: str
    key: str
    nbytes: int
    range: str
    error: str | None
    aim: str | None
    label: str | None

    @property
    def outcome(self) -> Literal["done", "failed", "cancelled"]:
        """How the attempt ended."""
        if self.error is None:
            return "cancelled"
        return "failed" if self.error else "done"

    @property
    def phase(self) -> Phase:
        """What the request is made for.

        Reads during an open are those of metadata and of the values of indexes. In files of other
        formats than Zarr, the two cannot be told apart.
        """
        if self.kind in ("set", "delete"):
            return "write"
        if self.kind != "get" or self.key.rpartition("/")[2] in DOCUMENTS:
            return "metadata"
        if self.aim == "opened":
            return "index" if self.key else "metadata"
        return "data"

    @property
    def place(self) -> tuple[str, str]:
        """The group and the name of the variable; "" if unknown."""
        return place_of(self.key, self.label)


class DecodeRecord(NamedTuple):
    """Chunks that were decoded in one step; the attributes are those of `Observer.decoded`."""

    number: int
    key: str
    label: str | None
    chunks: int
    nbytes: int
    begun: float
    ended: float

    @property
    def place(self) -> tuple[str, str]:
        """The group and the name of the variable; "" if unknown."""
        return place_of(self.key, self.label)


class BroughtRecord(NamedTuple):
    """A chunk for which a read made no request.

    Attributes
    ----------
    source
        "cached" if the cache had it, "shared" if another read was fetching it.
    key
        Its key; that of the shard for an inner chunk.
    label
        The variable, as in errors; None if that is unknown.
    """

    source: Literal["cached", "shared"]
    key: str
    label: str | None


class CallRecord(NamedTuple):
    """An open, a load or a save that has ended; the attributes are those of `Observer.called`."""

    aim: str
    begun: float
    ended: float


def place_of(key: str, label: str | None) -> tuple[str, str]:
    """Return the group and the name of a variable, from a key and a label as in errors.

    The key comes first: it has both for chunks and metadata documents of Zarr.
    """
    path: str | None = None
    prefix, _, name = key.rpartition("/")
    if name in DOCUMENTS:
        path = prefix
    else:
        found = _WITH_LETTER.fullmatch(key) or _NUMBERS.fullmatch(key)
        path = None if found is None else found[1]
    if path:
        group, _, name = path.rpartition("/")
        return f"/{group}", name
    labelled = None if label is None else _LABEL.fullmatch(label)
    if labelled is not None:
        return labelled[2] or "/", labelled[1] or ""
    return ("/", "") if path == "" else ("", "")


# The fields of a request, of a read of a local store, and of a decoding step in the deques.
_REQUEST_FIELDS = 15
_READ_FIELDS = 7
_DECODE_FIELDS = len(DecodeRecord._fields)
_BROUGHT_FIELDS = len(BroughtRecord._fields)


@dataclass(frozen=True, slots=True)
class RecordStatistics:
    """The records of requests of this process.

    Attributes
    ----------
    dropped
        The records that traces dropped, as they had too many.
    """

    dropped: int


_dropped = 0
_lock = threading.Lock()


@after_fork
def _renew_lock() -> None:
    # A thread of the parent may have held it.
    global _lock
    _lock = threading.Lock()


def statistics() -> RecordStatistics:
    """Return the counts since the start of the process."""
    return RecordStatistics(_dropped)


def _count_dropped() -> None:
    global _dropped
    with _lock:
        _dropped += 1


class Recorder(Observer):
    """Records requests, decoded chunks, shared reads and calls, in any thread.

    The fields of records follow each other in deques, and become objects when they are read. If an
    object were kept for each of thousands of requests, full garbage collections would follow.

    Parameters
    ----------
    most
        The most records that are kept of each; the oldest go.
    """

    def __init__(self, most: int) -> None:
        # ``extend`` with a tuple is atomic, so that the fields of two threads do not mix.
        self._requests: deque[Any] = deque(maxlen=most * _REQUEST_FIELDS)
        self._reads: deque[Any] = deque(maxlen=most * _READ_FIELDS)
        self._decodes: deque[Any] = deque(maxlen=most * _DECODE_FIELDS)
        self._brought: deque[Any] = deque(maxlen=most * _BROUGHT_FIELDS)
        self._calls: deque[CallRecord] = deque(maxlen=most)
        self._most = most
        # Each step of a counter is atomic, and needs no lock, which a fork could leave locked.
        self._request_numbers = itertools.count()
        self._decode_numbers = itertools.count()
        self._shared_numbers = itertools.count(1)
        self.shared_count = 0
        # By the id of the store: a reference to it, so that no other one has its id, and its name.
        self._names: dict[int, tuple[Callable[[], Any], str]] = {}

    @property
    def requests(self) -> list[RequestRecord]:
        """The records of requests that have ended, in the order of their ends."""
        found = [
            RequestRecord._make((*row[:10], range_text((row[10], row[11])), *row[12:]))
            for row in _rows(self._requests, _REQUEST_FIELDS)
        ]
        found += [_of_read(*row) for row in _rows(self._reads, _READ_FIELDS)]
        found.sort(key=lambda each: each.number)
        return found[-self._most :]

    @property
    def decodes(self) -> list[DecodeRecord]:
        """The records of decoded chunks."""
        return list(map(DecodeRecord._make, _rows(self._decodes, _DECODE_FIELDS)))

    @property
    def brought(self) -> list[BroughtRecord]:
        """The records of chunks that were cached, or that another read was fetching."""
        return list(map(BroughtRecord._make, _rows(self._brought, _BROUGHT_FIELDS)))

    @property
    def calls(self) -> list[CallRecord]:
        """The records of calls that have ended."""
        return list(self._calls.copy())

    def done(self, request: Request) -> None:
        self._add(request, request.nbytes or 0, "")

    def failed(self, request: Request, error: BaseException) -> None:
        self._add(request, 0, cause_of(error))

    def _add(self, request: Request, nbytes: int, error: str | None) -> None:
        wanted = request.byte_range
        start, stop = (None, None) if wanted is None else part_of(wanted)
        self._requests.extend(
            (
                self._next_number(nbytes),
                request.asked,
                request.begun,
                request.ended,
                request.kind,
                request.attempt,
                request.reason,
                self._name(request.store),
                request.key,
                nbytes,
                start,
                stop,
                error,
                request.phase,
                request.variable,
            )
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
        number = self._next_number(nbytes if error is None else 0)
        if error is None:
            self._reads.extend((number, begun, ended, origin, key, nbytes, part))
            return
        start, stop = part or (None, None)
        of = "get", 1, "first", origin.store, key, 0, start, stop, cause_of(error)
        self._requests.extend((number, begun, begun, ended, *of, origin.aim, origin.variable))

    def read_in_a_row(
        self, origin: Origin, keys: Sequence[str], sizes: Sequence[int], times: Sequence[float]
    ) -> None:
        # A list: no other thread can run while the deque is extended.
        numbers = list(map(self._next_number, sizes))
        same = itertools.repeat(origin), itertools.repeat(None)
        rows = zip(numbers, times, times[1:], same[0], keys, sizes, same[1], strict=False)
        self._reads.extend(itertools.chain.from_iterable(rows))

    def _next_number(self, nbytes: int) -> int:
        """Return the number of a new record, of a request that moved ``nbytes`` bytes."""
        number = next(self._request_numbers)
        if number >= self._most:
            _count_dropped()
        return number

    def _name(self, store: Any) -> str:
        known = self._names.get(id(store))
        if known is not None and known[0]() is store:
            return known[1]
        name = printable(store)
        try:
            reference: Callable[[], Any] = weakref.ref(store)
        except TypeError:
            # A string, or an object of a compiled client.
            def reference() -> Any:
                return store

        self._names[id(store)] = reference, name
        return name

    def shared(self, part: Hashable) -> None:
        self.shared_count = next(self._shared_numbers)
        self._bring("shared", part)

    def cached(self, part: Hashable) -> None:
        self._bring("cached", part)

    def _bring(self, source: str, part: Any) -> None:
        key, within = part[:2]
        # An index of a shard is no chunk.
        if within is not None:
            self._brought.extend((source, key, current_variable()))

    def called(self, aim: str, begun: float, ended: float) -> None:
        self._calls.append(CallRecord(aim, begun, ended))

    def decoded(
        self, key: str, variable: str | None, chunks: int, nbytes: int, begun: float, ended: float
    ) -> None:
        number = next(self._decode_numbers)
        self._decodes.extend((number, key, variable, chunks, nbytes, begun, ended))


def _rows(fields: deque[Any], count: int) -> Iterator[tuple[Any, ...]]:
    """Return the rows of ``count`` fields that follow each other."""
    each = iter(fields.copy())
    return zip(*[each] * count, strict=True)


def _of_read(
    number: int,
    begun: float,
    ended: float,
    origin: Origin,
    key: str,
    nbytes: int,
    part: Part | None,
) -> RequestRecord:
    """Return the record of a read of a local store."""
    wanted = "" if part is None else range_text(part)
    of = "get", 1, "first", origin.store, key, nbytes, wanted, "", origin.aim, origin.variable
    return RequestRecord._make((number, begun, begun, ended, *of))


def now() -> float:
    """Return the time, on the clock of all records."""
    return perf_counter()
