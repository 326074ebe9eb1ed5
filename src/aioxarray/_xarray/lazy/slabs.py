"""Loading a large encoded array slab by slab, so that the encoded values are held only in part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from aioxarray._runtime.tasks import gather
from aioxarray._runtime.threads.lent import Lent
from aioxarray._xarray.arrays.plan import Read, plan
from aioxarray._xarray.arrays.sources import is_read_by_chunks
from aioxarray._xarray.compat import BasicIndexer
from aioxarray._xarray.lazy.variables import Lazy, load_data
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Destination
from aioxarray._zarr.grid import write_edges
from aioxarray._zarr.stores.grants import Grants


def slabs_of(lazy: Lazy) -> list[slice]:
    """Return the slabs of whole chunks, along the first axis, to load ``lazy`` in; [] for none.

    There are some if it is much larger than what is in flight, and if it is decoded, so that its
    encoded values would be held beside the result.
    """
    dtype = lazy.data.dtype
    if lazy.nbytes < tuning.SLABBED_BYTES or len(lazy.into) > 1 or dtype.kind not in "biufcmM":
        return []
    parts = plan(lazy.data)
    source = parts.source
    if not parts.decodes or not isinstance(source, Read) or not is_read_by_chunks(source):
        return []
    array: Any = source.array
    key = source.key.tuple
    if array.shape == () or not all(isinstance(part, slice) for part in key):
        return []
    start, stop, step = key[0].indices(array.shape[0])
    if step != 1 or stop - start != lazy.data.shape[0]:
        return []
    row = lazy.nbytes / (stop - start)
    edges = [edge - start for edge in write_edges(array._array)[0] if start < edge < stop]
    cuts = [0]
    for edge in edges:
        if (edge - cuts[-1]) * row >= tuning.SLAB_BYTES:
            cuts.append(edge)
    cuts.append(stop - start)
    return [slice(*pair) for pair in itertools.pairwise(cuts)] if len(cuts) > 2 else []


async def load_in_slabs(
    lazy: Lazy, slabs: list[slice], grants: Grants, report: Callable[[int, int], None]
) -> Any:
    """Return the values of ``lazy``, loaded slab by slab into one array; on the I/O loop."""
    if lazy.into:
        values, lent = lazy.into[0]
    else:
        values, lent = np.empty(lazy.data.shape, lazy.data.dtype), Lent()
    todo = iter(slabs)
    done = 0

    async def work() -> None:
        nonlocal done
        for slab in todo:
            place = (slab, *[slice(None)] * (values.ndim - 1))
            part = values[place]
            data = lazy.data[BasicIndexer(place)]
            await load_data(Lazy(data, lazy.label, part.nbytes, (Destination(part, lent),)), grants)
            done += 1
            report(done, len(slabs))

    await gather([work] * min(len(slabs), tuning.SLABS_TOGETHER))
    return values
