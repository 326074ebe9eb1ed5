"""netCDF4 and HDF5 files behind URLs: the network is waited for outside the library's lane."""

from __future__ import annotations

import asyncio
import copy
import io
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

# Private: how xarray's h5netcdf engine opens a URL. Done here, ahead of it, so that the bytes it
# reads first are there before it takes its turn in HDF5, where one file at a time is open.
from xarray.backends import H5netcdfBackendEntrypoint
from xarray.backends.common import _open_remote_file

# Private: what has a file object open, which its arrays are not asked for otherwise.
from xarray.backends.file_manager import PickleableFileManager
from xarray.core.utils import is_remote_uri

from aioxarray._runtime.collector import collector
from aioxarray._runtime.detours import detour
from aioxarray._runtime.threads import Pool

# For reads of files that HDF5 waits for.
_network = Pool("aioxarray-files", 32)
# Those of xarray's engine.
_BLOCK_BYTES = 4 << 20
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
        self._file: Any = file
        self._given_up: list[Any] = []
        self._size: int = file.size
        self._at = 0
        self._blocks: list[tuple[int, memoryview]] = []

    def read_ahead(self) -> None:
        """Read the first and the last block; where HDF5's calls are not made."""
        last = (self._size - 1) // _BLOCK_BYTES * _BLOCK_BYTES
        for start in dict.fromkeys((0, max(0, last))):
            self._file.seek(start)
            self._blocks.append((start, memoryview(self._file.read(_BLOCK_BYTES))))

    @property
    def is_hdf5(self) -> bool:
        """Whether what was read begins as HDF5 files do."""
        return bool(self._blocks) and self._blocks[0][1][: len(_SIGNATURE)] == _SIGNATURE

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._any_file,)

    def __repr__(self) -> str:
        # h5py makes the name of the file of it, and xarray the "source" of its variables.
        return repr(self._any_file)

    @property
    def _any_file(self) -> Any:
        return self._given_up[-1] if self._file is None else self._file

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
                count = len(wanted)
                break
        else:
            data = self._read(len(wanted))
            count = len(data)
            wanted[:count] = data
        self._at += count
        return count

    def _read(self, count: int) -> memoryview:
        """Read from the file; not here, where HDF5 holds its locks, but in another thread.

        Into memory of its own: a read that was given up must not write to that of HDF5.
        """
        file, at = self._file, self._at
        if file is None:
            # A read that was given up still uses the one before.
            file = self._file = copy.copy(self._given_up.pop())

        def read() -> memoryview:
            file.seek(at)
            data = memoryview(bytearray(count))
            return data[: file.readinto(data)]

        try:
            return detour(_network, read)
        except asyncio.CancelledError:
            self._given_up.append(file)
            self._file = None
            raise


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


def calls_on(source: Any) -> AbstractContextManager[None]:
    """Return a context for HDF5's calls on ``source``: a path, a file object or a file's manager.

    HDF5 waits, behind the lock that its finalizers want, for the threads by which a file object
    reads. No garbage is collected meanwhile, because one of them could be made to do it.
    """
    by_python = hasattr(source, "read") or isinstance(source, PickleableFileManager)
    return collector.held() if by_python else nullcontext()
