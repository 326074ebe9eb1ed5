"""Invalid metadata documents, for the notes of an error: zarr's errors do not name them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zarr.storage import MemoryStore, StorePath

from aioxarray._zarr.compat import (
    ArrayV2Metadata,
    ArrayV3Metadata,
    AsyncArray,
    ConsolidatedMetadata,
    GroupMetadata,
)
from aioxarray._zarr.metadata.hierarchy import is_json, join, parse
from aioxarray._zarr.stores.request import DOCUMENTS


def problems(values: Mapping[str, bytes | None]) -> Iterator[str]:
    """Yield what is wrong with the metadata documents in ``values``, by key."""
    for key, data in values.items():
        name = key.rpartition("/")[2]
        if name not in DOCUMENTS or data is None:
            continue
        document = parse(data)
        if not is_json(data):
            kind = "an HTML page" if data.lstrip()[:1] == b"<" else "no JSON document"
            yield f"{key!r} holds {kind}"
        elif document is None:
            yield f"{key!r} holds no JSON object"
        elif name == ".zmetadata":
            yield from _members(key, document.get("metadata"))
        elif "consolidated_metadata" in document:
            yield from _consolidated(key, document)
        else:
            yield from _node(key, "", document, lambda other: parse(values.get(other)))


def _consolidated(key: str, document: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with a group of format 3 and its consolidated metadata."""
    own = {name: value for name, value in document.items() if name != "consolidated_metadata"}
    yield from _node(key, "", own, lambda other: None)
    inside = document["consolidated_metadata"]
    if inside is None:
        return
    problem = _error_of(lambda: ConsolidatedMetadata.from_dict(inside))
    if problem is not None:
        yield f"the consolidated metadata in {key!r} is invalid: {problem}"
    members = inside.get("metadata") if isinstance(inside, dict) else None
    if isinstance(members, dict):
        members = {join(path, "zarr.json"): member for path, member in members.items()}
    yield from _members(key, members)


def _members(key: str, members: Any) -> Iterator[str]:
    """Yield what is wrong with the documents in the consolidated metadata at ``key``."""
    if not isinstance(members, dict):
        yield f"{key!r} has no consolidated metadata"
        return
    for name, member in members.items():
        if isinstance(member, dict):
            yield from _node(name, f" in {key!r}", member, members.get)
        else:
            yield f"{name!r} in {key!r} is no JSON object"


def _node(
    key: str, place: str, document: dict[str, Any], other: Callable[[str], Any]
) -> Iterator[str]:
    """Yield what is wrong with the document of one array or group.

    ``other`` returns the document of another key; ``place`` says where all of them are.
    """
    folder, _, name = key.rpartition("/")
    is_array = name == ".zarray" or document.get("node_type") == "array"
    if name == ".zattrs":
        return
    node_type = document.get("node_type")
    if name == "zarr.json" and node_type not in ("array", "group"):
        yield f"{key!r}{place} is invalid: node_type is {node_type!r}, not 'array' or 'group'"
        return
    problem = _error_of(lambda: _parsed(name, document, is_array=is_array))
    attributes = document.get("attributes")
    if problem is None and not isinstance(attributes, dict | None):
        problem = f"the attributes should be a JSON object, got {attributes!r}"
    if problem is None and is_array:
        if name == ".zarray":
            key = join(folder, ".zattrs")
            attributes = other(key)
        problem = _dimensions(document, attributes)
    if problem is not None:
        yield f"{key!r}{place} is invalid: {problem}"


def _parsed(name: str, document: dict[str, Any], *, is_array: bool) -> object:
    """Return what zarr makes of a document; raise its error if the document is invalid."""
    # zarr pops items.
    given: Any = copy.deepcopy(document)
    if not is_array:
        return GroupMetadata.from_dict({"attributes": {}, **given})
    kind: Any = ArrayV2Metadata if name == ".zarray" else ArrayV3Metadata
    # The codecs are looked up when an array is made.
    return AsyncArray(kind.from_dict(given), StorePath(MemoryStore()))


def _dimensions(document: Mapping[str, Any], attributes: Any) -> str | None:
    """Return why xarray has no names for the dimensions of a valid array; None if it has."""
    names: Any = document.get("dimension_names")
    source = "dimension_names"
    if names is None:
        names = attributes.get("_ARRAY_DIMENSIONS") if isinstance(attributes, dict) else None
        source = "the attribute _ARRAY_DIMENSIONS"
    count = len(document["shape"])
    is_list = isinstance(names, list) and all(isinstance(each, str) for each in names)
    if (is_list and len(names) == count) or (names is None and count == 0):
        return None
    return f"{source} should be a list of {count} names, got {names!r}"


def _error_of(function: Callable[[], object]) -> str | None:
    """Return the error of ``function()`` as a text; None if there is none."""
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever the document makes zarr raise
        return f"{type(error).__name__}: {error}"
    return None
