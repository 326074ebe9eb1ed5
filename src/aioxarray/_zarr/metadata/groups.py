"""Creating zarr group objects from metadata documents that are all known already."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zarr

from aioxarray._zarr.compat import ArrayV3Metadata, ConsolidatedMetadata, GroupMetadata

if TYPE_CHECKING:
    from zarr.storage import StorePath

    from aioxarray._zarr.metadata.hierarchy import Hierarchy, StoredNode


def prefetched_group(place: StorePath, hierarchy: Hierarchy) -> zarr.Group | None:
    """Return the group at ``place``, described by ``hierarchy``, as if it were consolidated.

    None if zarr cannot parse all of it: opening it node by node, zarr reports what is wrong, or
    leaves out arrays whose codecs it does not have.
    """
    parser = _Parser()
    # By the path of their group.
    members: dict[str, dict[str, Any]] = {}
    try:
        for node in hierarchy.nodes:
            members.setdefault(node.parent, {})[node.name] = parser.parsed(node)
        # Innermost groups first: a group copies the metadata of those inside it.
        for node in reversed(hierarchy.nodes):
            if not node.is_array:
                siblings = members[node.parent]
                inside = members.get(node.path, {})
                siblings[node.name] = _with_members(siblings[node.name], inside)
        own = GroupMetadata.from_dict(dict(hierarchy.document))
        root = _with_members(own, members.get(place.path, {}))
    except Exception:  # noqa: BLE001 - zarr's own code raises it again
        return None
    return zarr.Group(zarr.AsyncGroup(metadata=root, store_path=place))


def _with_members(group: GroupMetadata, members: dict[str, Any]) -> GroupMetadata:
    return replace(group, consolidated_metadata=ConsolidatedMetadata(metadata=members))


class _Parser:
    """Parses array documents, only once for those that differ in nothing but their attributes."""

    def __init__(self) -> None:
        self._parsed: dict[str, ArrayV3Metadata] = {}

    def parsed(self, node: StoredNode) -> ArrayV3Metadata | GroupMetadata:
        document = dict(node.document)
        return self._array(document) if node.is_array else GroupMetadata.from_dict(document)

    def _array(self, document: dict[str, Any]) -> ArrayV3Metadata:
        rest = {name: value for name, value in document.items() if name != "attributes"}
        attributes = document.get("attributes")
        # As text, because lists and dicts cannot be hashed.
        key = json.dumps(rest)
        parsed = self._parsed.get(key)
        if parsed is None:
            parsed = self._parsed[key] = ArrayV3Metadata.from_dict({**rest, "attributes": {}})
        if not isinstance(attributes, dict | None):
            raise TypeError(f"attributes of a Zarr array are no object: {attributes!r}")
        if vars(parsed).get("_stored_document") is not None:
            # zarr 3.4 and later: the document was repaired, and the metadata keep the original.
            return ArrayV3Metadata.from_dict(document)
        ours = copy.copy(parsed)
        # A frozen dataclass; its constructor would parse everything again.
        object.__setattr__(ours, "attributes", attributes or {})
        return ours
