"""Opening of many files concurrently, and combining their datasets as `xarray.open_mfdataset`."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import xarray as xr

from aioxarray._runtime.tasks import gather
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.compat import _find_absolute_paths
from aioxarray._xarray.hdf5.alike import sharing
from aioxarray._xarray.opening.calls import called_by, close, closing_on_error
from aioxarray._xarray.opening.combining import combine_by_coords, combine_nested, concat_dims
from aioxarray._xarray.opening.error_notes import error_note
from aioxarray._zarr.stores.printable import printable, without_secrets


async def open_and_combine(
    paths: Any,
    options: dict[str, Any],
    open_file: Callable[..., Any],
    prepare: Callable[[xr.Dataset], Any],
    how: Combining,
    errors: str,
    attrs_file: str | os.PathLike[str] | None,
) -> xr.Dataset:
    """Open all files and combine them; on the I/O loop.

    ``open_file`` opens one of them with ``options``, and ``prepare`` prepares its dataset: both are
    coroutine functions. The other arguments are those of `open_mfdataset_async`.
    """
    what = printable(paths) if isinstance(paths, str | os.PathLike) else "the files"
    with error_note(f"while looking for {what}"):
        nested = await in_worker(partial(_find_paths, paths, options))
    files = [_File(path) for path in _flat(nested)]
    async with closing_on_error(partial(_close_all, files)):
        with called_by("open_mfdataset"), sharing():
            await _open_all(files, partial(open_file, **options), prepare, errors)
        combined: xr.Dataset = await in_worker(lambda: how.combine(nested, files), close)
        if attrs_file is not None:
            combined.attrs = _attributes(files, os.fspath(attrs_file))
    combined.set_close(_closing_all(each.opened for each in files if each.opened is not None))
    return combined


@dataclass
class _File:
    """A path and its dataset, as opened and as preprocessed."""

    path: Any
    opened: xr.Dataset | None = None
    dataset: xr.Dataset | None = None


async def _open_all(
    files: list[_File], open_file: Callable[..., Any], prepare: Callable[..., Any], errors: str
) -> None:
    """Open and prepare ``files`` concurrently; on the I/O loop."""

    async def open_one(file: _File) -> None:
        try:
            file.opened = await open_file(file.path)
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


async def preprocessed(
    dataset: xr.Dataset, preprocess: Callable[[xr.Dataset], Any] | None
) -> xr.Dataset:
    """Return the result of ``preprocess``, a plain or a coroutine function, for ``dataset``."""
    if preprocess is None:
        return dataset
    if inspect.iscoroutinefunction(preprocess):
        result = await preprocess(dataset)
    else:
        result = await in_worker(partial(preprocess, dataset))
    if not isinstance(result, xr.Dataset):
        raise TypeError(f"preprocess must return a Dataset, got {type(result).__name__}")
    return result


@dataclass(frozen=True)
class Combining:
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


def _find_paths(paths: Any, options: dict[str, Any]) -> Any:
    """Return the (nested) list of files that ``paths`` stands for.

    Raises
    ------
    OSError
        If a pattern matches nothing, or the list is empty.
    """
    found = _find_absolute_paths(paths, **options)
    if not found:
        raise OSError("no files to open")
    return found


def _closing_all(datasets: Iterable[xr.Dataset]) -> Callable[[], None]:
    """Return a function that closes ``datasets`` without holding, and so pickling, them."""
    # Private: the close callback; only its setter is public. xarray's own function reads it too.
    return partial(_call_all, [each._close for each in datasets if each._close is not None])


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
