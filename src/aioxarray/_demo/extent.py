"""Size of the lazy data: variables, chunks and bytes."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, replace

import xarray as xr


@dataclass(frozen=True)
class Extent:
    """Chunk grid of a variable, which determines what a load fetches.

    Attributes
    ----------
    lengths
        The shape of a chunk.
    counts
        The number of chunks along each dimension.
    itemsize
        Bytes per element, decoded.
    """

    lengths: tuple[int, ...]
    counts: tuple[int, ...]
    itemsize: int

    @classmethod
    def of(cls, variable: xr.Variable) -> Extent:
        """Return the extent of ``variable``; an unchunked variable is one chunk."""
        lengths = variable.encoding.get("chunks") or variable.shape
        counts = (-(-n // max(m, 1)) for n, m in zip(variable.shape, lengths, strict=True))
        return cls(tuple(lengths), tuple(counts), variable.dtype.itemsize)

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return math.prod(self.counts)

    @property
    def nbytes(self) -> int:
        """The size of the whole chunks, decoded."""
        return self.chunks * math.prod(self.lengths) * self.itemsize

    def beginning(self, max_bytes: int, max_chunks: int) -> Extent:
        """Return as many leading chunks as the limits allow, but at least one."""
        if self.chunks == 0:
            return self
        each = math.prod(self.lengths) * self.itemsize
        allowed = max(1, min(max_chunks, max_bytes // max(each, 1)))
        counts = list(self.counts)
        for axis, count in enumerate(counts):
            others = math.prod(counts) // count
            counts[axis] = max(1, min(count, allowed // others))
        return replace(self, counts=tuple(counts))


def nodes(obj: xr.Dataset | xr.DataTree) -> dict[str, xr.Dataset]:
    """Return the datasets in ``obj`` by path, without inherited coordinates."""
    if isinstance(obj, xr.Dataset):
        return {"/": obj}
    return {node.path: node.to_dataset(inherit=False) for node in obj.subtree}


def extents(obj: xr.Dataset | xr.DataTree) -> dict[tuple[str, Hashable], Extent]:
    """Return the extent of each variable except indexes, which are loaded on opening."""
    return {
        (path, name): Extent.of(variable)
        for path, node in nodes(obj).items()
        for name, variable in node.variables.items()
        if name not in node.xindexes
    }


def describe(obj: xr.Dataset | xr.DataTree) -> str:
    """Describe what there is to load."""
    found = extents(obj).values()
    kind = f"DataTree of {len(nodes(obj))} nodes" if isinstance(obj, xr.DataTree) else "Dataset"
    chunks = sum(extent.chunks for extent in found)
    nbytes = sum(extent.nbytes for extent in found)
    return f"{kind}: {_plural(len(found), 'variable')}, {_plural(chunks, 'chunk')}, {size(nbytes)}"


def size(nbytes: int) -> str:
    """Return a number of bytes as text."""
    return f"{nbytes / 1e6:.1f} MB"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
