"""Creating zarr's groups and arrays from metadata documents that are all known already."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zarr
from zarr.storage import StorePath

from aioxarray._zarr.compat import ArrayV3Metadata, GroupMetadata

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.metadata.hierarchy import Hierarchy, StoredNode

Node = zarr.Array[Any] | zarr.Group


@dataclass(frozen=True)
class KnownGroups:
    """A group and all groups below it, as zarr would open them.

    Arrays with the same document share their metadata and their codecs: a tree has thousands of
    arrays, and a few documents.

    Attributes
    ----------
    root
        The group.
    members
        By the path of a group, its arrays and groups by name.
    """

    root: zarr.Group
    members: Mapping[str, dict[str, Node]]


def known_groups(place: StorePath, hierarchy: Hierarchy) -> KnownGroups | None:
    """Return the group at ``place``, described by ``hierarchy``, and those below it.

    None if zarr cannot parse all of it: opening it node by node, zarr reports what is wrong, or
    leaves out arrays whose codecs it does not have.
    """
    maker = _Maker(place.store)
    members: dict[str, dict[str, Node]] = {place.path: {}}
    try:
        own = GroupMetadata.from_dict(dict(hierarchy.document))
        root = zarr.Group(zarr.AsyncGroup(metadata=own, store_path=place))
        for node in hierarchy.nodes:
            members[node.parent][node.name] = maker.made(node)
            if not node.is_array:
                members[node.path] = {}
    except Exception:  # noqa: BLE001 - zarr's own code raises it again
        return None
    return KnownGroups(root, members)


class _Maker:
    """Makes nodes of a store, and parses each document once.

    Of documents that differ in nothing but their attributes, only the first is parsed.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        # An array for each document, by the id of the document or, for equal ones, by its text;
        # documents stay alive in the hierarchy.
        self._by_id: dict[int, Any] = {}
        self._by_text: dict[str, Any] = {}
        # An array for each document without its attributes.
        self._first: dict[str, Any] = {}

    def made(self, node: StoredNode) -> Node:
        path = StorePath(self._store, node.path)
        if not node.is_array:
            parsed = GroupMetadata.from_dict(dict(node.document))
            return zarr.Group(zarr.AsyncGroup(metadata=parsed, store_path=path))
        inner = copy.copy(self._array(node))
        # A frozen dataclass, whose constructor would make the codecs again.
        object.__setattr__(inner, "store_path", path)
        return zarr.Array(inner)

    def _array(self, node: StoredNode) -> Any:
        """Return an asynchronous array with the document of ``node``, at any path."""
        known = self._by_id.get(id(node.document))
        if known is None:
            # As text, because lists and dicts cannot be hashed.
            text = json.dumps(node.document)
            known = self._by_text.get(text)
            if known is None:
                known = self._by_text[text] = self._parsed(dict(node.document))
            self._by_id[id(node.document)] = known
        return known

    def _parsed(self, document: dict[str, Any]) -> Any:
        rest = {name: value for name, value in document.items() if name != "attributes"}
        attributes = document.get("attributes")
        if not isinstance(attributes, dict | None):
            raise TypeError(f"attributes of a Zarr array are no object: {attributes!r}")
        text = json.dumps(rest)
        first = self._first.get(text)
        if first is None:
            parsed = ArrayV3Metadata.from_dict({**rest, "attributes": {}})
            first = zarr.AsyncArray(metadata=parsed, store_path=StorePath(self._store))
            self._first[text] = first
        metadata = first.metadata
        if vars(metadata).get("_stored_document") is not None:
            # zarr 3.4 and later: the document was repaired, and the metadata keep the original.
            ours = ArrayV3Metadata.from_dict(document)
        else:
            ours = copy.copy(metadata)
            # A frozen dataclass; its constructor would parse everything again.
            object.__setattr__(ours, "attributes", attributes or {})
        inner = copy.copy(first)
        object.__setattr__(inner, "metadata", ours)
        return inner
