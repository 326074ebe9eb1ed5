"""netCDF4 and HDF5 files behind URLs: the network is waited for outside the library's lane."""

from __future__ import annotations

import asyncio
import io
import math
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, Protocol, runtime_checkable

# Private: how xarray's h5netcdf engine opens a URL. Done here, ahead of it, so that the bytes it
# reads first are there before it takes its turn in HDF5, where one file at a time is open.
from xarray.backends import H5netcdfBackendEntrypoint
from xarray.backends.common import _open_remote_file
from xarray.core.utils import is_remote_uri

from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._runtime.threads import Pool

# Those of xarray's engine.
_BLOCK_BYTES = 4 << 20
_BLOCKS = 32
_DEFAULTS: dict[str, Any] = {"cache_type": "blockcache", "block_size": _BLOCK_BYTES}
# What HDF5 files begin with.
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class AheadFile(io.RawIOBase):
    """A file object whose first and last blocks are in memory: the metadata of HDF5 files is there.

    HDF5 reads it in pieces of some bytes, of which each would cost more in ``file``, a cached file
    of fsspec, than reading it. What is not in these blocks, ``file`` reads.

    Parameters
    ----------
    file
        The file.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._size: int = file.size
        self._at = 0
        self._blocks: list[tuple[int, memoryview]] = []
        fetch = _fetching(file)
        self._later = None if fetch is None else lru_cache(_BLOCKS)(partial(_block, fetch))

    def read_ahead(self) -> None:
        """Read the first and the last block; where HDF5's calls are not made."""
        last = (self._size - 1) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in dict.fromkeys((0, max(0, last))):
            self._blocks.append((start, self._block(start)))

    def _block(self, start: int) -> memoryview:
        if self._later is not None:
            return self._later(start, min(start + _BLOCK_BYTES, self._size))
        self._file.seek(start)
        return memoryview(self._file.read(_BLOCK_BYTES))

    @property
    def is_hdf5(self) -> bool:
        """Whether what was read begins as HDF5 files do."""
        return bool(self._blocks) and self._blocks[0][1][: len(_SIGNATURE)] == _SIGNATURE

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._file,)

    def __repr__(self) -> str:
        # h5py makes the name of the file of it, and xarray the "source" of its variables.
        return repr(self._file)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)
        for start, block in self._blocks:
            if start <= self._at and self._at + len(wanted) <= start + len(block):
                wanted[:] = block[self._at - start : self._at - start + len(wanted)]
                self._at += len(wanted)
                return len(wanted)
        if self._later is None:
            self._file.seek(self._at)
            count: int = self._file.readinto(wanted)
            self._at += count
            return count
        end = min(self._at + len(wanted), self._size)
        count = max(0, end - self._at)
        filled = 0
        while filled < count:
            start = (self._at + filled) // _BLOCK_BYTES * _BLOCK_BYTES
            part = self._block(start)[self._at + filled - start :][: count - filled]
            if not part:
                raise EOFError(f"{self._file!r} ended at byte {self._at + filled} of {self._size}")
            wanted[filled : filled + len(part)] = part
            filled += len(part)
        self._at += count
        return count


_Fetch = Callable[[int, int], Coroutine[Any, Any, bytes]]


@runtime_checkable
class FetchedFile(Protocol):
    """A file whose bytes can be awaited on the I/O loop."""

    size: int

    async def fetch_async(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` to before ``end``."""


def _fetching(file: Any) -> tuple[asyncio.AbstractEventLoop, _Fetch] | None:
    """Return what fetches bytes of ``file``, and its loop; None where only ``file`` itself can.

    Awaited, it can be cancelled: HDF5, which waits for it, then gets an error and returns, however
    long the server would have it wait. Reading ``file`` itself cannot.
    """
    if isinstance(file, FetchedFile):
        return io_loop(), file.fetch_async
    fs: Any = getattr(file, "fs", None)
    # Where the user asked for another cache, that is kept.
    if not _is_awaitable(fs) or not _caches_blocks(file):
        return None
    # fsspec's HTTP files check that the server sent the range.
    fetch = getattr(file, "async_fetch_range", None)
    if fetch is None:
        fetch = partial(_cat, fs, file.path)
    return fs.loop, fetch


def _is_awaitable(fs: Any) -> bool:
    return getattr(fs, "async_impl", False) and not fs.asynchronous


def _caches_blocks(file: Any) -> bool:
    return getattr(getattr(file, "cache", None), "name", None) == "blockcache"


async def _cat(fs: Any, path: str, start: int, end: int) -> bytes:
    data: bytes = await fs._cat_file(path, start=start, end=end)
    return data


def _block(fetching: tuple[asyncio.AbstractEventLoop, _Fetch], start: int, end: int) -> memoryview:
    loop, fetch = fetching
    return memoryview(run_blocking(lambda: run_on(loop, lambda: fetch(start, end))))


# Fetches that were given up take a place each until their server answers.
_fetchers = Pool("aioxarray-file", math.inf, math.inf)


@contextmanager
def cancellable(file: Any) -> Iterator[None]:
    """Have what ``file``, if it is one of fsspec's, fetches end when this thread's task does.

    Its own way waits for the server, whatever happens meanwhile, and with it wait HDF5, h5py's
    lock, and the end of the interpreter. A fetch that cannot be awaited is given up, in a thread of
    its own.
    """
    cache: Any = getattr(file, "cache", None)
    own: Callable[[int, int], bytes] | None = getattr(cache, "fetcher", None)
    if own is None:
        yield
        return
    fetch: _Fetch | None = getattr(file, "async_fetch_range", None)

    def awaited(start: int, end: int) -> bytes:
        if fetch is not None and _is_awaitable(file.fs):
            return run_blocking(lambda: run_on(file.fs.loop, lambda: fetch(start, end)))
        return run_blocking(lambda: _fetchers.run(lambda: own(start, end)))

    cache.fetcher = awaited
    try:
        yield
    finally:
        cache.fetcher = own


def read_ahead(engine: Any, source: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what ``engine`` should open instead of ``source``, and with what options.

    For a URL and the h5netcdf engine that is an `AheadFile`, or what xarray itself would open if
    there is no HDF5 file. In a worker thread.
    """
    remote = isinstance(source, str) and is_remote_uri(source)
    # An own driver, or another library than h5py, wants to open the file itself.
    other = (
        options.get("driver") or options.get("driver_kwds") or "H5NETCDF_READ_BACKEND" in os.environ
    )
    if not remote or type(engine) is not H5netcdfBackendEntrypoint or other:
        return source, options
    rest = dict(options)
    given = rest.pop("open_kwargs", None) or {}
    caching = _DEFAULTS if given.get("cache_type", "blockcache") == "blockcache" else {}
    file = _open_remote_file(source, "rb", rest.pop("storage_options", None), {**caching, **given})
    # fsspec's caches of whole files give a plain file on the disk, which has no size.
    if not getattr(file, "size", 0):
        return file, rest
    ahead = AheadFile(file)
    try:
        ahead.read_ahead()
    except BaseException:
        file.close()
        raise
    return (ahead if ahead.is_hdf5 else file), rest
