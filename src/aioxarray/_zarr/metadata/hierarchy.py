"""Parsing the metadata documents of a Zarr hierarchy, without I/O."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ROOT_KEYS = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
"""The documents that zarr requests when it opens a group of unknown format."""

V2_KEYS = (".zarray", ".zgroup", ".zattrs")
"""The documents that zarr requests when it opens a member of a group of format 2."""


@dataclass(frozen=True)
class StoredNode:
    """An array or group: its path from the root of the store, and its parsed documents."""

    path: str
    document: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_array(self) -> bool:
        """Whether the node is an array; otherwise it is a group."""
        return "shape" in self.document

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def is_index(self) -> bool:
        """Whether xarray makes an index from it: a 1-d array named like its dimension."""
        if self.document.get("zarr_format") == 2:
            dims = self.attributes.get("_ARRAY_DIMENSIONS")
        else:
            dims = self.document.get("dimension_names")
        return self.is_array and dims == [self.name]

    def end_chunk_keys(self) -> Iterator[str]:
        """Yield the keys of the chunks that hold the first and the last element."""
        if (counts := self._chunk_counts()) is not None:
            last = tuple(count - 1 for count in counts)
            for at in dict.fromkeys(((0,) * len(counts), last)):
                yield self._chunk_key(at)

    def chunk_keys(self, most: int) -> Iterator[str]:
        """Yield the keys of all chunks; none if there are more than ``most``."""
        counts = self._chunk_counts()
        if counts is not None and math.prod(counts) <= most:
            for at in itertools.product(*map(range, counts)):
                yield self._chunk_key(at)

    def _chunk_counts(self) -> tuple[int, ...] | None:
        """Return the number of chunks along each axis; None if empty, irregular or unsupported."""
        document = self.document
        if document["zarr_format"] == 2:
            chunks = document["chunks"]
        else:
            grid, encoding = document["chunk_grid"], document["chunk_key_encoding"]
            if grid["name"] != "regular" or encoding["name"] not in ("default", "v2"):
                return None
            chunks = grid["configuration"]["chunk_shape"]
        shape = document["shape"]
        if 0 in shape:
            return None
        return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))

    def _chunk_key(self, at: tuple[int, ...]) -> str:
        document, start = self.document, ""
        if document["zarr_format"] == 2:
            separator = document.get("dimension_separator") or "."
        else:
            encoding = document["chunk_key_encoding"]
            start, separator = ("c", "/") if encoding["name"] == "default" else ("", ".")
            separator = (encoding.get("configuration") or {}).get("separator", separator)
        parts = [start, *map(str, at)] if start else list(map(str, at))
        return join(self.path, separator.join(parts) or "0")


def join(path: str, name: str) -> str:
    """Return the path of ``name`` below ``path``."""
    return f"{path}/{name}" if path else name


def parse(data: bytes | None) -> dict[str, Any] | None:
    """Return the JSON object in ``data``; None if it is missing or invalid."""
    if data is None:
        return None
    try:
        document = json.loads(data)
    except ValueError:
        # zarr will raise an error when it reads the same document.
        return None
    return document if isinstance(document, dict) else None


def is_json(data: bytes) -> bool:
    """Return whether ``data`` is a JSON document of any kind."""
    try:
        json.loads(data)
    except ValueError:
        return False
    return True


def node_v3(path: str, document: Mapping[str, Any]) -> StoredNode:
    """Return the node that a ``zarr.json`` describes."""
    return StoredNode(path, document, document.get("attributes") or {})


def node_v2(path: str, documents: Mapping[str, Mapping[str, Any] | None]) -> StoredNode | None:
    """Return the node that documents of format 2 at ``path`` describe; None if there is none."""
    document = documents.get(".zarray") or documents.get(".zgroup")
    if document is None:
        return None
    return StoredNode(path, document, documents.get(".zattrs") or {})


def consolidated_nodes(
    root: str, documents: Mapping[str, Mapping[str, Any]]
) -> list[StoredNode] | None:
    """Return all nodes below ``root`` from its consolidated metadata; None if it has none.

    ``documents`` are the documents of the group at ``root``, by name (`ROOT_KEYS`).
    """
    if (group := documents.get("zarr.json")) is not None:
        inside = (group.get("consolidated_metadata") or {}).get("metadata")
        if inside is None:
            return None
        return [node_v3(join(root, path), document) for path, document in inside.items()]
    consolidated = documents.get(".zmetadata")
    if consolidated is None:
        return None
    by_path: dict[str, dict[str, Any]] = {}
    for key, document in consolidated.get("metadata", {}).items():
        path, _, name = key.rpartition("/")
        by_path.setdefault(path, {})[name] = document
    nodes = [node_v2(join(root, path), parts) for path, parts in by_path.items() if path]
    return [node for node in nodes if node is not None]


@dataclass(frozen=True)
class Hierarchy:
    """A group of format 3, and all nodes below it.

    Attributes
    ----------
    document
        The ``zarr.json`` of the group, without consolidated metadata.
    nodes
        The nodes below the group; each group comes before its members.
    consolidated
        Whether the nodes are those of the consolidated metadata of the group.
    """

    document: Mapping[str, Any]
    nodes: Sequence[StoredNode]
    consolidated: bool = False


def hierarchy(
    group: Mapping[str, Any], nodes: Sequence[StoredNode], *, consolidated: bool = False
) -> Hierarchy | None:
    """Return the hierarchy of a group, given its ``zarr.json``, and of all ``nodes`` below it.

    None if zarr would interpret any of these nodes differently when opening them one by one or,
    with ``consolidated``, from the consolidated metadata of the group.
    """
    for node in nodes:
        document = node.document
        of_kind = document.get("node_type") == ("array" if node.is_array else "group")
        if not of_kind or document.get("zarr_format") != 3:
            return None
        inside = document.get("consolidated_metadata")
        if inside is not None and not (consolidated and inside == _NOTHING_INSIDE):
            # zarr would use that instead of the documents in the store.
            return None
    if consolidated:
        nodes = sorted(nodes, key=lambda node: node.path.count("/"))
        parents = [parent for parent, _ in itertools.groupby(nodes, key=lambda node: node.parent)]
        whole = group["consolidated_metadata"]
        if len(parents) > len(set(parents)) or {**whole, "metadata": {}} != _NOTHING_INSIDE:
            # Unlike what zarr itself writes.
            return None
    own = {name: value for name, value in group.items() if name != "consolidated_metadata"}
    return Hierarchy(own, nodes, consolidated)


_NOTHING_INSIDE = {"kind": "inline", "must_understand": False, "metadata": {}}


def time_nodes(nodes: Iterable[StoredNode]) -> list[StoredNode]:
    """Return the arrays of which xarray reads the first and last value to decode times."""
    arrays = [node for node in nodes if node.is_array]
    times = [node for node in arrays if " since " in str(node.attributes.get("units", ""))]
    # The bounds of a time coordinate need not have units themselves.
    named = [(node.parent, node.attributes.get("bounds")) for node in times]
    bounds = {join(parent, name) for parent, name in named if isinstance(name, str)}
    return times + [node for node in arrays if node.path in bounds and node not in times]
