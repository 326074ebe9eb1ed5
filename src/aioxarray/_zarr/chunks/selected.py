"""The chunks of an array that a selection touches, and the form of their result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._zarr.chunks.forms import Form, chunk_keys, chunk_shape_of
from aioxarray._zarr.chunks.result import Destination, Outline, Result
from aioxarray._zarr.compat import cpu
from aioxarray._zarr.points import Points
from aioxarray._zarr.positions import Positions
from aioxarray._zarr.selection import Block

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aioxarray._zarr.compat import NDBuffer
    from aioxarray._zarr.selection import Chunk


@dataclass(frozen=True)
class Selected:
    """The chunks that a selection touches, and the form of the result that they are read into."""

    form: Form
    chunks: Iterator[Chunk]
    count: int
    shape: tuple[int, ...]
    basic: bool
    # None for single points.
    block: Block | None = None

    def result(self, into: Destination | None = None) -> Result:
        """Return a new result: in the array of ``into``, if that can hold it."""
        if into is None or not self._fits(into.array):
            return self._result(self.shape)
        out = cpu.NDBuffer.from_numpy_array(into.array)
        return self._result_in(out).observed(into.lent)

    def _fits(self, array: NDArray[Any]) -> bool:
        spec = self.form.spec
        return (
            spec.prototype.nd_buffer is cpu.NDBuffer
            and array.shape == self.shape
            and array.dtype == spec.dtype.to_native_dtype()
            # Texts and objects are not in the buffer of an array.
            and array.dtype.kind not in "OT"
            and not array.dtype.hasobject
        )

    def outline(self) -> Outline:
        """Return the outline of a new result, without memory for it."""
        # Of a miniature, whose memory is contiguous in the same way.
        small = self._result(tuple(min(length, 2) for length in self.shape))
        return small.outline._replace(shape=self.shape)

    def _result(self, shape: tuple[int, ...]) -> Result:
        spec = self.form.spec
        out = spec.prototype.nd_buffer.empty(
            shape=shape, dtype=spec.dtype.to_native_dtype(), order=spec.config.order
        )
        return self._result_in(out).observed()

    def _result_in(self, out: NDBuffer) -> Result:
        return Result(self.form.pipeline, self.form.prepared, out, (), self.basic)


def select_block(inner: Any, form: Form, selection: Sequence[int | slice]) -> Selected | None:
    """Return the chunks of a block; None if zarr has to read it."""
    if form.chunk_shape is None or _missing_are_errors(inner):
        return None
    block = _block(inner, form.chunk_shape, selection)
    return None if block is None else _select(inner, form, block, block.shape, basic=True)


def _select(
    inner: Any, form: Form, touched: Block | Points, shape: tuple[int, ...], *, basic: bool
) -> Selected:
    """Return the chunks of ``touched``, to be read into an array of ``shape``."""
    chunks = touched.chunks(chunk_keys(inner), form.spec)
    block = touched if isinstance(touched, Block) else None
    return Selected(form, chunks, touched.count, shape, basic, block)


def select_points(inner: Any, form: Form, coordinates: Sequence[NDArray[Any]]) -> Selected | None:
    """Return the chunks of single points; None if zarr has to read them."""
    if form.chunk_shape is None or _missing_are_errors(inner):
        return None
    points = Points.of(coordinates, inner.metadata.shape, form.chunk_shape)
    if points is None:
        return None
    return _select(inner, form, points, (math.prod(points.shape),), basic=False)


def select_lists(
    inner: Any, form: Form, selection: Sequence[int | slice | NDArray[Any]]
) -> Selected | None:
    """Return the chunks of a selection by lists, with all axes; None if zarr has to read them."""
    if form.chunk_shape is None or _missing_are_errors(inner):
        return None
    parts: list[int | slice | Positions] = []
    for each, size, length in zip(selection, inner.metadata.shape, form.chunk_shape, strict=True):
        if isinstance(each, np.ndarray):
            positions = Positions.of(each, size, length)
            if positions is None:
                return None
            parts.append(positions)
        elif isinstance(each, slice):
            parts.append(each)
        elif -size <= each < size:
            parts.append(slice(each % size, each % size + 1))
        else:
            return None
    block = _block(inner, form.chunk_shape, parts)
    return None if block is None else _select(inner, form, block, block.shape, basic=block.basic)


def _missing_are_errors(inner: Any) -> bool:
    # zarr has this option from 3.2 on.
    return getattr(inner.config, "read_missing_chunks", True) is False


def regular_block(inner: Any, selection: Sequence[int | slice]) -> Block | None:
    """Return the chunks of an asynchronous array that ``selection`` touches.

    Returns None if the chunks do not form a regular grid, or if a slice has a negative step.
    """
    chunk_shape = chunk_shape_of(inner.metadata)
    return None if chunk_shape is None else _block(inner, chunk_shape, selection)


def _block(
    inner: Any, chunk_shape: tuple[int, ...], selection: Sequence[int | slice | Positions]
) -> Block | None:
    if any(isinstance(each, slice) and (each.step or 1) < 1 for each in selection):
        return None
    return Block(selection, inner.metadata.shape, chunk_shape)
