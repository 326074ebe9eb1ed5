"""Records of the blocks that a save has written, so that the same save can go on later."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from aioxarray._zarr.metadata.hierarchy import ROOT_KEYS, V2_KEYS, join
from aioxarray._zarr.metadata.prefetched import Answers

Block = tuple[slice, ...]

_DOCUMENTS = (*ROOT_KEYS, *V2_KEYS)


class Ledger(Protocol):
    """The blocks that have been written, by any of the saves that share it.

    The blocks of a save depend only on the shapes, chunks and types of its arrays, so that the same
    save has the same blocks each time.
    """

    def has(self, path: str, block: Block) -> bool:
        """Return whether ``block`` of the array at ``path`` has been written."""

    def add(self, path: str, block: Block) -> None:
        """Record that it has been written; called on the I/O loop, between two requests."""


def without_metadata(answers: Answers, group: str, names: Iterable[Hashable]) -> Answers:
    """Return ``answers`` that say that there is no group, and that it has no arrays ``names``.

    A save that was ended has left chunks, and perhaps a part of the metadata, which the save that
    goes on writes again.
    """
    paths = [group, *(join(group, str(name)) for name in names)]
    hidden = {join(path, document): None for path in paths for document in _DOCUMENTS}
    values = {**answers.values, **hidden}
    return Answers(values, {**answers.listings, **dict.fromkeys(paths, ())})
