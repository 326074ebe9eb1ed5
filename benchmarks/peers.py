"""Readers of Zarr datasets into memory: aioxarray and its peers."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zarr

import aioxarray
from benchmarks import data
from benchmarks.measuring import plain_load, plain_load_async

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray
    from zarr.abc.store import Store

Values = dict[str, "NDArray[Any]"]
# Reads everything again, and returns the values or an awaitable of them.
Read = Callable[[], Values | Awaitable[Values]]


@dataclass(frozen=True)
class Source:
    """Location of a dataset, and the part of it to read.

    Attributes
    ----------
    path
        The store's directory.
    url
        Its URL on a server; None to read the directory itself.
    part
        The selection along each dimension.
    """

    path: Path
    url: str | None = None
    part: Mapping[str, slice] = field(default_factory=dict)

    def store(self) -> Store | Path:
        """Return the store for zarr to open."""
        if self.url is None:
            return self.path
        from obstore.store import HTTPStore
        from zarr.storage import ObjectStore

        client = HTTPStore.from_url(self.url, client_options={"allow_http": True})
        return ObjectStore(client, read_only=True)

    def opened(self, chunks: Any = None) -> xr.Dataset:
        """Return the part, opened by plain xarray."""
        return data.opened(self.store(), chunks=chunks).isel(self.part)


@dataclass(frozen=True)
class Peer:
    """A library that reads: ``opened`` opens a source and returns a function that reads it."""

    name: str
    opened: Callable[[Source], Read]


def _values(dataset: xr.Dataset) -> Values:
    return {str(name): variable.values for name, variable in dataset.data_vars.items()}


def _blocking(load: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[Source], Read]:
    def opened(source: Source) -> Read:
        lazy = source.opened()
        return lambda: _values(load(lazy.copy(deep=False)))

    return opened


def _awaiting(load: Callable[[xr.Dataset], Awaitable[xr.Dataset]]) -> Callable[[Source], Read]:
    def opened(source: Source) -> Read:
        lazy = source.opened()

        async def read() -> Values:
            return _values(await load(lazy.copy(deep=False)))

        return read

    return opened


def pipeline(path: str, **more: Any) -> AbstractContextManager[Any]:
    """Make zarr use another codec pipeline for arrays opened in the context."""
    module, _, name = path.rpartition(".")
    if not hasattr(importlib.import_module(module), name):
        raise Unavailable(f"this version of {module.partition('.')[0]} has no {name}")
    settings: AbstractContextManager[Any] = zarr.config.set(
        {f"codec_pipeline.{key}": value for key, value in {"path": path, **more}.items()}
    )
    return settings


def _with_pipeline(path: str, **more: Any) -> Callable[[Source], Read]:
    """Load with plain xarray, with zarr set to use another pipeline."""

    def opened(source: Source) -> Read:
        with pipeline(path, **more):
            lazy = source.opened()

        def read() -> Values:
            with pipeline(path, **more):
                return _values(plain_load(lazy.copy(deep=False)))

        return read

    return opened


def tensorstore_arrays(source: Source, context: Any = None) -> dict[str, Any]:
    """Return the variables of ``source``, opened by TensorStore in ``context``, whole."""
    import tensorstore

    if source.url is None:
        place: dict[str, str] = {"driver": "file", "path": f"{source.path}/"}
    else:
        place = {"driver": "http", "base_url": f"{source.url}/"}
    arrays = {}
    for name in source.opened().data_vars:
        kvstore = {**place, "path": f"{place.get('path', '')}{name}/"}
        spec = {"driver": "zarr3", "kvstore": kvstore}
        array = tensorstore.open(spec, open=True, context=context).result()
        arrays[str(name)] = array
    return arrays


def _tensorstore(source: Source) -> Read:
    arrays = tensorstore_arrays(source)
    for name, variable in source.opened().data_vars.items():
        part = tuple(source.part.get(str(dim), slice(None)) for dim in variable.dims)
        arrays[str(name)] = arrays[str(name)][part]

    def read() -> Values:
        reads = {name: array.read() for name, array in arrays.items()}
        return {name: each.result() for name, each in reads.items()}

    return read


def _xarray_tensorstore(source: Source) -> Read:
    import xarray_tensorstore

    lazy = xarray_tensorstore.open_zarr(source.url or str(source.path)).isel(source.part)
    return lambda: _values(xarray_tensorstore.read(lazy).compute())


def _dask(source: Source) -> Read:
    lazy = source.opened(chunks={})
    return lambda: _values(lazy.compute())


class Unavailable(Exception):
    """A peer is not installed, or cannot read this source."""


OURS = Peer("aioxarray", _awaiting(aioxarray.load_async))
LOAD = Peer("load", _blocking(plain_load))
LOAD_ASYNC = Peer("load_async", _awaiting(plain_load_async))
FUSED_PATH = "zarr.core.codec_pipeline.FusedCodecPipeline"
FUSED = Peer("fused", _with_pipeline(FUSED_PATH))
# Strict: otherwise it falls back to zarr's own pipeline, with a warning at most.
ZARRS = Peer("zarrs", _with_pipeline("zarrs.ZarrsCodecPipeline", strict=True))
TENSORSTORE = Peer("TensorStore", _tensorstore)
XARRAY_TENSORSTORE = Peer("xarray-ts", _xarray_tensorstore)
DASK = Peer("dask", _dask)

XARRAY = (LOAD, LOAD_ASYNC)
PEERS = (OURS, *XARRAY, FUSED, ZARRS, TENSORSTORE, XARRAY_TENSORSTORE, DASK)


def opened(peer: Peer, source: Source) -> Read:
    """Return a function that reads ``source`` with ``peer``.

    Raises
    ------
    Unavailable
        If the peer cannot read it, with the reason. aioxarray's own errors are raised unchanged.
    """
    try:
        return peer.opened(source)
    except ImportError as error:
        raise Unavailable(f"{error.name or error} is not installed") from error
    except Exception as error:
        if peer is OURS:
            raise
        raise Unavailable(reason(error)) from error


def reason(error: Exception) -> str:
    """Return one line that says why a peer cannot read."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text[:100]}"
