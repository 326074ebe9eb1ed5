"""Data for the benchmarks, generated once per run, in memory or in a temporary directory."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, GzipCodec
from zarr.storage import MemoryStore

import aioxarray
from benchmarks.measuring import Options

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store

MISSING = -32768

COMPRESSORS: dict[str, dict[str, Any]] = {
    "zstd": {},  # the default of xarray and zarr
    "blosc": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")},
    "gzip": {"compressors": GzipCodec(level=1)},
    "none": {"compressors": None},
}
SHARD, SHARD_INNER = (1, 2048, 2048), (1, 128, 256)
# Selects the first inner chunk of each shard.
CORNERS = {"y": slice(0, 128), "x": slice(0, 256)}


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings, such as those about features that no Zarr specification covers yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def smooth(*shape: int, dtype: str = "float64") -> NDArray[Any]:
    """Return values that compress about as well as measured fields."""
    steps = np.random.default_rng(0).normal(size=shape[-2:])
    field = np.round(steps.cumsum(axis=0).cumsum(axis=1), 2)
    first = np.arange(shape[0] if len(shape) > 2 else 1).reshape(-1, 1, 1)
    values: NDArray[Any] = (field + first).astype(dtype).reshape(shape)
    return values


def many_variables(variables: int, chunks_a_side: int = 1, prefix: str = "v") -> xr.Dataset:
    """Return variables of ``chunks_a_side**2`` chunks of 10 KB each."""
    side = 50 * chunks_a_side
    field = smooth(side, side, dtype="float32")
    return xr.Dataset({f"{prefix}{i}": (("y", "x"), field + i) for i in range(variables)})


def in_memory(
    obj: xr.Dataset | xr.DataTree,
    shards: bool = False,
    chunks: tuple[int, ...] | None = None,
) -> MemoryStore:
    """Store ``obj`` in memory, in chunks of 50 × 50, or in shards of 4 × 4 such chunks.

    With ``chunks`` in chunks of that shape.
    """
    each: dict[str, Any] = {"chunks": chunks or (50, 50)}
    if shards:
        each["shards"] = (200, 200)
    store = MemoryStore()
    with quiet():
        if isinstance(obj, xr.DataTree):
            nodes = obj.subtree
            obj.to_zarr(store, encoding={node.path: _all(node.dataset, each) for node in nodes})
        else:
            obj.to_zarr(store, encoding=_all(obj, each))
    return store


def _all(obj: xr.Dataset, encoding: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {str(name): encoding for name in obj.data_vars}


def store_of(groups: dict[str, xr.Dataset], shards: bool = False) -> MemoryStore:
    """Store datasets in memory, each in its own group."""
    return in_memory(xr.DataTree.from_dict({f"/{k}": v for k, v in groups.items()}), shards)


def tree(nodes: int, variables: int) -> xr.DataTree:
    """Return a tree of a root and its children; each node has single-chunk variables."""
    one = many_variables(variables)
    return xr.DataTree.from_dict({"/": one, **{f"/node{i}": one for i in range(1, nodes)}})


def opened(store: Store | Path, group: str | None = None, chunks: Any = None) -> xr.Dataset:
    """Open a dataset with plain xarray; by default lazily and without dask."""
    with quiet():
        dataset: xr.Dataset = xr.open_zarr(store, group=group, chunks=chunks)
    return dataset


def opened_tree(store: Store) -> xr.DataTree:
    """Open a tree with plain xarray, lazily."""
    # xarray accepts a zarr store here, but its type hints do not say so.
    anything: Any = store
    with quiet():
        return xr.open_datatree(anything, engine="zarr")


def _numbers(variables: int) -> xr.Dataset:
    return xr.Dataset({f"v{i}": ("x", np.arange(8.0) + i) for i in range(variables)})


class Files:
    """Datasets on disk, each generated on first use.

    Parameters
    ----------
    root
        A temporary directory.
    options
        Options of the run; the datasets of a quick run are small.
    """

    def __init__(self, root: Path, options: Options) -> None:
        self.root = root
        self._options = options

    def folder(self, name: str) -> Path:
        """Return an empty folder for a group's own files."""
        path = self.root / name
        path.mkdir()
        return path

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        path = self.root / name
        if not path.exists():
            make(path)
            # Otherwise the operating system writes it to disk half a minute later and slows down
            # the library that is being measured.
            if hasattr(os, "sync"):
                os.sync()
        return path

    def large_chunks(self, name: str = "zstd") -> Path:
        """Return 1 GB: 4 variables of 128 chunks of 2 MB, with one of the `COMPRESSORS`."""
        values = partial(smooth, self._options.scaled(128), 512, 512)
        encoding = {"chunks": (1, 512, 512), **COMPRESSORS[name]}
        return self._four(f"large_chunks_{name}", values, encoding)

    def few_large_chunks(self, name: str = "zstd") -> Path:
        """Return 128 MB: one variable of 64 chunks of 2 MB, with one of the `COMPRESSORS`."""

        def make(path: Path) -> None:
            values = smooth(self._options.scaled(64), 512, 512)
            self._write(path, values, {"chunks": (1, 512, 512), **COMPRESSORS[name]})

        return self._made(f"few_large_chunks_{name}.zarr", make)

    def many_variables(self) -> Path:
        """10,000 variables of one chunk of 8 numbers."""
        ds = _numbers(self._options.scaled(10_000))

        def make(path: Path) -> None:
            with quiet():
                aioxarray.to_zarr(ds, path, zarr_format=2)

        return self._made("many_variables", make)

    def many_groups(self) -> Path:
        """1000 groups of 10 variables of one chunk of 8 numbers."""
        one = _numbers(10)
        tree = xr.DataTree.from_dict({f"/g{i}": one for i in range(self._options.scaled(1000))})

        def make(path: Path) -> None:
            with quiet():
                aioxarray.to_zarr(tree, path, zarr_format=2)

        return self._made("many_groups", make)

    def small_chunks(self) -> Path:
        """Return 4 variables of 2048 chunks of 4 KB, zstd."""
        values = partial(smooth, self._options.scaled(2048), 32, 32, dtype="float32")
        return self._four("small_chunks", values, {"chunks": (1, 32, 32)})

    def _four(
        self, name: str, values: Callable[[], NDArray[Any]], encoding: dict[str, Any]
    ) -> Path:

        def make(path: Path) -> None:
            self._write(path, values(), encoding)
            # Compressing is slow: only one variable is compressed, and the others are copies.
            for i in range(1, 4):
                shutil.copytree(path / "v0", path / f"v{i}")
            with quiet():
                zarr.consolidate_metadata(path)

        return self._made(f"{name}.zarr", make)

    def medium_chunks(self) -> Path:
        """Return 512 MB: one variable of 2048 chunks of 256 KB, zstd."""

        def make(path: Path) -> None:
            values = smooth(self._options.scaled(16), *SHARD[1:])
            self._write(path, values, {"chunks": SHARD_INNER})

        return self._made("medium_chunks.zarr", make)

    def shards(self) -> Path:
        """Return 512 MB: one variable in 16 shards of 128 inner chunks of 256 KB, zstd."""
        return self._shards("shards.zarr", 16)

    def few_shards(self) -> Path:
        """Return 192 MB: the same in 6 shards."""
        return self._shards("few_shards.zarr", 6)

    def _shards(self, name: str, count: int) -> Path:
        def make(path: Path) -> None:
            values = smooth(self._options.scaled(count), *SHARD[1:])
            self._write(path, values, {"chunks": SHARD_INNER, "shards": SHARD})

        return self._made(name, make)

    def many_chunks(self, count: int) -> Path:
        """Return one variable of ``count`` chunks of 1 KB, zstd: a hundred, repeated."""

        def make(path: Path) -> None:
            values = smooth(100, 256, dtype="float32").ravel()
            self._write(path, values, {"chunks": (256,)})
            document = json.loads((path / "v0" / "zarr.json").read_text())
            document["shape"] = [256 * count]
            (path / "v0" / "zarr.json").write_text(json.dumps(document))
            chunks = [(path / "v0" / "c" / str(i)).read_bytes() for i in range(100)]
            for i in range(100, count):
                (path / "v0" / "c" / str(i)).write_bytes(chunks[i % 100])
            with quiet():
                zarr.consolidate_metadata(path)

        return self._made("many_chunks.zarr", make)

    def _write(self, path: Path, values: NDArray[Any], encoding: dict[str, Any]) -> None:
        data = xr.Dataset({"v0": (("t", "y", "x")[: values.ndim], values)})
        with quiet():
            data.to_zarr(path, encoding=_all(data, encoding))

    def packed(self) -> Path:
        """Return one variable of 33 MB, decoded 132 MB: int16 with scale, offset, fill value."""

        def make(path: Path) -> None:
            count = self._options.scaled(16)
            values = smooth(count, 1024, 1024)
            values /= abs(values).max()
            values[:, ::7, ::5] = np.nan
            packing = {"dtype": "int16", "scale_factor": 1e-4, "add_offset": 0.5}
            encoding = {**packing, "_FillValue": MISSING, "chunks": (1, 1024, 1024)}
            with quiet():
                data = xr.Dataset({"packed": (("t", "y", "x"), values)})
                data.to_zarr(path, encoding={"packed": encoding})

        return self._made("packed.zarr", make)

    def netcdf(self) -> Path:
        """Return 200 MB: 4 variables in a compressed netCDF4 file."""

        def make(path: Path) -> None:
            values = smooth(self._options.scaled(48), 512, 512, dtype="float32")
            encoding = {"zlib": True, "complevel": 1, "chunksizes": (1, 512, 512)}
            data = xr.Dataset({f"v{i}": (("t", "y", "x"), values) for i in range(4)})
            data.to_netcdf(path, engine="netcdf4", encoding=_all(data, encoding))

        return self._made("data.nc", make)
