"""Chunks that several reads want at the same time, fetched and decoded once for all of them."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, WrapperStore

from aioxarray._runtime.flights import Flight, Flights, Follower

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from aioxarray._zarr.chunks import Chunk
    from aioxarray._zarr.placing import Placer

    # By key and shape, to what the chunk decodes to; None where it is missing.
    ChunkFlight = Flight[tuple[str, tuple[int, ...]], NDArray[Any] | None]
    # A chunk that this read has to read, and the flight that others may follow.
    Lead = tuple[Chunk, ChunkFlight | None]


class _Table(Flights[tuple[str, tuple[int, ...]], "NDArray[Any] | None"]):
    """The chunks that are being read from one store and decoded in one way."""

    def __init__(self, root: Hashable, holds: object) -> None:
        super().__init__()
        self.root = root
        # What the key of this table names by its address: it must not be another's meanwhile.
        self._holds = holds


_lock = threading.Lock()
# By store and decoding. A table lives as long as reads that use it.
_tables: weakref.WeakValueDictionary[Hashable, _Table] = weakref.WeakValueDictionary()


class Sharing:
    """One read's part in what is read once.

    Parameters
    ----------
    store
        Which store.
    placer
        Puts chunks in their places, also those that other reads decode.
    shared
        Whether there is something to share; only what plain functions decode is.
    """

    def __init__(self, store: Store, placer: Placer, shared: bool) -> None:
        self._placer = placer
        prepared = placer.prepared if shared else None
        self._table = None if prepared is None else _table(store, prepared)

    async def read(
        self, chunks: Sequence[Chunk], lead: Callable[[Sequence[Lead]], Awaitable[list[bool]]]
    ) -> list[bool]:
        """Read ``chunks`` by ``lead``, without those that others are reading; return which exist.

        The others are awaited after it, while nothing is held, and put in their places by those
        who read them. What these give up is read by ``lead`` in the end.
        """
        if self._table is None:
            return await lead([(chunk, None) for chunk in chunks])
        found: dict[int, bool] = {}
        todo: Sequence[int] = range(len(chunks))
        while todo:
            led: list[tuple[int, ChunkFlight]] = []
            followed: list[tuple[int, Follower[Any, bool]]] = []
            try:
                for index in todo:
                    joined = self._join(chunks[index])
                    if isinstance(joined, Follower):
                        followed.append((index, joined))
                    else:
                        led.append((index, joined))
                if led:
                    there = await lead([(chunks[index], flight) for index, flight in led])
                    found.update(zip((index for index, _ in led), there, strict=True))
                todo = []
                for index, follower in followed:
                    outcome = await follower.outcome()
                    if outcome is None:
                        todo.append(index)
                    else:
                        (found[index],) = outcome
            finally:
                for _, flight in led:
                    flight.give_up()
                for _, follower in followed:
                    await follower.withdraw()
        return [found[index] for index in range(len(chunks))]

    def _join(self, chunk: Chunk) -> Any:
        assert self._table is not None
        key, spec = chunk[:2]
        return self._table.join(
            (key, spec.shape), lambda decoded: self._placer.put_decoded(decoded, chunk)
        )

    def put(self, data: Any | None, lead: Lead) -> bool:
        """Decode ``data`` and put it in its place, here and in the reads that follow."""
        chunk, flight = lead
        if flight is None or not flight.close():
            return self._placer.put(data, chunk)
        with flight:
            decoded = None if data is None else self._placer.decoded(data, chunk)
            flight.land(decoded)
        return self._placer.put_decoded(decoded, chunk)


def forget(store: Store) -> None:
    """Have reads that begin from now on not follow those that are under way in ``store``.

    After writes: what is under way may have been read before them. Wrappers do not matter here.
    """
    with _lock:
        tables = list(_tables.values())
    if tables:
        root = _identity(_unwrapped(store))[0]
        for table in tables:
            if table.root == root:
                table.close_all()


def _table(store: Store, prepared: Hashable) -> _Table:
    name, holds = _identity(store)
    root = _unwrapped(store)
    with _lock:
        table = _tables.get((name, prepared))
        if table is None:
            table = _tables[name, prepared] = _Table(_identity(root)[0], (holds, root))
        return table


def _identity(store: Store) -> tuple[Hashable, object]:
    """Return what stores of the same data have in common, and the object it names by its address.

    Equality of stores does not tell: those in memory are equal where their values are. By exact
    type, as in `source_of`: a wrapper may give other values than what it wraps.
    """
    if type(store) is LocalStore:
        return ("local", str(store.root)), None
    if type(store) is MemoryStore:
        # Private, as in `MemorySource`: what two stores on one dictionary have in common.
        return ("memory", id(store._store_dict)), store._store_dict
    if type(store) is ObjectStore:
        return ("obstore", id(store.store)), store.store
    if type(store) is FsspecStore:
        return ("fsspec", id(store.fs), store.path), store.fs
    return ("other", id(store)), store


def _unwrapped(store: Any) -> Store:
    while isinstance(store, WrapperStore):
        store = store._store
    found: Store = store
    return found


def _reset_after_fork() -> None:
    # What was under way belongs to the parent's loops and threads.
    global _lock
    _lock = threading.Lock()
    _tables.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
