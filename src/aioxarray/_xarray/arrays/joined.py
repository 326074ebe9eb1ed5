"""Lazy arrays composed of other arrays, as a tree of nodes says; read in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from aioxarray._runtime.loops import run_blocking
from aioxarray._runtime.tasks import gather
from aioxarray._runtime.workers import in_worker
from aioxarray._xarray.arrays.nodes import JoinedNode, Piece, pieces
from aioxarray._xarray.arrays.selectors import (
    Selector,
    Values,
    as_index,
    as_slice,
    selector_of,
)
from aioxarray._xarray.compat import (
    BackendArray,
    BasicIndexer,
    ExplicitIndexer,
    IndexingSupport,
    OuterIndexer,
    async_explicit_indexing_adapter,
    decompose_indexer,
)

# Values of so many bytes are put in order on the I/O loop, and more in a worker thread.
_INLINE_BYTES = 1 << 20


class JoinedArray(BackendArray):
    """A backend array for xarray over a node, which reads only the parts that are selected."""

    def __init__(self, node: JoinedNode) -> None:
        self.node = node
        self.shape = node.shape
        self.dtype = node.dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def __getitem__(self, key: ExplicitIndexer) -> Any:
        return run_blocking(lambda: self.async_getitem(key))

    async def async_getitem(self, key: ExplicitIndexer) -> Any:
        return await self.read(key, _by_itself)

    async def read(
        self, key: ExplicitIndexer, load: Callable[[Any], Any], into: Values | None = None
    ) -> Any:
        """Return the values that ``key`` selects; ``load`` reads all parts concurrently.

        They are in the memory of ``into``, if that has their shape and dtype, and ``key`` selects
        by slices with positive steps. If not, it is changed all the same.
        """

        async def outer(selectors: tuple[Any, ...]) -> Values:
            selection = self._selection(selectors)
            kept = [isinstance(each, slice | np.ndarray) for each in selectors]
            shape = [len(selector) for selector in selection]
            parts = list(pieces(self.node, selection))
            fits = into is not None and into.dtype == self.dtype
            if into is not None and fits and list(into.shape) == _lengths(shape, kept):
                out = into[tuple(slice(None) if keep else None for keep in kept)]
            elif len(parts) == 1 and _is_all(parts[0], selection):
                out = await _only(parts[0], self.dtype, load)
                parts = []
            else:
                out = np.empty(shape, dtype=self.dtype)
            await gather([partial(_fill, out, piece, load) for piece in parts])
            return out[tuple(slice(None) if keep else 0 for keep in kept)]

        return await async_explicit_indexing_adapter(key, self.shape, IndexingSupport.OUTER, outer)

    def lazy_parts(self, key: ExplicitIndexer) -> Iterator[tuple[Any, Piece]]:
        """Yield the parts of other lazy arrays that `read` loads for ``key``, with their pieces."""
        outer, _ = decompose_indexer(key, self.shape, IndexingSupport.OUTER)
        for piece in pieces(self.node, self._selection(outer.tuple)):
            if not isinstance(piece.array, np.ndarray):
                yield _part(piece.array, piece.selection), piece

    def _selection(self, selectors: tuple[Any, ...]) -> list[Selector]:
        sizes = zip(selectors, self.shape, strict=True)
        return [selector_of(selector, size) for selector, size in sizes]


def _lengths(lengths: Sequence[int], kept: Sequence[bool]) -> list[int]:
    return [length for length, keep in zip(lengths, kept, strict=True) if keep]


async def _by_itself(array: Any) -> Any:
    return await array.async_get_duck_array()


async def _fill(out: Values, piece: Piece, load: Callable[[Any], Any]) -> None:
    if isinstance(piece.array, np.ndarray):
        values = piece.array[as_index(piece.selection)]
    else:
        values = await load(_part(piece.array, piece.selection))
    out[as_index(piece.place)] = piece.fit(values)


def _is_all(piece: Piece, selection: Sequence[Selector]) -> bool:
    """Return whether a lazy piece is all of a selection, in order."""
    whole = [range(len(selector)) for selector in selection]
    ranges = [each for each in piece.place if isinstance(each, range)]
    return ranges == whole and not isinstance(piece.array, np.ndarray)


async def _only(piece: Piece, dtype: np.dtype[Any], load: Callable[[Any], Any]) -> Values:
    """Return the values of a piece without another copy of them, if they can be written to."""
    values = await load(_part(piece.array, piece.selection))

    def fit() -> Values:
        return np.require(piece.fit(values), dtype, "W")

    # To put many windows in order takes as long as to copy them.
    return fit() if values.nbytes <= _INLINE_BYTES else await in_worker(fit)


def _part(array: Any, selection: Sequence[Selector]) -> Any:
    """Return the part of a lazy array that ``selection`` selects, still lazy."""
    if all(isinstance(selector, range) for selector in selection):
        return array[BasicIndexer(tuple(as_slice(selector) for selector in selection))]
    keys = (
        as_slice(each) if isinstance(each, range) else np.asarray(each, dtype=np.int64)
        for each in selection
    )
    return array.oindex[OuterIndexer(tuple(keys))]
