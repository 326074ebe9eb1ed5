"""The order in which a save writes metadata to the store, and deletes what it replaces.

A reader at any moment, or after a save that died, must not find an array whose chunks are missing.
So a document is written after everything that it refers to, and deleted before it: arrays before
their groups, those before the outermost group, and that before consolidated metadata. Each wave
starts when the previous one has ended.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from enum import IntEnum, auto
from functools import partial
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.storage import ObjectStore, WrapperStore

from aioxarray._runtime.tasks import gather
from aioxarray._zarr.compat import default_buffer_prototype
from aioxarray._zarr.metadata.hierarchy import join, parse
from aioxarray._zarr.metadata.prefetched import Answers
from aioxarray._zarr.metadata.write_behind import Changes
from aioxarray._zarr.stores.identity import below, layers
from aioxarray._zarr.stores.printable import without_secrets
from aioxarray._zarr.stores.request import DOCUMENTS
from aioxarray._zarr.stores.sharing import forget

if TYPE_CHECKING:
    from aioxarray._zarr.compat import Buffer
    from aioxarray._zarr.stores.limited import LimitedStore

# How long a failed or cancelled save tries to restore metadata, in case the store hangs.
_RESTORE_S = 5.0


class _Wave(IntEnum):
    """The waves in their order."""

    VALUES = auto()
    # Before the arrays that they belong to, so that no reader finds these without them.
    ATTRIBUTES = auto()
    ARRAYS = auto()
    # Those of groups, and of arrays that are not written: they may name other arrays.
    OTHER_ATTRIBUTES = auto()
    GROUPS = auto()
    OUTERMOST_GROUP = auto()
    CONSOLIDATED_GROUPS = auto()
    CONSOLIDATED_METADATA = auto()
    DELETIONS = auto()


def waves(changes: Changes, answers: Answers) -> list[dict[str, Buffer | None]]:
    """Return the writes of ``changes`` in waves, without the values that the store already has.

    A value of None stands for a key to delete; deletions are the last wave.
    """
    found = _by_wave(changes, answers)
    return [found[wave] for wave in sorted(found)]


def template_and_rest(
    changes: Changes, answers: Answers
) -> tuple[list[dict[str, Buffer | None]], list[dict[str, Buffer | None]]]:
    """Return the writes of `waves` that make arrays, and those after them.

    The first are the template of a save that can be resumed: until the second are written, there is
    no group in which a reader would find the arrays.
    """
    found = _by_wave(changes, answers)
    first = [found[wave] for wave in sorted(found) if wave <= _Wave.ARRAYS]
    return first, [found[wave] for wave in sorted(found) if wave > _Wave.ARRAYS]


def _by_wave(changes: Changes, answers: Answers) -> dict[_Wave, dict[str, Buffer | None]]:
    values = {
        key: value
        for key, value in changes.values.items()
        if not (_is_stored(key, value, answers) and not changes.has_emptied(key))
    }
    groups = [key.rpartition("/")[0] for key, value in values.items() if _is_group(key, value)]
    outermost = min(groups, key=len, default="")
    found: dict[_Wave, dict[str, Buffer | None]] = {}
    for key, value in values.items():
        found.setdefault(_wave_of(key, value, values, outermost), {})[key] = value
    return found


def _is_stored(key: str, value: Buffer | None, answers: Answers) -> bool:
    if key not in answers.values:
        return value is None and answers.lacks(key)
    stored = answers.values[key]
    if value is None or stored is None:
        return value is stored
    return value.to_bytes() == stored.to_bytes()


def _wave_of(
    key: str, value: Buffer | None, values: Mapping[str, Buffer | None], outermost: str
) -> _Wave:
    path, _, name = key.rpartition("/")
    if value is None:
        return _Wave.DELETIONS
    if name == ".zmetadata":
        return _Wave.CONSOLIDATED_METADATA
    if _is_group(key, value):
        if _has_consolidated(name, value):
            return _Wave.CONSOLIDATED_GROUPS
        return _Wave.OUTERMOST_GROUP if path == outermost else _Wave.GROUPS
    if name == ".zattrs":
        is_beside = join(path, ".zarray") in values
        return _Wave.ATTRIBUTES if is_beside else _Wave.OTHER_ATTRIBUTES
    return _Wave.ARRAYS if name in DOCUMENTS else _Wave.VALUES


def _is_group(key: str, value: Buffer | None) -> bool:
    name = key.rpartition("/")[2]
    if name == ".zgroup":
        return value is not None
    return name == "zarr.json" and (parse(_bytes(value)) or {}).get("node_type") == "group"


def _has_consolidated(name: str, value: Buffer) -> bool:
    document = (parse(value.to_bytes()) or {}) if name == "zarr.json" else {}
    return bool((document.get("consolidated_metadata") or {}).get("metadata"))


def _bytes(value: Buffer | None) -> bytes | None:
    return None if value is None else value.to_bytes()


async def write_all(limited: LimitedStore, listed: Iterable[Mapping[str, Buffer | None]]) -> None:
    """Write waves sequentially."""
    for wave in listed:
        await write(limited, wave)


async def write_or_restore(
    limited: LimitedStore,
    listed: Iterable[Mapping[str, Buffer | None]],
    changes: Changes,
    answers: Answers,
) -> None:
    """Write waves sequentially; if that fails or is cancelled, restore what they replaced.

    Otherwise some arrays would be left longer than others: they could not be opened without
    consolidated metadata, and a retried append would start at another length.
    """
    begun: list[dict[str, Buffer | None]] = []
    try:
        for wave in listed:
            replaced = {key: answers.values.get(key) for key in wave}
            begun.append(
                {
                    key: value
                    for key, value in replaced.items()
                    if value is not None and not changes.has_emptied(key)
                }
            )
            await write(limited, wave)
    except (Exception, asyncio.CancelledError) as error:
        try:
            async with asyncio.timeout(_RESTORE_S):
                await write_all(limited, reversed(begun))
        except Exception as another:  # noqa: BLE001 - the first is raised
            error.add_note(
                "and the metadata from before could not be put back: "
                f"{type(another).__name__}: {without_secrets(str(another))}"
            )
        raise


async def write(limited: LimitedStore, wave: Mapping[str, Buffer | None]) -> None:
    """Write one of `waves`, all keys concurrently."""
    try:
        await gather([partial(_write, limited, key, value) for key, value in wave.items()])
    finally:
        forget(limited)


async def _write(limited: LimitedStore, key: str, value: Buffer | None) -> None:
    if value is None:
        await limited.delete(key)
    else:
        await limited.set(key, value)


# --- deleting ------------------------------------------------------------------------------


async def delete_emptied(limited: LimitedStore, changes: Changes, answers: Answers) -> None:
    """Delete everything below the emptied prefixes: documents first, then chunks.

    Before that, entries for these prefixes are removed from the consolidated metadata of enclosing
    groups, where the save is going to rewrite it.
    """
    emptied = [prefix for prefix in changes.emptied if not answers.lacks(prefix)]
    if not emptied:
        return
    listings = await gather([partial(_keys, limited, prefix) for prefix in emptied])
    prefixes = [prefix for prefix, keys in zip(emptied, listings, strict=True) if keys]
    keys = [key for listed in listings for key in listed]
    if not keys:
        return
    await write(limited, _without(prefixes, changes, answers))
    documents = [key for key in keys if key.rpartition("/")[2] in DOCUMENTS]
    for wave in _document_waves(documents):
        await write(limited, dict.fromkeys(wave))
    if _deletes_at_once(limited):
        try:
            await gather([partial(limited.delete_dir, prefix) for prefix in prefixes])
        finally:
            forget(limited)
    else:
        rest = set(keys) - set(documents)
        await write(limited, dict.fromkeys(key for key in keys if key in rest))


async def _keys(limited: LimitedStore, prefix: str) -> list[str]:
    # With a slash: otherwise the prefix "a" would match keys of "ab".
    listed = [key async for key in limited.list_prefix(f"{prefix}/" if prefix else "")]
    return [key for key in listed if below(key, prefix)]


def _document_waves(keys: Iterable[str]) -> list[list[str]]:
    """Return documents in the order of deletion: those of the outermost group, then the others."""
    listed = list(keys)
    outermost = min((key.count("/") for key in listed), default=0)
    first = [key for key in listed if key.count("/") == outermost]
    rest = [key for key in listed if key.count("/") != outermost]
    return [wave for wave in (first, rest) if wave]


def _deletes_at_once(store: Store) -> bool:
    """Return whether the store deletes a prefix by itself (a directory, an Icechunk session)."""
    *wrappers, innermost = layers(store)
    for wrapper in wrappers:
        if type(wrapper).delete_dir is not WrapperStore.delete_dir and not hasattr(
            wrapper, "inner"
        ):
            # A wrapper with its own method, which must not be bypassed.
            return False
    # zarr's ObjectStore lists the keys again, and deletes ten at a time.
    return type(innermost).delete_dir not in (Store.delete_dir, ObjectStore.delete_dir)


def _without(
    prefixes: Iterable[str], changes: Changes, answers: Answers
) -> dict[str, Buffer | None]:
    """Return consolidated metadata of enclosing groups in ``changes``, without ``prefixes``."""
    cut: dict[str, Buffer | None] = {}
    listed = list(prefixes)
    for key, value in changes.values.items():
        path, _, name = key.rpartition("/")
        stored = answers.values.get(key)
        if value is None or stored is None or name not in ("zarr.json", ".zmetadata"):
            continue
        inside = [prefix for prefix in listed if below(prefix, path) and prefix != path]
        document = parse(stored.to_bytes()) or {}
        nodes = _consolidated(document, name)
        named = [
            node
            for node in nodes or ()
            if any(
                below(join(path, node), prefix) or join(path, node) == prefix for prefix in inside
            )
        ]
        if nodes is None or not named:
            continue
        for node in named:
            del nodes[node]
        text = json.dumps(document, indent=2).encode()
        cut[key] = default_buffer_prototype().buffer.from_bytes(text)
    return cut


def _consolidated(document: dict[str, Any], name: str) -> dict[str, Any] | None:
    holder = document.get("consolidated_metadata") if name == "zarr.json" else document
    nodes = (holder or {}).get("metadata")
    return nodes if isinstance(nodes, dict) else None
