"""Opening of a user's own Zarr, and selection of a sample that is small enough for a demo."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import xarray as xr
import zarr

from aioxarray._demo.extent import extents, nodes
from aioxarray._runtime.loops import run_blocking

# The packages needed for each URL scheme.
_NEEDS = {
    "http": ("fsspec", "aiohttp"),
    "https": ("fsspec", "aiohttp"),
    "s3": ("fsspec", "s3fs"),
    "gs": ("fsspec", "gcsfs"),
    "gcs": ("fsspec", "gcsfs"),
}
# Public data needs no credentials, and looking for them can take seconds.
_ANONYMOUS: dict[str, dict[str, Any]] = {
    "s3": {"anon": True},
    "gs": {"token": "anon"},
    "gcs": {"token": "anon"},
}


def needs(url: str) -> tuple[str, ...]:
    """Return the packages that reading ``url`` needs."""
    return _NEEDS.get(_scheme(url), ("fsspec",) if _scheme(url) else ())


def missing(packages: Sequence[str]) -> list[str]:
    """Return those of ``packages`` that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def _scheme(url: str) -> str:
    scheme, colon, _ = url.partition("://")
    return scheme.lower() if colon else ""


def opener(url: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return xarray's function to open ``url``, and its options.

    A store with groups is opened as a tree. A store that has none, or that cannot be listed, is
    opened as a dataset.
    """
    storage = _ANONYMOUS.get(_scheme(url))
    options = {} if storage is None else {"storage_options": storage}
    group = zarr.open_group(url, mode="r", storage_options=storage)
    if _has_groups(group):
        return xr.open_datatree, {"engine": "zarr", **options}
    return xr.open_zarr, {"chunks": None, **options}


def _has_groups(group: zarr.Group) -> bool:
    try:
        return next(iter(group.groups()), None) is not None
    except Exception:  # noqa: BLE001 - each server that cannot list fails in its own way
        return False


def end_requests() -> None:
    """Cancel tasks that an error left on zarr's loop: at exit they would print tracebacks."""

    async def end() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    run_blocking(end)


@dataclass(frozen=True)
class Sample:
    """The part of a user's data that the demo reads.

    Attributes
    ----------
    obj
        The part, lazy.
    text
        A description of the part; empty if it is all of the data.
    """

    obj: xr.Dataset | xr.DataTree
    text: str


def sample(
    obj: xr.Dataset | xr.DataTree, max_bytes: int = 64 << 20, max_chunks: int = 1000
) -> Sample:
    """Take the first variables of ``obj``, up to the given numbers of bytes and chunks.

    If that is little because the next variable is large, take the beginning of that variable.
    """
    found = extents(obj)
    nbytes = chunks = taken = 0
    for extent in found.values():
        if nbytes + extent.nbytes > max_bytes or chunks + extent.chunks > max_chunks:
            break
        nbytes, chunks, taken = nbytes + extent.nbytes, chunks + extent.chunks, taken + 1
    if taken == len(found):
        return Sample(obj, "")
    datasets = nodes(obj)
    if nbytes < max_bytes / 4 and chunks < max_chunks / 4:
        path, name = list(found)[taken]
        part = datasets[path][[name]].reset_coords(drop=True)
        few = found[path, name].beginning(max_bytes, max_chunks)
        stops = (n * length for n, length in zip(few.counts, few.lengths, strict=True))
        cut = part.isel({d: slice(n) for d, n in zip(part[name].dims, stops, strict=True)})
        return Sample(cut, f"the beginning of {name!r}")
    dropped = list(found)[taken:]
    for path, node in datasets.items():
        datasets[path] = node.drop_vars([name for where, name in dropped if where == path])
    kept = xr.DataTree.from_dict(datasets) if isinstance(obj, xr.DataTree) else datasets["/"]
    return Sample(kept, f"the first {taken} of {len(found)} variables")
