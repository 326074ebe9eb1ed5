"""Prefetching of the documents that opening a store will need, in as few round trips as possible.

The result is only a hint: while xarray's own code opens the dataset, zarr requests whatever is
missing, and reports whatever is wrong with the store, itself. Only the error of a request that was
made again in vain is raised at once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.tasks import gather
from aioxarray._zarr import tuning
from aioxarray._zarr.compat import default_buffer_prototype
from aioxarray._zarr.metadata.hierarchy import (
    ROOT_KEYS,
    V2_KEYS,
    StoredNode,
    consolidated_nodes,
    hierarchy,
    join,
    node_v2,
    node_v3,
    parse,
    time_nodes,
)
from aioxarray._zarr.metadata.prefetched import Answers
from aioxarray._zarr.stores.printable import printable, without_secrets
from aioxarray.errors import TryAgainError

if TYPE_CHECKING:
    from aioxarray._zarr.compat import Buffer
    from aioxarray._zarr.metadata.filtering import GroupFilter
    from aioxarray._zarr.stores.limited import LimitedStore


_logger = logging.getLogger("aioxarray")


async def prefetch(
    store: LimitedStore,
    root: str,
    group: str,
    *,
    consolidated: bool | None,
    zarr_format: int | None,
    deep: bool,
    times: bool,
    indexes: bool = False,
    drop: Iterable[str] = (),
    groups: GroupFilter | None = None,
) -> Answers:
    """Return the answers of ``store`` to the requests that opening ``group`` will make.

    Parameters
    ----------
    store
        The store, which limits the requests.
    root
        Path in the store of the hierarchy that the user opens.
    group
        Path in the store of the group to open: ``root`` or a group below it.
    consolidated
        As in `xarray.open_zarr`: whether ``root`` has consolidated metadata; None to find out.
    zarr_format
        The format, 2 or 3; None to find out.
    deep
        Whether the groups below ``group`` are opened, too.
    times
        Whether times will be decoded, for which the first and last value of each array are read.
    indexes
        Whether index coordinates will be read; those of very many chunks are not fetched here.
    drop
        Names of variables that will not be opened.
    groups
        Selects the groups that are opened; None for all of them.
    """
    reader = _Prefetch(store, deep=deep, times=times, indexes=indexes, drop=drop, groups=groups)
    try:
        await reader.read(root, group, consolidated, zarr_format)
    except Exception as error:
        _logger.debug(
            "prefetching for %s stopped: %s: %s",
            printable(store),
            type(error).__name__,
            without_secrets(str(error)),
        )
        if isinstance(error, TryAgainError):
            # All attempts have been made. Any other error zarr's own request raises again.
            raise
    return reader.answers


async def fetch(limited: LimitedStore, keys: Iterable[str]) -> dict[str, Buffer | None]:
    """Return the values of ``keys``, fetched concurrently."""
    prototype = default_buffer_prototype()
    listed = list(dict.fromkeys(keys))
    values = await gather([partial(limited.get, key, prototype) for key in listed])
    return dict(zip(listed, values, strict=True))


class _Prefetch:
    """The state of one `prefetch`: its options, and the answers so far."""

    def __init__(
        self,
        limited: LimitedStore,
        *,
        deep: bool,
        times: bool,
        indexes: bool,
        drop: Iterable[str],
        groups: GroupFilter | None,
    ) -> None:
        self._limited = limited
        self._deep = deep
        self._times = times
        self._indexes = indexes
        self._drop = frozenset(drop)
        self._filter = groups
        self.answers = Answers()
        # Documents that differ in no byte are parsed once: a tree has the same many times.
        self._parsed: dict[bytes, dict[str, Any] | None] = {}
        # Whether a listing had a name that is neither an array nor a group.
        self._odd = False

    async def read(
        self, root: str, group: str, consolidated: bool | None, zarr_format: int | None
    ) -> None:
        """Fetch the metadata of everything to open, and the chunks that opening reads."""
        if consolidated is not False:
            documents = await self._group_documents(root, zarr_format)
            nodes = consolidated_nodes(root, documents)
            if nodes is not None:
                prefix = join(group, "") if group else ""
                below = [node for node in nodes if node.path.startswith(prefix)]
                groups = [node for node in below if not node.is_array]
                if not self._deep:
                    below = [node for node in below if node.parent == group]
                    groups = []
                elif self._filter is not None:
                    selected = self._filter.selected({group, *(node.path for node in groups)})
                    below = [node for node in below if node.parent in selected]
                await self._values(below)
                if group == root and "zarr.json" in documents:
                    # Besides what is opened, the groups: an error names those that do not match.
                    own, known = documents["zarr.json"], {node.path: node for node in below}
                    known |= {node.path: node for node in groups}
                    nodes = [node for node in nodes if node.path in known]
                    self.answers.hierarchy = hierarchy(own, nodes, consolidated=True)
                return
            if consolidated:
                return
        documents = await self._group_documents(group, zarr_format)
        if not documents or not self._limited.supports_listing:
            return
        nodes = await self._members([group], 3 if "zarr.json" in documents else 2)
        if group == root and "zarr.json" in documents and not self._odd:
            self.answers.hierarchy = hierarchy(documents["zarr.json"], nodes)

    async def _fetch(self, keys: Iterable[str]) -> None:
        """Fetch the values of those ``keys`` that are not known yet, concurrently."""
        self.answers.values.update(await fetch(self._limited, self._unknown(keys)))

    def _unknown(self, keys: Iterable[str]) -> list[str]:
        return [key for key in dict.fromkeys(keys) if key not in self.answers.values]

    def _document(self, key: str) -> dict[str, Any] | None:
        value = self.answers.values.get(key)
        if value is None:
            return None
        data = value.to_bytes()
        if data not in self._parsed:
            self._parsed[data] = parse(data)
        return self._parsed[data]

    async def _group_documents(
        self, path: str, zarr_format: int | None
    ) -> dict[str, dict[str, Any]]:
        names = {2: ROOT_KEYS[1:], 3: ROOT_KEYS[:1]}.get(zarr_format or 0, ROOT_KEYS)
        await self._fetch(join(path, name) for name in names)
        documents = {name: self._document(join(path, name)) for name in names}
        return {name: document for name, document in documents.items() if document is not None}

    async def _values(self, nodes: Iterable[StoredNode]) -> None:
        """Fetch the chunks of ``nodes`` that opening reads."""
        wanted = [node for node in nodes if node.name not in self._drop]
        keys: list[str] = []
        if self._indexes:
            for node in wanted:
                if node.is_index:
                    keys += node.chunk_keys(tuning.PREFETCHED_CHUNKS)
        if self._times:
            for node in time_nodes(wanted):
                keys += node.end_chunk_keys()
        await self._fetch(keys)

    async def _members(self, groups: Sequence[str], zarr_format: int) -> list[StoredNode]:
        """Fetch the documents of the nodes below ``groups``: two round trips per level.

        The chunks that opening reads are fetched concurrently with the documents of the next level.
        """
        found = await gather([partial(self._listed, group) for group in groups])
        paths = [path for members in found for path in members]
        if zarr_format == 3:
            nodes = await self._nodes_v3(paths)
        else:
            nodes = await self._nodes_v2(paths)
        self._odd = self._odd or len(nodes) < len(paths)
        inside = [node.path for node in nodes if not node.is_array] if self._deep else []
        if self._filter is not None:
            inside = [group for group in inside if self._filter.leads_to_match(group)]
        steps: list[Callable[[], Awaitable[Any]]] = [partial(self._values, nodes)]
        if inside:
            steps.append(partial(self._members, inside, zarr_format))
        _, *below = await gather(steps)
        return nodes + [node for found in below for node in found]

    async def _listed(self, group: str) -> list[str]:
        """Return the paths of the members of ``group``."""
        # Web servers list folders with a trailing slash, which must not become part of the keys.
        listed = [name.rstrip("/") async for name in self._limited.list_dir(group)]
        names = tuple(dict.fromkeys(filter(None, listed)))
        self.answers.listings[group] = names
        members = (name for name in names if name != "zarr.json" and not name.startswith(".z"))
        return [join(group, member) for member in members]

    async def _nodes_v3(self, paths: Sequence[str]) -> list[StoredNode]:
        keys = self._unknown(join(path, "zarr.json") for path in paths)
        values = await self._limited.get_documents(default_buffer_prototype(), keys)
        self.answers.values.update(zip(keys, values, strict=True))
        found = ((path, self._document(join(path, "zarr.json"))) for path in paths)
        return [node_v3(path, document) for path, document in found if document is not None]

    async def _nodes_v2(self, paths: Sequence[str]) -> list[StoredNode]:
        if not self._deep:
            await self._arrays_v2(paths)
        await self._fetch(join(path, name) for path in paths for name in V2_KEYS)
        found = (
            node_v2(path, {name: self._document(join(path, name)) for name in V2_KEYS})
            for path in paths
        )
        return [node for node in found if node is not None]

    async def _arrays_v2(self, paths: Sequence[str]) -> None:
        """Fetch the documents of those of ``paths`` that are arrays of format 2.

        zarr also requests ``.zgroup`` of an array, and ignores the answer: recording it as missing
        saves a third of the requests. Groups then take one more round trip, so this is for levels
        where few groups are expected.
        """
        await self._fetch(join(path, name) for path in paths for name in (".zarray", ".zattrs"))
        for path in paths:
            if self.answers.values[join(path, ".zarray")] is not None:
                self.answers.values[join(path, ".zgroup")] = None
