"""Reading many small variables in one worker thread, if blocking calls can read them.

For a variable of a few values, a hop to a thread and back, a task, and zarr's asynchronous indexing
cost more than reading it. So such variables are read and decoded in runs, sequentially, in the
thread of their backend: a decoding thread for Zarr in memory and in local files, the library's lane
for netCDF.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from aioxarray._xarray.arrays.plan import Read, base_of, plan
from aioxarray._xarray.arrays.read import in_lane, is_zarr, lane_key, read_by_plain_call
from aioxarray._xarray.lazy.variables import Lazy
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.arrays import (
    is_small_block,
    read_small_block,
    reads_by_plain_calls,
)
from aioxarray._zarr.selection import is_basic
from aioxarray._zarr.stores.grants import Grants

# The value of a variable that has to be read in another way.
UNREAD = object()
# The place of Zarr arrays; other places are the keys of lanes.
_ZARR = object()


class Sorting:
    """Groups lazy arrays that can be read together by place, and collects the rest."""

    def __init__(self) -> None:
        self._places: dict[Hashable, list[int]] = {}
        self._rest: list[int] = []

    def each(
        self, lazies: Sequence[Lazy], indexes: Iterable[int], *, keeps: bool
    ) -> Iterator[None]:
        """Sort the arrays at ``indexes`` of ``lazies``, one per iteration.

        ``keeps`` tells whether decoded chunks are kept for other reads.
        """
        for index in indexes:
            yield
            place = _place_of(lazies[index], keeps=keeps)
            members = self._rest if place is None else self._places.setdefault(place, [])
            members.append(index)

    def done(self) -> tuple[dict[Hashable, list[int]], list[int]]:
        """Return the indexes by place, and the indexes of the rest."""
        for place, members in list(self._places.items()):
            if len(members) < tuning.FEW_VARIABLES:
                self._rest += self._places.pop(place)
        return self._places, sorted(self._rest)


def _place_of(lazy: Lazy, *, keeps: bool) -> Hashable | None:
    if lazy.nbytes > tuning.INLINE_BYTES:
        return None
    array: Any = base_of(lazy.data)
    if array is None:
        return None
    if is_zarr(array):
        # If chunks are kept, reads must go through the codec pipeline.
        local = not keeps and reads_by_plain_calls(array._array)
        return _ZARR if local else None
    return lane_key(array)


async def read_run(
    place: Hashable, lazies: Sequence[Lazy], run: Sequence[int], grants: Grants
) -> list[Any]:
    """Return the values of the first arrays of ``run``, `UNREAD` for those to read in another way.

    The result has at least one value, and ends when the run takes too long. Cancelling ends the run
    after the current variable.
    """
    stop = threading.Event()
    read = _read_zarr if place is _ZARR else read_by_plain_call
    work = partial(_read_run, read, lazies, run, stop)
    if place is _ZARR:
        # This work holds the GIL; several threads would only pass it back and forth.
        return await grants.in_thread(work, tuning.INLINE_BYTES, stop.set, exclusive=True)
    try:
        return await in_lane(place, work)
    except asyncio.CancelledError:
        stop.set()
        raise


def _read_run(
    read: Callable[[Read], Any], lazies: Sequence[Lazy], run: Sequence[int], stop: threading.Event
) -> list[Any]:
    values: list[Any] = []
    until = perf_counter() + tuning.TURN_S
    for index in run:
        lazy = lazies[index]
        try:
            values.append(_value(read, lazy))
        except Exception as error:
            error.add_note(f"while loading {lazy.label}")
            raise
        if stop.is_set() or perf_counter() >= until:
            break
    return values


def _value(read: Callable[[Read], Any], lazy: Lazy) -> Any:
    parts = plan(lazy.data)
    if not isinstance(parts.source, Read):
        return UNREAD
    value = read(parts.source)
    return UNREAD if value is UNREAD else parts.finish(value)


def _read_zarr(source: Read) -> Any:
    array: Any = source.array
    key = source.key.tuple
    block = read_small_block(array._array, key) if is_basic(key) else None
    return UNREAD if block is None else block


def reads_small_block(source: Read) -> bool:
    """Return whether a run can read ``source``, a Zarr array, which was sorted into one."""
    array: Any = source.array
    return is_basic(source.key.tuple) and is_small_block(array._array, source.key.tuple)
