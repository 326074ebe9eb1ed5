"""Asks a store, in as few round trips as it allows, for all that opening it will need.

What comes back is a help, never a condition: what is not there, zarr asks for itself while
xarray's own code opens the dataset, and what is wrong with a store, zarr finds and says itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from zarr.core.buffer import default_buffer_prototype

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.hierarchy import (
    ROOT_KEYS,
    V2_KEYS,
    Node,
    consolidated_document,
    consolidated_nodes,
    join,
    node_v2,
    node_v3,
    parse,
    time_nodes,
)
from aioxarray._zarr.prefetched import Answers

if TYPE_CHECKING:
    from zarr.abc.store import Store
    from zarr.core.buffer import Buffer

# The bytes are held until the indexes are made, which very many are not for.
_MOST_CHUNKS = 64

_logger = logging.getLogger("aioxarray")


async def prefetch(
    store: Store,
    root: str,
    group: str,
    *,
    consolidated: bool | None,
    zarr_format: int | None,
    deep: bool,
    times: bool,
    indexes: bool = False,
    drop: Iterable[str] = (),
) -> Answers:
    """Return what ``store`` says to the requests that opening ``group`` takes.

    Parameters
    ----------
    store
        The store; each of its requests is one of ours.
    root
        Path in the store of what the user opens.
    group
        Path in the store of the group that is wanted: ``root`` or one below it.
    consolidated
        As in `xarray.open_zarr`: whether there is consolidated metadata at ``root``; None: look.
    zarr_format
        The format, 2 or 3; None: look.
    deep
        Whether the groups below ``group`` are opened too.
    times
        Whether times will be decoded: the first and last value of each is read for that.
    indexes
        Whether all index coordinates will be read; those of very many chunks are not fetched here.
    drop
        Names of variables that will not be opened.
    """
    reader = _Prefetch(store)
    try:
        nodes = await reader.metadata(root, group, consolidated, zarr_format, deep=deep)
        dropped = set(drop)
        wanted = [node for node in nodes if node.name not in dropped]
        keys: list[str] = []
        if indexes:
            for node in wanted:
                if node.is_index:
                    keys += node.chunk_keys(_MOST_CHUNKS)
        if times:
            for node in time_nodes(wanted):
                keys += node.end_chunk_keys()
        await reader.fetch(keys)
    except Exception as error:  # noqa: BLE001 - the same request of zarr's own raises it again
        _logger.debug("prefetching for %r stopped: %r", store, error)
    return reader.answers


async def fetch(store: Store, keys: Iterable[str]) -> dict[str, Buffer | None]:
    """Return the values of ``keys``, fetched side by side."""
    prototype = default_buffer_prototype()
    listed = list(dict.fromkeys(keys))
    values = await gather([partial(store.get, key, prototype) for key in listed])
    return dict(zip(listed, values, strict=True))


class _Prefetch:
    """The answers gathered so far."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.answers = Answers()
        # Whether something was listed that is neither an array nor a group.
        self._odd = False

    async def fetch(self, keys: Iterable[str]) -> None:
        """Fetch the values of ``keys``, all side by side, those that are known excepted."""
        missing = [key for key in keys if key not in self.answers.values]
        self.answers.values.update(await fetch(self._store, missing))

    def document(self, key: str) -> dict[str, Any] | None:
        value = self.answers.values.get(key)
        return None if value is None else parse(value.to_bytes())

    async def metadata(
        self,
        root: str,
        group: str,
        consolidated: bool | None,
        zarr_format: int | None,
        *,
        deep: bool,
    ) -> list[Node]:
        """Fetch the metadata of all that will be opened; return its nodes."""
        if consolidated is not False:
            documents = await self._group_documents(root, zarr_format)
            nodes = consolidated_nodes(root, documents)
            if nodes is not None:
                prefix = join(group, "") if group else ""
                below = [node for node in nodes if node.path.startswith(prefix)]
                return below if deep else [node for node in below if node.parent == group]
            if consolidated:
                return []
        documents = await self._group_documents(group, zarr_format)
        if not documents or not self._store.supports_listing:
            return []
        nodes = await self._members(group, 3 if "zarr.json" in documents else 2, deep=deep)
        if group == root and "zarr.json" in documents and not self._odd:
            self.answers.consolidated = consolidated_document(root, documents["zarr.json"], nodes)
        return nodes

    async def _group_documents(
        self, path: str, zarr_format: int | None
    ) -> dict[str, dict[str, Any]]:
        names = {2: ROOT_KEYS[1:], 3: ROOT_KEYS[:1]}.get(zarr_format or 0, ROOT_KEYS)
        await self.fetch(join(path, name) for name in names)
        documents = {name: self.document(join(path, name)) for name in names}
        return {name: document for name, document in documents.items() if document is not None}

    async def _members(self, path: str, zarr_format: int, *, deep: bool) -> list[Node]:
        """Fetch the documents of what is below a group: two round trips a level."""
        names = tuple([name async for name in self._store.list_dir(path)])
        self.answers.listings[path] = names
        members = [name for name in names if name != "zarr.json" and not name.startswith(".z")]
        paths = [join(path, member) for member in members]
        files = ("zarr.json",) if zarr_format == 3 else V2_KEYS
        if zarr_format == 2 and not deep:
            await self._arrays_v2(paths)
        await self.fetch(join(member, file) for member in paths for file in files)
        nodes: list[Node] = []
        for below in paths:
            if zarr_format == 3:
                document = self.document(join(below, "zarr.json"))
                node = None if document is None else node_v3(below, document)
            else:
                node = node_v2(below, {file: self.document(join(below, file)) for file in files})
            if node is None:
                self._odd = True
            else:
                nodes.append(node)
        if deep:
            groups = [node.path for node in nodes if not node.is_array]
            walks = [partial(self._members, group, zarr_format, deep=True) for group in groups]
            for found in await gather(walks):
                nodes += found
        return nodes

    async def _arrays_v2(self, paths: Iterable[str]) -> None:
        """Fetch the documents of those of ``paths`` that are arrays of format 2.

        zarr asks an array whether it is a group too, and does not care for the answer: that it
        has none saves a third of the requests. Groups take one round trip more, so this is for
        where few are expected.
        """
        listed = list(paths)
        await self.fetch(join(path, name) for path in listed for name in (".zarray", ".zattrs"))
        for path in listed:
            if self.answers.values[join(path, ".zarray")] is not None:
                self.answers.values[join(path, ".zgroup")] = None
