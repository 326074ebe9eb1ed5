"""Guessing the engine for an input: as xarray does, or by requesting Zarr metadata.

xarray goes by names, and leaves every URL without a known suffix to netCDF-C. But netCDF-C reads
from web servers only. Any other URL that fsspec knows is a Zarr store, or a file whose suffix
tells its format.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.compat import BACKEND_ENTRYPOINTS, BackendEntrypoint, is_remote_uri, plugins
from aioxarray._zarr.metadata.opening import OBSTORE_SCHEMES, holds_zarr, is_store

_NETCDF_SUFFIXES = (".nc", ".nc4", ".cdf")
_HDF5_SUFFIXES = (".h5", ".hdf5", ".he5")
# URL schemes that netCDF-C opens, rather than fsspec.
_WEB = ("http", "https")
_OF_NETCDF_C = (*_WEB, "dap2", "dap4", "dods")


def guess_engine(source: Any, options: Mapping[str, Any]) -> str | type[BackendEntrypoint]:
    """Guess the engine for ``source``, which is to be opened with ``options``.

    Requests Zarr metadata if ``source`` is the URL of a web server and could be a Zarr store.

    Raises
    ------
    ValueError, FileNotFoundError
        xarray's own errors, if no engine is found.
    """
    if is_store(source):
        return "zarr"
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, str):
        if is_remote_uri(source):
            return _of_url(source, options)
        if os.path.isdir(os.path.expanduser(source)):
            return "zarr"
    return plugins.guess_engine(source)


def missing_engines(source: Any) -> list[str]:
    """Return the packages whose engines could open ``source`` but are not installed."""
    return [
        module
        for name, (module, entrypoint) in BACKEND_ENTRYPOINTS.items()
        if module is not None
        and name not in plugins.list_engines()
        and entrypoint().guess_can_open(source)
    ]


def _of_url(url: str, options: Mapping[str, Any]) -> str | type[BackendEntrypoint]:
    scheme, path = _innermost(url)
    suffix = os.path.splitext(path)[1].lower()
    engines = plugins.list_engines()
    if scheme == "file" and os.path.isdir(path):
        return "zarr"
    for_fsspec = "::" in url or (scheme not in _OF_NETCDF_C and _is_known(scheme))
    if not for_fsspec and not options.get("storage_options"):
        return _of_server(url, scheme, suffix, options)
    if suffix in (*_NETCDF_SUFFIXES, *_HDF5_SUFFIXES):
        return "h5netcdf" if "h5netcdf" in engines else plugins.guess_engine(url)
    by_suffix = (each for each in engines if each not in ("netcdf4", "h5netcdf"))
    return next((each for each in by_suffix if _guesses(engines[each], url)), "zarr")


def _guesses(engine: BackendEntrypoint, url: str) -> bool:
    try:
        return engine.guess_can_open(url)
    except Exception as error:  # noqa: BLE001 - as in xarray: an engine that fails is skipped
        warnings.warn(
            f"{type(engine).__name__} fails while guessing: {type(error).__name__}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False


def _of_server(
    url: str, scheme: str, suffix: str, options: Mapping[str, Any]
) -> str | type[BackendEntrypoint]:
    """Return the engine for a URL that netCDF-C might open, as xarray usually assumes."""
    try:
        guessed = plugins.guess_engine(url)
    except ValueError:
        if suffix in _NETCDF_SUFFIXES or scheme not in _WEB:
            raise
        return "zarr"
    if guessed == "netcdf4" and scheme in _WEB and suffix not in _NETCDF_SUFFIXES:
        group = options.get("group")
        if run_blocking(lambda: holds_zarr(url, group=group, storage_options=None)):
            return "zarr"
    return guessed


def _innermost(url: str) -> tuple[str, str]:
    """Return the scheme and path of the file or folder that a (possibly chained) URL names."""
    links = url.split("::")
    # A cache or an archive's root names no file ("simplecache::s3://a", "zip://::a.zip").
    named = [link for link in links if link.partition("://")[2]]
    scheme, separator, path = (named[0] if named else links[-1]).partition("://")
    if not separator:
        return "file", scheme
    if links[0].startswith(("zip:", "tar:", "reference:")) and not links[0].partition("://")[2]:
        # The archive's own suffix says nothing about its contents.
        path = ""
    return scheme.lower(), re.split(r"[?#]", path, maxsplit=1)[0].rstrip("/")


def _is_known(scheme: str) -> bool:
    """Return whether fsspec (or obstore, if fsspec is missing) supports URLs of this scheme."""
    try:
        from fsspec import available_protocols
    except ImportError:
        return scheme in OBSTORE_SCHEMES
    return scheme in available_protocols()
