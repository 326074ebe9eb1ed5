"""netCDF4 and HDF5 files behind URLs: the network is waited for outside the library's lane."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Private: how xarray's h5netcdf engine opens a URL. Done here, ahead of it, so that the bytes it
# reads first are there before it takes its turn in HDF5, where one file at a time is open.
from xarray.backends import H5netcdfBackendEntrypoint
from xarray.backends.common import _open_remote_file
from xarray.core.utils import is_remote_uri

# Those of xarray's engine.
_BLOCK_BYTES = 4 << 20
_DEFAULTS: dict[str, Any] = {"cache_type": "blockcache", "block_size": _BLOCK_BYTES}


def prefetched_file(engine: Any, source: Any, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return what ``engine`` should open instead of ``source``, and with what options.

    For a URL and the h5netcdf engine that is a file object whose first and last blocks have been
    read: that is where the metadata of HDF5 files is. In a worker thread.
    """
    remote = isinstance(source, str) and is_remote_uri(source)
    if not remote or type(engine) is not H5netcdfBackendEntrypoint or options.get("driver"):
        return source, options
    rest = dict(options)
    given = rest.pop("open_kwargs", None) or {}
    caching = _DEFAULTS if given.get("cache_type", "blockcache") == "blockcache" else {}
    file = _open_remote_file(source, "rb", rest.pop("storage_options", None), {**caching, **given})
    try:
        for position in (0, max(0, (file.size or 0) - 1)):
            file.seek(position)
            file.read(1)
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file, rest
