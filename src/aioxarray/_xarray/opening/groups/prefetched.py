"""xarray's Zarr store over prefetched metadata, which answers in the calling thread.

xarray asks for members, groups and values one by one. zarr runs a task on its event loop for each,
and the thread waits for it even if no request is needed. In a tree of a hundred groups that takes
longer than all requests.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

import zarr

from aioxarray._xarray.arrays.prefetched_array import PrefetchedArray
from aioxarray._xarray.compat import NodePath, ZarrBackendEntrypoint, ZarrStore
from aioxarray._xarray.opening.groups.datasets import open_group
from aioxarray._xarray.opening.groups.templates import Templates
from aioxarray._zarr.metadata.filtering import GroupFilter
from aioxarray._zarr.metadata.groups import KnownGroups
from aioxarray._zarr.metadata.prefetched import PrefetchedStore


class PrefetchedZarrStore(ZarrStore):
    """xarray's Zarr store for a group that was opened through a `PrefetchedStore`.

    Parameters
    ----------
    group
        The group.
    known
        Its members; None to ask zarr for them.
    **options
        Those of the base class.
    """

    __slots__ = ("_known",)

    def __init__(
        self, group: zarr.Group, *args: Any, known: dict[str, Any] | None = None, **options: Any
    ) -> None:
        # Before the constructor of the base class, which asks for the members.
        self._known = known
        super().__init__(group, *args, **options)

    @property
    def prefetched_values(self) -> Mapping[str, Any]:
        """The chunks that were fetched, by key."""
        store = self.zarr_group.store
        return store.values if isinstance(store, PrefetchedStore) else {}

    def open_store_variable(self, name: str) -> Any:
        variable = super().open_store_variable(name)  # type: ignore[no-untyped-call]
        store, array = self.zarr_group.store, self.members[name]
        if isinstance(store, PrefetchedStore) and isinstance(array, zarr.Array):
            lazy: Any = variable._data
            # A `LazilyIndexedArray` around the backend's array: decoding adds more wrappers later.
            lazy.array = PrefetchedArray(lazy.array, store.values)
        return variable

    def _fetch_members(self) -> dict[str, Any]:
        if self._known is not None:
            return self._known
        # Private: the public group only has blocking methods.
        group = self.zarr_group._async_group
        if group.metadata.consolidated_metadata is None:
            return dict(super()._fetch_members())
        members: dict[str, Any] = _at_once(_members(group))
        return members

    def subtree(
        self, path: NodePath, groups: GroupFilter | None = None, known: KnownGroups | None = None
    ) -> Iterator[tuple[str, PrefetchedZarrStore]]:
        """Yield this group and all groups below it, with their paths, in xarray's order.

        With ``groups``, only those that may lead to a match. ``known`` has the members of all.
        """
        yield str(path), self
        for name, member in self.members.items():
            leads = groups is None or groups.leads_to_match(str(path / name))
            if leads and isinstance(member, zarr.Group):
                child = type(self)(
                    member,
                    self._mode,
                    close_store_on_close=self._close_store_on_close,
                    use_zarr_fill_value_as_mask=self._use_zarr_fill_value_as_mask,
                    known=None if known is None else known.members[member.path],
                )
                yield from child.subtree(path / name, groups, known)


async def _members(group: Any) -> dict[str, Any]:
    return {
        name: zarr.Group(node) if isinstance(node, zarr.AsyncGroup) else zarr.Array(node)
        async for name, node in group.members()
    }


def _at_once(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never has to wait, and return its result."""
    try:
        coroutine.send(None)
    except StopIteration as ended:
        return ended.value
    coroutine.close()
    raise RuntimeError("zarr waits for something to list members that it knows")


_OF_STORE = ("mode", "consolidated", "storage_options", "zarr_format", "group", "cache_members")


def open_prefetched(
    engine: ZarrBackendEntrypoint,
    place: Any,
    options: Mapping[str, Any],
    known: KnownGroups | None,
    *,
    deep: bool,
) -> Any:
    """Open the dataset at ``place``, or all groups as a dict with ``deep``, as ``engine`` would.

    ``known`` are the group at ``place`` and those below it, if their metadata was prefetched.
    """
    decoding = {name: value for name, value in options.items() if name not in _OF_STORE}
    pattern = decoding.pop("group_filter", None)
    if not deep:
        store = _prefetched_store(place, options, known)
        return engine.open_dataset(place, store=store, **decoding)
    group = options.get("group")
    parent = NodePath("/") / NodePath(group) if group else NodePath("/")
    root = _prefetched_store(place, {**options, "group": str(parent)}, known)
    if pattern is None:
        stores = dict(root.subtree(parent, known=known))
    else:
        stores = _filtered(root, parent, GroupFilter(pattern, str(parent)), known)
    templates = None if known is None else Templates(decoding)
    return {
        str(NodePath(path).relative_to(parent)) if group else path: open_group(
            engine, place, store, decoding, templates
        )
        for path, store in stores.items()
    }


def _filtered(
    root: PrefetchedZarrStore, parent: NodePath, groups: GroupFilter, known: KnownGroups | None
) -> dict[str, PrefetchedZarrStore]:
    found = dict(root.subtree(parent, groups, known))
    selected = groups.selected(found)
    if not selected:
        seen = ", ".join(list(found)[:_NAMED]) + (", ..." if len(found) > _NAMED else "")
        raise ValueError(
            f"no group matches group_filter={groups.pattern!r}; groups on the way: {seen}"
        )
    return {path: store for path, store in found.items() if path in selected}


# How many groups an error names.
_NAMED = 10


def _prefetched_store(
    place: Any, options: Mapping[str, Any], known: KnownGroups | None
) -> PrefetchedZarrStore:
    opening = {name: options[name] for name in _OF_STORE if name in options}
    if known is None:
        opened: PrefetchedZarrStore = PrefetchedZarrStore.open_group(place, **opening)
        return opened
    # The choices of ``open_group`` for Zarr format 3 and a store that is not the caller's own.
    return PrefetchedZarrStore(
        known.root,
        opening.get("mode", "r"),
        close_store_on_close=True,
        use_zarr_fill_value_as_mask=False,
        cache_members=opening.get("cache_members", True),
        known=known.members[known.root.path],
    )
