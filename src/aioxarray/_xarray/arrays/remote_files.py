"""netCDF4 and HDF5 files behind URLs, with their ends fetched before they enter HDF5's lane."""

from __future__ import annotations

import asyncio
import io
import math
import os
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

from zarr.abc.store import RangeByteRequest

from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._runtime.threads.pool import Pool
from aioxarray._xarray.compat import H5netcdfBackendEntrypoint, _open_remote_file, is_remote_uri
from aioxarray._zarr.stores.request import Request, send, send_alone

# The defaults of xarray's engine.
_BLOCK_BYTES = 4 << 20
_BLOCKS = 32
_DEFAULTS: dict[str, Any] = {"cache_type": "blockcache", "block_size": _BLOCK_BYTES}
# The first bytes of an HDF5 file.
_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class ReadAheadFile(io.RawIOBase):
    """A file object with its first and last blocks in memory: most HDF5 metadata is there.

    HDF5 reads metadata a few bytes at a time. In ``file``, a cached fsspec file, the overhead of
    each such read would exceed the read itself. All other blocks are read on demand.

    Parameters
    ----------
    file
        A file of fsspec, or a `FetchedFile`.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._size: int = file.size
        self._at = 0
        self._blocks: list[tuple[int, memoryview]] = []
        fetch = _fetching(file)
        self._later = None if fetch is None else lru_cache(_BLOCKS)(partial(_block, fetch))

    def read_ahead(self) -> None:
        """Read the first and the last block into memory; not in HDF5's lane."""
        last = (self._size - 1) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in dict.fromkeys((0, max(0, last))):
            self._blocks.append((start, self._block(start)))

    def _block(self, start: int) -> memoryview:
        if self._later is not None:
            return self._later(start, min(start + _BLOCK_BYTES, self._size))
        with self._request(start, _BLOCK_BYTES):
            self._file.seek(start)
            return memoryview(self._file.read(_BLOCK_BYTES))

    def _request(self, start: int, nbytes: int) -> Request:
        """Return the request for a plain read of ``file``: one that takes no place in the limit."""
        return Request("get", self._file, "", RangeByteRequest(start, start + nbytes), nbytes)

    @property
    def is_hdf5(self) -> bool:
        """Whether the bytes that were read ahead begin with HDF5's signature."""
        return bool(self._blocks) and self._blocks[0][1][: len(_SIGNATURE)] == _SIGNATURE

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._file,)

    def __repr__(self) -> str:
        # h5py uses this as the name of the file, and xarray as the "source" of its variables.
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
            with self._request(self._at, len(wanted)):
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
    """A file whose bytes can be fetched asynchronously on the I/O loop."""

    size: int

    async def fetch_async(self, start: int, end: int) -> bytes:
        """Return the bytes from ``start`` up to, but not including, ``end``."""


class _Fetching(NamedTuple):
    """A file whose bytes can be fetched asynchronously, the loop for that, and the function."""

    file: Any
    loop: asyncio.AbstractEventLoop
    fetch: _Fetch


def _fetching(file: Any) -> _Fetching | None:
    """Return how to fetch bytes of ``file`` asynchronously; None if that is impossible.

    Unlike a read of ``file``, such a fetch can be cancelled: HDF5, which waits for it, then gets an
    error and returns, however slow the server is.
    """
    if isinstance(file, FetchedFile):
        return _Fetching(file, io_loop(), file.fetch_async)
    fs: Any = getattr(file, "fs", None)
    # If the user asked for another cache, keep that.
    cache = getattr(getattr(file, "cache", None), "name", None)
    if not _is_awaitable(fs) or cache != "blockcache":
        return None
    # fsspec's HTTP files check that the server sent the range.
    fetch = getattr(file, "async_fetch_range", None)
    if fetch is None:
        fetch = partial(_cat, fs, file.path)
    return _Fetching(file, fs.loop, fetch)


def _is_awaitable(fs: Any) -> bool:
    return getattr(fs, "async_impl", False) and not fs.asynchronous


async def _cat(fs: Any, path: str, start: int, end: int) -> bytes:
    data: bytes = await fs._cat_file(path, start=start, end=end)
    return data


def _block(fetching: _Fetching, start: int, end: int) -> memoryview:
    file, loop, fetch = fetching
    request = Request("get", file, "", RangeByteRequest(start, end), end - start)

    async def send() -> bytes:
        return await send_alone(request, lambda: fetch(start, end))

    return memoryview(run_blocking(lambda: run_on(loop, send)))


# Without a limit: an abandoned fetch occupies a thread until its server answers.
_fetchers = Pool("aioxarray-file", math.inf, math.inf)


@contextmanager
def cancellable(file: Any) -> Iterator[None]:
    """Return a context in which cancelling the work of this thread ends fetches of ``file``.

    Otherwise fsspec waits for the server, and with it HDF5, every thread that needs h5py's lock,
    and the exit of the interpreter. A fetch that is not asynchronous runs in a separate thread,
    which is abandoned. Does nothing unless ``file`` is a file of fsspec.
    """
    cache: Any = getattr(file, "cache", None)
    own: Callable[[int, int], bytes] | None = getattr(cache, "fetcher", None)
    if own is None:
        yield
        return
    fetch: _Fetch | None = getattr(file, "async_fetch_range", None)

    def awaited(start: int, end: int) -> bytes:
        if fetch is not None and _is_awaitable(file.fs):
            return bytes(_block(_Fetching(file, file.fs.loop, fetch), start, end))
        with Request("get", file, "", RangeByteRequest(start, end), end - start):
            return run_blocking(lambda: _fetchers.run(lambda: own(start, end)))

    cache.fetcher = awaited
    try:
        yield
    finally:
        cache.fetcher = own


def read_ahead(engine: Any, source: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the source and the options that ``engine`` should open instead of those given.

    For a URL and the h5netcdf engine, the source is a `ReadAheadFile`, or the file that xarray
    itself would open if it is not HDF5. In a worker thread.
    """
    remote = isinstance(source, str) and is_remote_uri(source)
    # Other drivers, and libraries other than h5py, open the file themselves.
    other = (
        options.get("driver") or options.get("driver_kwds") or "H5NETCDF_READ_BACKEND" in os.environ
    )
    if not remote or type(engine) is not H5netcdfBackendEntrypoint or other:
        return source, options
    rest = dict(options)
    given = rest.pop("open_kwargs", None) or {}
    caching = _DEFAULTS if given.get("cache_type", "blockcache") == "blockcache" else {}
    file = _opened(source, rest.pop("storage_options", None), {**caching, **given})
    # fsspec's whole-file caches return a plain local file, which has no ``size``.
    if not getattr(file, "size", 0):
        return file, rest
    ahead = ReadAheadFile(file)
    try:
        ahead.read_ahead()
    except BaseException:
        file.close()
        raise
    return (ahead if ahead.is_hdf5 else file), rest


def _opened(url: str, storage_options: Any, options: dict[str, Any]) -> Any:
    """Open a remote file with fsspec, which asks the server for its size.

    That takes no place in the limit: it cannot be cancelled, and a stalled server would keep the
    place. So it runs in a separate thread, which is abandoned.
    """

    def open_file() -> Any:
        return _open_remote_file(url, "rb", storage_options, options)

    async def ask() -> Any:
        return await send(Request("exists", url, ""), None, partial(_fetchers.run, open_file))

    return run_blocking(ask)
