"""Fetching, in as few round trips as possible, what a save has to know about a store."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.metadata.hierarchy import ROOT_KEYS, join
from aioxarray._zarr.metadata.prefetch import fetch, prefetch
from aioxarray._zarr.metadata.prefetched import Answers

if TYPE_CHECKING:
    from aioxarray._zarr.stores.limited import LimitedStore


async def survey(
    limited: LimitedStore,
    path: str,
    *,
    mode: str,
    deep: bool,
    consolidated: bool | None,
    zarr_format: Any,
) -> Answers:
    """Return the answers of the store to the requests that xarray and zarr will make in a save.

    Parameters
    ----------
    limited
        The store, which limits the requests.
    path
        Path in the store of the group to write.
    mode
        xarray's ``mode``.
    deep
        Whether groups below ``path`` are written, too.
    consolidated
        Whether the save writes consolidated metadata, for which all metadata in the store is
        read; with mode "r+", whether to read it.
    zarr_format
        The format, 2 or 3; None if it is not known.
    """
    answers = Answers()

    async def what_is_there() -> None:
        try:
            names = dict.fromkeys([name async for name in limited.list_dir(path)])
        except Exception as error:
            error.add_note(
                "while asking what is there before anything is written: to save, a store must be "
                "able to list its keys (over HTTP: by PROPFIND)"
            )
            raise
        answers.listings[path] = tuple(names)

    async def groups_above() -> None:
        parts = path.split("/")
        parents = ["/".join(parts[:depth]) for depth in range(len(parts) if path else 0)]
        wanted = [join(group, name) for group in parents for name in ROOT_KEYS]
        answers.values.update(await fetch(limited, wanted))

    async def metadata() -> None:
        rest = {"zarr_format": zarr_format, "times": mode not in ("w", "w-")}
        if mode == "r+":
            found = await prefetch(limited, "", path, consolidated=consolidated, deep=deep, **rest)
        elif consolidated:
            found = await prefetch(limited, "", "", consolidated=False, deep=True, **rest)
        else:
            found = await prefetch(limited, path, path, consolidated=False, deep=deep, **rest)
        answers.values.update(found.values)
        answers.listings.update(found.listings)

    steps = [groups_above]
    if limited.supports_listing:
        steps.append(what_is_there)
    # Metadata that is replaced, or must not exist, is not read.
    if mode not in ("w", "w-") or (path and consolidated):
        steps.append(metadata)
    await gather([partial(step) for step in steps])
    return answers
