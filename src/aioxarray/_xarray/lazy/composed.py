"""The lazy arrays inside the data of variables, and data that is composed of such arrays."""

from __future__ import annotations

import copy
from typing import Any

from aioxarray._xarray.arrays.joined import JoinedArray
from aioxarray._xarray.arrays.nodes import JoinedNode, Leaf
from aioxarray._xarray.compat import (
    CopyOnWriteArray,
    ExplicitlyIndexed,
    IndexingAdapter,
    LazilyIndexedArray,
    MemoryCachedArray,
)
from aioxarray._xarray.lazy.aio_array import AioArray


def lazy_array(data: Any) -> Any:
    """Return the lazy array inside the data of a variable; None for any other data."""
    lazy = data
    while isinstance(lazy, MemoryCachedArray | CopyOnWriteArray):
        lazy = lazy.array
    if not isinstance(lazy, ExplicitlyIndexed) or isinstance(lazy, IndexingAdapter):
        # Already in memory, or chunked.
        return None
    return lazy


def lazy_data_of(node: JoinedNode) -> Any:
    """Return data for a variable that is composed as ``node`` says, and loaded when needed."""
    array = (
        node.array if isinstance(node, Leaf) else AioArray(LazilyIndexedArray(JoinedArray(node)))
    )
    protected: Any = copy.copy(array)
    return MemoryCachedArray(CopyOnWriteArray(protected))
