"""Going on with a save that was interrupted: what of it is in the store, and whether it is of it.

A save that can be resumed writes the metadata of its arrays first. These documents are its
template: the same save has the same. Then come the chunks, and at last the groups, so that no
reader finds the arrays before. Every chunk in the store is a whole one, so the chunks that are
there need not be written again. Chunks of the fill value alone, which are not stored, are made
again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from aioxarray._runtime.tasks import gather
from aioxarray._xarray.arrays.blocks import boxes
from aioxarray._xarray.compat import is_chunked_array
from aioxarray._xarray.saving.deferred import Deferred
from aioxarray._zarr.chunks.arrays import with_pipeline
from aioxarray._zarr.chunks.pipeline import CodecPipeline
from aioxarray._zarr.chunks.writes.present import (
    Absent,
    Present,
    find_present,
    writes_whole,
    written_for,
)
from aioxarray._zarr.grid import is_aligned, write_edges
from aioxarray._zarr.metadata.hierarchy import join, parse
from aioxarray._zarr.metadata.prefetch import fetch
from aioxarray._zarr.stores.fork import is_transaction
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.request import DOCUMENTS

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._xarray.saving.recorder import SavedNode, Write, ZarrOptions
    from aioxarray._zarr.metadata.prefetched import Answers
    from aioxarray._zarr.metadata.write_behind import Changes
    from aioxarray._zarr.stores.grants import Grants
    from aioxarray._zarr.stores.limited import LimitedStore

# Parts of a block that are read, encoded and written each for itself.
_MOST_PARTS = 64

_WAY_OUT = (
    "resume=True only goes on with the same save: give it the object and the options of the one "
    "that was interrupted, or save to another place"
)


def check(options: ZarrOptions, store: Store) -> None:
    """Raise ValueError if a save with these options, to this store, cannot be resumed."""
    if options.append_dim is not None:
        raise ValueError(
            "an append cannot be resumed: the last chunk of the old data may be the first of the "
            "new. Write the template with its final size first (compute=False), and then regions "
            "with resume=True"
        )
    if options.region is None and options.mode not in (None, "w-"):
        raise ValueError(
            f"resume=True needs a place of its own, where every chunk is one of this save; got "
            f"mode={options.mode!r}. Leave the mode out, or delete what is there first"
        )
    if is_transaction(store):
        raise ValueError(
            "a save to an icechunk session cannot be resumed: what a killed process had not "
            "committed is not in the repository. Save again without resume=True, or commit after "
            "each of several regions"
        )
    if not writes_whole(store):
        raise ValueError(
            f"resume=True needs a store that writes each value as a whole, such as a local "
            f"directory or an object store: in {printable(store)!r}, a chunk that is there may be "
            "the beginning of one"
        )


class Resuming:
    """The part of a save that an earlier run of it has written.

    Parameters
    ----------
    limited
        The store, which limits the requests.
    grants
        The grants of the save.
    in_region
        Whether a region of existing arrays is written.
    """

    def __init__(self, limited: LimitedStore, grants: Grants, *, in_region: bool) -> None:
        self._limited = limited
        self._grants = grants
        self._in_region = in_region
        self._present: dict[str, Present] = {}

    def hides(self) -> bool:
        """Return whether xarray is to find no group: that of an interrupted save is its own."""
        return not self._in_region

    async def begin(
        self, changes: Changes, answers: Answers, group: str, writes: Sequence[Write]
    ) -> list[Write]:
        """Look up what the store has of the save, and return the writes that use it.

        Documents that are there already are added to ``answers``.

        Raises
        ------
        ValueError
            If what is there belongs to another save, or a region has parts of chunks.
        """
        if self._in_region:
            for write in writes:
                _check_aligned(write)
            begun = {write.target.path for write in writes}
        else:
            begun = await self._check_documents(changes, answers, group)
        there = [write for write in writes if self._in_region or not write.fresh]
        found = await gather(
            [partial(find_present, each.target, self._limited, each.region) for each in there]
        )
        remains = [key for _, keys in found for key in keys]
        if not self._in_region:
            names = answers.listings.get(group, ())
            remains += [join(group, name) for name in names if written_for(name) is not None]
        await gather([partial(self._limited.delete, key) for key in remains])
        for write, (present, _) in zip(there, found, strict=True):
            # Chunks without a template may be of anything.
            if write.target.path in begun:
                self._present[write.target.path] = present
        # Of an array that is the template's, the chunks that are not there are nowhere.
        return [replace(each, fresh=True) if each.target.path in begun else each for each in writes]

    async def _check_documents(self, changes: Changes, answers: Answers, group: str) -> set[str]:
        """Compare the documents in the store with those of the save; return its arrays there."""
        wanted = {
            key: value
            for key, value in changes.values.items()
            if key.rpartition("/")[2] in DOCUMENTS and not answers.lacks(key)
        }
        own = {key.removeprefix(f"{group}/" if group else "") for key in changes.values}
        names = {name.partition("/")[0] for name in own} | DOCUMENTS
        for name in answers.listings.get(group, ()):
            if name not in names and written_for(name) is None:
                raise ValueError(
                    f"the store has {join(group, name)!r}, which this save would not write. "
                    f"{_WAY_OUT}"
                )
        stored = await fetch(self._limited, wanted)
        begun = set()
        for key in sorted(wanted):
            value = wanted[key]
            found = stored[key]
            if found is None or value is None:
                continue
            path, _, name = key.rpartition("/")
            if name != ".zmetadata" and path_is_below(path, group):
                _check_same(path, parse(found.to_bytes()), parse(value.to_bytes()))
            document = parse(found.to_bytes()) or {}
            if name == ".zarray" or document.get("node_type") == "array":
                begun.add(path)
        answers.values.update(stored)
        return begun

    def present(self, path: str) -> Present | None:
        """Return the chunks of an array that are there; None if none are known to be."""
        return self._present.get(path) or None

    def wanted(self, write: Write) -> Absent | None:
        """Return whether a chunk of an array is to be written, by its key; None for all."""
        present = self.present(write.target.path)
        return None if present is None else Absent(write.target, present)

    def has(self, write: Write, block: Sequence[slice]) -> bool:
        """Return whether all chunks of a block are there."""
        present = self.present(write.target.path)
        return present is not None and present.has(block)

    def missing(self, write: Write, block: tuple[slice, ...]) -> Iterator[tuple[slice, ...]]:
        """Yield the parts of a block whose chunks are not there, or only few that are."""
        present = self.present(write.target.path)
        if present is None:
            yield block
        else:
            for box in boxes(present.lacking(block), _MOST_PARTS):
                yield present.cut(block, box)

    async def check_indexes(self, writes: Iterable[Write], store: Store) -> None:
        """Compare the index coordinates that are in the store with those of the save.

        Raises
        ------
        ValueError
            If one differs: the data there is that of other labels.
        """
        there = [each for each in writes if self.has(each, each.region)]
        await gather([partial(self._check_index, each, store) for each in there])

    async def _check_index(self, write: Write, store: Store) -> None:
        array = with_pipeline(
            write.target, store, CodecPipeline, grants=self._grants, report=lambda *_: None
        )
        stored = np.asarray(await array.getitem(write.region))
        source = np.asarray(write.source)
        if not np.array_equal(stored, source, equal_nan=source.dtype.kind in "fcmM"):
            raise ValueError(
                f"the store has other values of the coordinate {write.target.path!r} than this "
                f"save. {_WAY_OUT}"
            )

    async def forget(self, writes: Iterable[Write]) -> None:
        """Delete the chunks that this run has written of arrays in memory.

        They may be from before and after a change of the arrays, so that no other run must take
        them as written.
        """
        for write in writes:
            source = write.source
            data = source.variable._data if isinstance(source, Deferred) else source
            if is_chunked_array(data) or not isinstance(data, np.ndarray):
                continue
            now, _ = await find_present(write.target, self._limited, write.region)
            before = self.present(write.target.path) or Present.none(write.target)
            keys = now.keys_beside(before, write.target, write.region)
            await gather([partial(self._limited.delete, key) for key in keys])


def index_paths(nodes: Sequence[SavedNode], group: str) -> set[str]:
    """Return the paths of the arrays of index coordinates."""
    return {
        join(join(group, "" if node.path == "." else node.path).strip("/"), str(name))
        for node in nodes
        for name, variable in node.dataset.variables.items()
        if isinstance(variable, xr.IndexVariable)
    }


def path_is_below(path: str, group: str) -> bool:
    """Return whether ``path`` is that of ``group``, or of something in it."""
    return not group or path == group or path.startswith(f"{group}/")


def _check_aligned(write: Write) -> None:
    array = write.target
    edges = write_edges(array)
    if is_aligned(write.region, array.shape, edges):
        return
    unit = "shards" if getattr(array, "shards", None) is not None else "chunks"
    part = ", ".join(f"{each.start}:{each.stop}" for each in write.region)
    lengths = "of unequal lengths"
    if unit == "shards" or all(len(set(np.diff([0, *axis]))) <= 1 for axis in edges):
        size = array.shards if unit == "shards" else array.chunks
        lengths = f"of {' x '.join(map(str, size or ()))}"
    raise ValueError(
        f"the region [{part}] of variable {array.path!r} has parts of {unit}, which are {lengths}. "
        f"Another region may write the rest of them, and one of the two would be lost: choose "
        f"regions that begin and end with {unit}, such as those of "
        f'`aioxarray.blocks(target, "{unit}").regions()`'
    )


def _check_same(path: str, stored: Mapping[str, Any] | None, own: Mapping[str, Any] | None) -> None:
    one, other = _comparable(stored), _comparable(own)
    for name in sorted({*one, *other}, key=lambda name: (name != "shape", name)):
        if one.get(name) != other.get(name):
            raise ValueError(
                f"the store has another {path or 'root group'!r} than this save would write: "
                f"{name} is {one.get(name, 'missing')} there, and {other.get(name, 'missing')} "
                f"here. {_WAY_OUT}"
            )


def _comparable(document: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the parts of a document as text, in which NaN equals NaN; attributes one by one."""
    parts = dict(document or {})
    parts.pop("consolidated_metadata", None)
    attributes = parts.pop("attributes", None) or {}
    parts |= {f"attribute {name!r}": value for name, value in attributes.items()}
    return {name: json.dumps(value, sort_keys=True) for name, value in parts.items()}
