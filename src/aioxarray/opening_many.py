"""Opening of many files or stores as one dataset: `open_mfdataset`."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr

from aioxarray._runtime.loops import blocking
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.opening.combining import combine_by_coords, combine_nested, concat_dims
from aioxarray._xarray.opening.explained import noting
from aioxarray._xarray.opening.many import closing_all, find_paths
from aioxarray._zarr.stores.printable import printable, without_secrets
from aioxarray.loading import load_async
from aioxarray.opening import as_call, called_by, close, closing_on_error, open_dataset_async

# xarray's own default objects: by them it detects missing arguments, and warns of future changes.
_DEFAULT = {
    name: each.default for name, each in inspect.signature(xr.open_mfdataset).parameters.items()
}


async def open_mfdataset_async(
    paths: Any,
    chunks: Any = "engine",
    concat_dim: Any = None,
    compat: Any = _DEFAULT["compat"],
    preprocess: Callable[[xr.Dataset], Any] | None = None,
    engine: Any = None,
    data_vars: Any = _DEFAULT["data_vars"],
    coords: Any = _DEFAULT["coords"],
    combine: str = "by_coords",
    parallel: bool = False,
    join: Any = _DEFAULT["join"],
    attrs_file: str | os.PathLike[str] | None = None,
    combine_attrs: Any = "override",
    errors: str = "raise",
    *,
    timeout: float | None = None,
    **options: Any,
) -> xr.Dataset:
    """Open many files or stores concurrently as a single dataset.

    Parameters
    ----------
    paths, concat_dim, compat, engine, data_vars, coords, combine, join, attrs_file, \
    combine_attrs, errors
        As in `xarray.open_mfdataset`. ``paths`` may also be a (nested) list of Zarr stores.
    chunks
        As in xarray: by default, dask arrays with the chunks of the files. None: lazy arrays
        without dask. Variables joined along a dimension become one lazy array, and loading reads
        only the selected parts, concurrently. Differing indexes are aligned lazily too.
    preprocess
        Called with each dataset before they are combined, for many files at once: a plain
        function, called in a worker thread, or a coroutine function, awaited on the I/O loop.
    parallel
        Ignored: files are opened concurrently anyway, and not by dask.
    timeout
        Seconds after which the call gives up, including the wait for its turn.
    **options
        Passed to `open_dataset_async`.

    Returns
    -------
    xarray.Dataset
        What `xarray.open_mfdataset` would return. Closing it closes all files.

    Raises
    ------
    OSError
        If there is nothing to open.
    ValueError
        If the datasets do not combine; with ``chunks=None`` also if combining them needs values
        that are not loaded. The message says what to do.
    TimeoutError
        If ``timeout`` has passed. The message says what the call was waiting for.
    Exception
        The error from opening a file, with a note that names the file, if ``errors="raise"``.

    Notes
    -----
    *Requests:* those of `open_dataset_async` for each file, for up to 32 files at once.

    *Order:* files are combined in the order of ``paths``, whichever is opened first.

    *Memory:* the metadata and the index coordinates of all files; with ``chunks=None`` also the
    scalar variables that become an index along ``concat_dim``.

    *Cancelling:* requests in flight are cancelled, and all files that were opened are closed.
    """
    if errors not in ("raise", "warn", "ignore"):
        raise ValueError(f"'errors' must be 'raise', 'warn' or 'ignore', got {errors!r}")
    if combine not in ("by_coords", "nested"):
        raise ValueError(f"{combine} is an invalid option for the keyword argument ``combine``")
    if combine == "by_coords" and concat_dim is not None:
        raise ValueError(
            "When combine='by_coords', passing a value for `concat_dim` has no effect. To "
            "manually combine along a specific dimension you should instead specify "
            "combine='nested' along with a value for `concat_dim`."
        )
    combining = {
        "compat": compat,
        "data_vars": data_vars,
        "coords": coords,
        "join": join,
        "combine_attrs": combine_attrs,
    }
    lazy = chunks is None
    options |= {"engine": engine, "chunks": {} if chunks == "engine" else chunks}
    how = _Combining(combine, concat_dim, combining, lazy=lazy)
    what = printable(paths) if isinstance(paths, str | os.PathLike) else "the files"
    prepare = partial(_prepared, preprocess=preprocess, how=how)

    async def opened() -> xr.Dataset:
        with noting(f"while looking for {what}"):
            nested = await in_worker(partial(find_paths, paths, options), lambda _: None)
        files = [_File(path) for path in _flat(nested)]
        async with closing_on_error(partial(_close_all, files)):
            with called_by("open_mfdataset"):
                await _open_all(files, prepare, errors, options)
            combined: xr.Dataset = await in_worker(lambda: how.combine(nested, files), close)
            if attrs_file is not None:
                combined.attrs = _attributes(files, os.fspath(attrs_file))
        combined.set_close(closing_all(each.opened for each in files if each.opened is not None))
        return combined

    return await as_call("opened", opened, Options(timeout=timeout))


open_mfdataset = blocking(open_mfdataset_async)


@dataclass
class _File:
    """A path and its dataset, as opened and as preprocessed."""

    path: Any
    opened: xr.Dataset | None = None
    dataset: xr.Dataset | None = None


async def _open_all(
    files: list[_File], prepare: Callable[..., Any], errors: str, options: Any
) -> None:
    """Open and prepare ``files`` concurrently; on the I/O loop."""

    async def open_one(file: _File) -> None:
        try:
            file.opened = await open_dataset_async(file.path, **options)
        except Exception as error:
            if errors == "raise":
                raise
            if errors == "warn":
                reason = without_secrets(str(error))
                warnings.warn(
                    f"Could not open {printable(file.path)} due to {reason}. Ignoring.",
                    stacklevel=2,
                )
            return
        try:
            file.dataset = await prepare(file.opened)
        except Exception as error:
            error.add_note(f"while preprocessing {printable(file.path)!r}")
            raise

    await gather([partial(open_one, file) for file in files])


async def _prepared(
    dataset: xr.Dataset, preprocess: Callable[[xr.Dataset], Any] | None, how: _Combining
) -> xr.Dataset:
    result = await _preprocessed(dataset, preprocess)
    await load_async(how.needed(result))
    return result


async def _preprocessed(
    dataset: xr.Dataset, preprocess: Callable[[xr.Dataset], Any] | None
) -> xr.Dataset:
    if preprocess is None:
        return dataset
    if inspect.iscoroutinefunction(preprocess):
        result = await preprocess(dataset)
    else:
        result = await in_worker(partial(preprocess, dataset), lambda _: None)
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"preprocess must return a Dataset, got {type(result).__name__}")
    return result


@dataclass(frozen=True)
class _Combining:
    """How the datasets are combined."""

    combine_as: str
    concat_dim: Any
    options: Mapping[str, Any]
    lazy: bool

    def needed(self, dataset: xr.Dataset) -> list[xr.Variable]:
        """Return the variables to load before combining: scalars that become an index."""
        if not self.lazy or self.combine_as != "nested":
            return []
        names = [dim for dim in concat_dims(self.concat_dim) if isinstance(dim, str)]
        found = [dataset.variables[name] for name in names if name in dataset.variables]
        return [variable for variable in found if variable.ndim == 0]

    def combine(self, nested: Any, files: list[_File]) -> xr.Dataset:
        """Combine the opened datasets; in a worker thread."""
        opened = (file for file in files)
        datasets = _prune(_nest(nested, lambda: next(opened).dataset))
        combined: Any
        if self.combine_as == "nested":
            if self.lazy:
                combined = combine_nested(datasets, self.concat_dim, self.options)
            else:
                combined = xr.combine_nested(datasets, concat_dim=self.concat_dim, **self.options)
        elif self.lazy:
            combined = combine_by_coords(_flat(datasets), self.options)
        else:
            combined = xr.combine_by_coords(list(_flat(datasets)), **self.options)
        result: xr.Dataset = combined
        return result


def _flat(nested: Any) -> Iterator[Any]:
    for item in nested:
        if isinstance(item, list):
            yield from _flat(item)
        else:
            yield item


def _nest(nested: Any, following: Callable[[], Any]) -> list[Any]:
    """Return the results of ``following()`` in nested lists of the same shape as ``nested``."""
    return [_nest(item, following) if isinstance(item, list) else following() for item in nested]


def _prune(nested: list[Any]) -> list[Any]:
    """Return ``nested`` without None and without lists that hold nothing else."""
    pruned = [_prune(item) if isinstance(item, list) else item for item in nested]
    return [item for item in pruned if not (item is None or (isinstance(item, list) and not item))]


def _attributes(files: list[_File], path: str) -> dict[Any, Any]:
    for file in files:
        if file.path == path and file.dataset is not None:
            return dict(file.dataset.attrs)
    raise ValueError(f"attrs_file {printable(path)!r} is not among the files that were opened")


def _close_all(files: list[_File]) -> None:
    for file in files:
        if file.opened is not None:
            close(file.opened)
