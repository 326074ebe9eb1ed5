"""Reading very many small chunks of local files with TensorStore, if that is installed.

Reading a chunk of a few KB is a dozen short steps, between which Python passes its lock from thread
to thread, so that sixteen threads are as slow as one. TensorStore makes these steps without the
lock. It reads a block in runs of chunks, each by one call, within the budgets of the load. Whatever
it cannot do, or fails at, is left to the reads of this package.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numcodecs
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.storage import LocalStore

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.plan import ReadPlan, Way
from aioxarray._zarr.compat import default_buffer_prototype
from aioxarray._zarr.stores.calls import current_call
from aioxarray._zarr.stores.observing.observers import Origin, listeners
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.request import current_variable
from aioxarray.config import has_tensorstore, memory_limit, thread_count, uses_tensorstore

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.chunks.result import Outline, Result
    from aioxarray._zarr.selection import Block, Run
    from aioxarray._zarr.stores.grants import Grants

_logger = logging.getLogger(__name__)

# Codecs that both decode to the same values. Types must match exactly, as in `steps`.
_CODECS = (BytesCodec, TransposeCodec, ZstdCodec, BloscCodec, GzipCodec, Crc32cCodec)
_COMPRESSORS = (type(None), numcodecs.Zstd, numcodecs.Blosc, numcodecs.Zlib)

# Whether this process was forked from one that had imported tensorstore, which then aborts the
# process at its first use.
_is_lost = False


@after_fork
def _lose() -> None:
    global _is_lost
    _is_lost = _is_lost or "tensorstore" in sys.modules


@dataclass(frozen=True)
class Engine:
    """The reads of TensorStore for one plan.

    Attributes
    ----------
    inner
        The asynchronous array.
    block
        The block that is read.
    most
        The most chunks of a run.
    held
        The most bytes that a run holds: its chunks, encoded and decoded.
    """

    inner: Any
    block: Block
    most: int
    held: int

    async def read(
        self, result: Result, grants: Grants, advance: Callable[[int], None], store: Any
    ) -> int:
        """Read into ``result``; return the number of chunks, in C order, that are done.

        That is less than all chunks if TensorStore fails at one. ``advance`` is called with the
        number of further chunks that are done. Cancelling waits for the end of a run.
        """
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        tell = _teller(store, self.inner.store_path.path)
        runs = self.block.runs(self.most)
        pair: list[tuple[Any, Any]] = []
        done = 0

        def turn() -> bool:
            """Read runs until other work waits; return whether that was all."""
            nonlocal done
            until = perf_counter() + tuning.TURN_S
            try:
                if not pair:
                    pair.append(self._opened(result.out.as_numpy_array(), grants.thread_count))
                for run in runs:
                    begun = perf_counter()
                    _read_run(*pair[0], run)
                    done += run.chunks
                    loop.call_soon_threadsafe(advance, run.chunks)
                    tell(run, done, begun, result)
                    if stop.is_set() or (perf_counter() >= until and grants.is_wanted()):
                        return False
            except Exception as error:  # noqa: BLE001 - the reads of this package raise their own
                _logger.debug("tensorstore leaves the rest of a read to aioxarray: %s", error)
            return True

        # Its threads take the places of all decoding threads.
        while not await grants.in_thread(turn, self.held, stop.set, exclusive=True):
            pass
        return done

    def _opened(self, array: NDArray[Any], threads: int) -> tuple[Any, Any]:
        """Return the stored array, and ``array``, for TensorStore."""
        tensorstore = _tensorstore()
        context = _context(threads)
        path = self.inner.store_path
        where = os.path.join(path.store.root, path.path, "")
        spec = {**_driver(self.inner.metadata), "kvstore": {"driver": "file", "path": where}}
        # No request for the metadata, which is here, and may be newer than that of the file.
        opened = tensorstore.open(spec, open=True, assume_metadata=True, context=context)
        return opened.result(), tensorstore.array(array, copy=False, write=True, context=context)


def _read_run(source: Any, target: Any, run: Run) -> None:
    whole = source[run.inside]
    place = target[run.outside]
    # A part keeps its indices, which must be the same on both sides.
    whole = whole[_tensorstore().d[:].translate_to[place.origin]] if run.outside else whole
    place.write(whole).result()


def _teller(store: Any, path: str) -> Callable[[Run, int, float, Result], None]:
    """Return a function that tells observers of a run, as of one read and one decoding.

    TensorStore does not tell how many bytes it reads: those of the decoded chunks count.
    """
    observers = listeners()
    if not observers:
        return lambda run, done, begun, result: None
    call = current_call()
    origin = Origin(printable(store), None if call is None else call.aim, current_variable())

    def tell(run: Run, done: int, begun: float, result: Result) -> None:
        ended = perf_counter()
        nbytes = result.out.as_numpy_array()[run.outside].nbytes
        key = f"{path}: chunks {done - run.chunks} to {done - 1}, by tensorstore"
        for observer in observers:
            observer.read(origin, key, None, nbytes, begun, ended, None)
            observer.decoded(key, origin.variable, run.chunks, nbytes, begun, ended)

    return tell


def with_engine(plan: ReadPlan, inner: Any, block: Block) -> ReadPlan:
    """Return ``plan`` with reads by TensorStore, if it can and should make them.

    Parameters
    ----------
    plan
        The plan for ``block`` with the reads of this package, which has to stand in if it fails.
    inner
        The asynchronous array.
    block
        The block.
    """
    if plan.way is not Way.THREADS or plan.shards is not None or plan.shared_as is not None:
        return plan
    wanted, size = uses_tensorstore(), plan.chunk_nbytes
    if wanted is False or _is_lost or type(plan.store) is not LocalStore:
        return plan
    is_faster = (
        plan.count >= tuning.ENGINE_CHUNKS
        and size <= tuning.ENGINE_CHUNK_BYTES
        and thread_count() >= tuning.ENGINE_THREADS
    )
    if not (is_faster or wanted) or not has_tensorstore():
        return plan
    if not (block.is_gapless and _has_same_values(inner.metadata, plan.outline)):
        return plan
    # Twice, for encoded and decoded chunks. A larger chunk is read by the ways that hold one each.
    room = min(tuning.ENGINE_RUN_BYTES, memory_limit() / 2)
    most = int(min(tuning.ENGINE_RUN_CHUNKS, room // max(1, size)))
    if most < 1:
        return plan
    engine = Engine(inner, block, most, 2 * size * min(most, plan.count))
    reason = "many threads read small chunks faster without Python's lock (setting tensorstore)"
    if not is_faster:
        reason = "the setting tensorstore is True"
    return replace(plan, way=Way.TENSORSTORE, reason=reason, engine=engine)


@functools.cache
def _tensorstore() -> Any:
    return importlib.import_module("tensorstore")


@functools.lru_cache(maxsize=4)
def _context(threads: int) -> Any:
    """Return the context of reads by up to ``threads`` threads: some read files, others decode."""
    decoding = max(1, threads - threads // 2)
    return _tensorstore().Context(
        {
            "file_io_concurrency": {"limit": max(1, threads // 2)},
            "data_copy_concurrency": {"limit": decoding},
        }
    )


def _has_same_values(metadata: Any, outline: Outline) -> bool:
    """Return whether TensorStore decodes an array of ``metadata`` to the same values."""
    dtype = outline.dtype
    if outline.prepared is None or not outline.in_memory or not outline.views:
        return False
    # Numbers of the machine's own byte order in the result; stored, they may have another one.
    if dtype.kind not in "biufc" or not dtype.isnative or dtype.itemsize > 16:
        return False
    if hasattr(metadata, "codecs"):
        return all(type(codec) in _CODECS for codec in metadata.codecs)
    return not metadata.filters and type(metadata.compressor) in _COMPRESSORS


def _driver(metadata: Any) -> dict[str, Any]:
    """Return the driver of TensorStore for an array, with its metadata."""
    ((name, buffer), *_) = metadata.to_buffer_dict(default_buffer_prototype()).items()
    document = json.loads(buffer.to_bytes())
    # User's attributes, perhaps of a megabyte.
    document.pop("attributes", None)
    return {"driver": "zarr3" if name == "zarr.json" else "zarr", "metadata": document}
