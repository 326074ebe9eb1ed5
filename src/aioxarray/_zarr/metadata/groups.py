"""Makes zarr's group of a hierarchy whose metadata documents are all known."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import zarr

from aioxarray._zarr.compat import ArrayV3Metadata, ConsolidatedMetadata, GroupMetadata

if TYPE_CHECKING:
    from zarr.storage import StorePath

    from aioxarray._zarr.metadata.hierarchy import Hierarchy, Node


def known_group(place: StorePath, hierarchy: Hierarchy) -> zarr.Group | None:
    """Return the group at ``place``, of which ``hierarchy`` tells, as if it were consolidated.

    None for what zarr cannot make objects of: asked for one node after the other it says what is
    wrong, or leaves out what it has no codec for.
    """
    parser = _Parser()
    # By the path of the group they are in.
    members: dict[str, dict[str, Any]] = {}
    try:
        for node in hierarchy.nodes:
            members.setdefault(node.parent, {})[node.name] = parser.parsed(node)
        # What is above holds them as they are then.
        for node in reversed(hierarchy.nodes):
            if not node.is_array:
                siblings = members[node.parent]
                inside = members.get(node.path, {})
                siblings[node.name] = _with_members(siblings[node.name], inside)
        own = GroupMetadata.from_dict(dict(hierarchy.document))
        root = _with_members(own, members.get(place.path, {}))
    except Exception:  # noqa: BLE001 - zarr's own way meets it again
        return None
    return zarr.Group(zarr.AsyncGroup(metadata=root, store_path=place))


def _with_members(group: GroupMetadata, members: dict[str, Any]) -> GroupMetadata:
    return replace(group, consolidated_metadata=ConsolidatedMetadata(metadata=members))


class _Parser:
    """Makes metadata of arrays' documents, once of all that differ in their attributes only."""

    def __init__(self) -> None:
        self._parsed: dict[str, ArrayV3Metadata] = {}

    def parsed(self, node: Node) -> ArrayV3Metadata | GroupMetadata:
        document = dict(node.document)
        return self._array(document) if node.is_array else GroupMetadata.from_dict(document)

    def _array(self, document: dict[str, Any]) -> ArrayV3Metadata:
        rest = {name: value for name, value in document.items() if name != "attributes"}
        attributes = document.get("attributes")
        # As text: a document has lists and dicts in it.
        key = json.dumps(rest)
        parsed = self._parsed.get(key)
        if parsed is None:
            parsed = self._parsed[key] = ArrayV3Metadata.from_dict({**rest, "attributes": {}})
        if not isinstance(attributes, dict | None):
            raise TypeError(f"attributes of a Zarr array are no object: {attributes!r}")
        if vars(parsed).get("_stored_document") is not None:
            # From zarr 3.4 on: it was mended, and remembers the document.
            return ArrayV3Metadata.from_dict(document)
        ours = copy.copy(parsed)
        # A frozen dataclass, whose constructor would parse everything once more.
        object.__setattr__(ours, "attributes", attributes or {})
        return ours
