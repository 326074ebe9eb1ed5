"""Detection of changes that the caller makes to arrays while they are being saved.

The caller's code runs on while a save awaits, and NumPy arrays can be written to through any view.
A copy of all data would take as much memory again. Checksums do not: each part is summed when it is
encoded, and all parts again after the last one. If they agree, what was stored is the state of
all arrays at one moment. Otherwise the save fails before its metadata is written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import google_crc32c
import numpy as np

from aioxarray._runtime.tasks import gather
from aioxarray._zarr import tuning
from aioxarray.errors import ArrayChangedError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._runtime.threads.pool import Pool

# google_crc32c keeps the GIL: this takes it 0.1 ms.
_PIECE_BYTES = 1 << 20
# Below this, a call takes longer than copying.
_LEAST_BYTES = 16 << 10


class _Part(NamedTuple):
    """A part of a variable, and its checksum when it was recorded."""

    name: str
    values: NDArray[Any]
    crc: int
    # For objects, a copy, which keeps them alive: no other gets the address of one of them.
    kept: object


class Unchanged:
    """Checksums of parts of the caller's arrays; thread-safe.

    Memory that nobody can write to is left out, such as a file that is mapped for reading.
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._changed: set[str] = set()

    def add(self, name: str, values: Any) -> None:
        """Record ``values``, a part of the variable ``name``, before they are encoded.

        Only NumPy arrays are recorded.
        """
        if type(values) is not np.ndarray or values.size == 0 or not _is_writable(values):
            return
        kept = values.copy() if values.dtype.hasobject else None
        self._parts.append(_Part(name, values, checksum(values), kept))

    def check(self) -> None:
        """Raise `ArrayChangedError` if a part differs from what was recorded; in this thread.

        Call it once all parts are encoded.
        """
        self._check_run(self._parts)
        self._raise_changed()

    async def check_in(self, pool: Pool) -> None:
        """Do the same as `check`, in the threads of ``pool``; on the I/O loop."""
        stop = threading.Event()
        runs = iter(_runs(self._parts))

        async def work() -> None:
            for run in runs:
                await pool.run_to_end(partial(self._check_run, run, stop), stop.set)

        await gather([work] * int(pool.statistics().size))
        self._raise_changed()

    def _check_run(self, run: Sequence[_Part], stop: threading.Event | None = None) -> None:
        for part in run:
            if stop is not None and stop.is_set():
                return
            if checksum(part.values) != part.crc:
                self._changed.add(part.name)

    def _raise_changed(self) -> None:
        if self._changed:
            names = ", ".join(map(repr, sorted(self._changed)))
            raise ArrayChangedError(
                f"the array of variable {names} was changed while it was being saved, so what was "
                "written may be partly from before and partly from after the change. It counts as "
                "not saved: wait for the end of the save before you change an array, or save a "
                "copy (`obj.copy(deep=True)`)"
            )


def _runs(parts: Iterable[_Part]) -> Iterator[Sequence[_Part]]:
    """Group parts so that a thread takes a few milliseconds for each group."""
    run: list[_Part] = []
    size = 0
    for part in parts:
        run.append(part)
        size += part.values.nbytes + _LEAST_BYTES
        if size >= tuning.RUN_BYTES:
            yield run
            run, size = [], 0
    yield run


def _is_writable(values: NDArray[Any]) -> bool:
    """Return whether the memory of ``values`` can be written to, if only through another view."""
    owner: Any = values
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    if owner.base is None:
        return True
    try:
        # A file that is mapped for reading, or bytes.
        return not memoryview(owner.base).readonly
    except TypeError:
        return True


def checksum(values: NDArray[Any]) -> int:
    """Return a CRC-32C of the bytes of ``values``, in the order in which they lie in memory.

    For objects, it is that of their addresses.
    """
    if values.dtype.kind == "T":
        # The texts are elsewhere in memory.
        return _sum_of_bytes("\0".join(map(str, values.flat)).encode(errors="surrogatepass"))
    if values.dtype.hasobject:
        return _sum_of_bytes(values.tobytes())
    strides = [abs(stride) for stride in values.strides]
    order = sorted(range(values.ndim), key=strides.__getitem__, reverse=True)
    return _extended(0, values.transpose(order))


def _sum_of_bytes(data: bytes) -> int:
    return _extended(0, np.frombuffer(data, np.uint8))


def _extended(crc: int, values: NDArray[Any]) -> int:
    if values.flags.c_contiguous:
        data = values.reshape(-1).view(np.uint8)
        for start in range(0, data.size, _PIECE_BYTES):
            crc = google_crc32c.extend(crc, data[start : start + _PIECE_BYTES])
        return crc
    row = values.nbytes // len(values)
    if values.ndim > 1 and row >= _LEAST_BYTES:
        for part in values:
            crc = _extended(crc, part)
        return crc
    count = max(1, _PIECE_BYTES // row)
    for start in range(0, len(values), count):
        crc = _extended(crc, np.ascontiguousarray(values[start : start + count]))
    return crc
