"""The parts of stores that the plan of a read needs, by the names under which reads share them."""

from __future__ import annotations

from collections.abc import Iterator

from aioxarray._zarr.chunks.plan import ReadPlan, Way
from aioxarray._zarr.chunks.result import chunk_name
from aioxarray._zarr.chunks.shards import index_name
from aioxarray._zarr.stores.sharing import flights_of
from aioxarray._zarr.stores.window import Part


def parts_of(plan: ReadPlan) -> Iterator[Part]:
    """Yield the parts that ``plan`` needs: chunks, or indexes and inner chunks of shards.

    There are none if reads cannot share them, or if only zarr's own code knows them. Iterates over
    the chunks of the plan.
    """
    if plan.shared_as is None or plan.way is Way.ZARR:
        return
    flights = flights_of(plan.store, plan.shared_as)
    layout = plan.shards
    for chunk in plan.chunks:
        if layout is None:
            yield Part((flights, chunk_name(chunk)), plan.chunk_nbytes)
            continue
        yield Part((flights, index_name(chunk)), layout.index_of(chunk.spec.shape).size)
        for inner in layout.inner(chunk, views=plan.outline.views).chunks:
            yield Part((flights, chunk_name(inner, chunk.key)), layout.inner_bytes)
