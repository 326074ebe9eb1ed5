"""The plan of a load: each lazy variable as the load itself would read it, with nothing read."""

from __future__ import annotations

import math
from collections import Counter as Multiset
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aioxarray._xarray.arrays.plan import Opaque, Read, plan
from aioxarray._xarray.arrays.read import Means, each_plan, lane_key, means_of
from aioxarray._xarray.arrays.sources import is_read_by_chunks, sources
from aioxarray._xarray.dask.chunked import scheduler_of
from aioxarray._xarray.dask.reading import without_dask
from aioxarray._xarray.explaining.advice import Layout, advice
from aioxarray._xarray.explaining.load_plan import LoadPlan, VariablePlan
from aioxarray._xarray.lazy.find import Found, each_variable
from aioxarray._xarray.lazy.sizes import is_unknown
from aioxarray._xarray.lazy.together import Sorting, reads_small_block
from aioxarray._xarray.lazy.variables import Lazies, Lazy, lazy_data
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.counting import Count, Counter
from aioxarray._zarr.chunks.plan import ReadPlan
from aioxarray._zarr.stores.identity import libraries, same, unwrapped
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.servers.hosts import Host, host_of
from aioxarray.config import (
    cache_limit,
    is_bypassing_dask,
    memory_limit,
    request_limit,
    thread_count,
)

_TOGETHER = "with other small variables, one after another in one thread"


def survey(obj: Any, *, shares: bool = False) -> LoadPlan:
    """Return what a load of ``obj`` would do.

    ``shares`` tells that its parts are loaded by a stream, which shares the chunks that several of
    them need, also those of local stores.
    """
    found = list(each_variable(obj))
    lazies = lazy_data(found)
    paths = {each.label: each.path for each in found}
    survey_of = _Survey(lazies, shares)
    plans = survey_of.plans(paths)
    holders = {id(variable) for _, variable, _ in lazies.holders()}
    variables = [_planned(each, plans, holders) for each in found]
    parts = [part for each in variables for part in each.parts]
    pieces = [piece for each in variables for piece in each.beside]
    limit = request_limit()
    measured = [host.measured for host in survey_of.hosts]
    latencies = [each.latency_s for each in measured if each.latency_s is not None]
    bandwidths = [each.bandwidth for each in measured if each.bandwidth is not None]
    return LoadPlan(
        tuple(each.plan for each in variables),
        None if any(each.plan.memory is None for each in variables) else _memory(parts, pieces),
        None if math.isinf(limit) else int(limit),
        # Those of the slowest server.
        max(latencies, default=None),
        min(bandwidths, default=None),
    )


@dataclass(frozen=True)
class _Part:
    """Reads that a variable consists of: the bytes of each, their number, and who makes them."""

    held: int
    reads: int
    in_threads: bool


@dataclass(frozen=True)
class _Planned:
    """The plan of a variable, and what it holds in memory besides its result.

    Attributes
    ----------
    plan
        The plan.
    parts
        Its reads in progress.
    beside
        The bytes of arrays that exist while they are decoded, or copied into the result.
    """

    plan: VariablePlan
    parts: list[_Part] = field(default_factory=list)
    beside: list[int] = field(default_factory=list)


def _planned(found: Found, plans: dict[str, _Planned], holders: set[int]) -> _Planned:
    if found.label in plans:
        return plans[found.label]
    if id(found.variable) in holders:
        reason = "gets the values of another variable, with the same lazy data"
        return _Planned(VariablePlan(found.path, "shared", reason))
    return _Planned(VariablePlan(found.path, "memory", "its values are in memory"))


def _memory(parts: Iterable[_Part], beside: Iterable[int]) -> int:
    """Return the most bytes that reads in progress hold, and the arrays ``beside``, at once."""
    in_flight = sum(
        _largest([part for part in parts if part.in_threads is in_threads], limit)
        for in_threads, limit in ((False, request_limit()), (True, thread_count()))
    )
    limit = memory_limit()
    if in_flight > limit:
        # Small chunks get an eighth on top, and a chunk larger than the limit is read alone.
        largest = max(part.held for part in parts)
        in_flight = int(min(in_flight, max(limit, largest) + limit / 8))
    return in_flight + sum(sorted(beside, reverse=True)[: thread_count()])


def _largest(parts: Sequence[_Part], limit: float) -> int:
    """Return the bytes of the largest ``limit`` of the reads in ``parts``."""
    total = 0
    for part in sorted(parts, key=lambda part: -part.held):
        count = min(part.reads, limit)
        total += int(count) * part.held
        limit -= count
    return total


class _Survey:
    """The reads of one load, which may need the same chunks."""

    def __init__(self, found: Lazies, shares: bool) -> None:
        lazies, self._bypassed = _without_dask(found)
        self._lazies = lazies
        self._shares = shares
        self._counter = Counter()
        # The servers that are read.
        self.hosts: dict[Host, None] = {}
        # For each lazy array that is not chunked, what is read, and whether it is decoded.
        self._sources = [[] if each.chunked else list(sources(each.data)) for each in lazies]
        # How often each Zarr array is read.
        self._uses = Multiset(
            _place(source.array)
            for found in self._sources
            for source, _ in found
            if is_read_by_chunks(source)
        )
        self._together = self._read_together()

    def plans(self, paths: dict[str, str]) -> dict[str, _Planned]:
        """Return the plan of each lazy array by its label; ``paths`` has its name."""
        chunked = [each.data for each in self._lazies if each.chunked]
        found = {}
        for index, lazy in enumerate(self._lazies):
            name = paths[lazy.label]
            if lazy.chunked:
                found[lazy.label] = _Planned(_of_dask(name, lazy, chunked))
            else:
                found[lazy.label] = self._of_sources(name, lazy, index)
        return found

    def _read_together(self) -> set[int]:
        """Return the indexes of the small variables that the load reads in runs."""
        others = [index for index, lazy in enumerate(self._lazies) if not lazy.chunked]
        if len(others) < tuning.FEW_VARIABLES:
            return set()
        sorting = Sorting()
        keeps = self._shares or cache_limit() > 0
        for _ in sorting.each(self._lazies, others, keeps=keeps):
            pass
        places, _ = sorting.done()
        return {index for members in places.values() for index in members}

    def _of_sources(self, name: str, lazy: Lazy, index: int) -> _Planned:
        tally = _Tally()
        for source, decodes in self._sources[index]:
            together = index in self._together
            if is_read_by_chunks(source):
                self._add_zarr(tally, source, together=together, decodes=decodes)
            else:
                tally.add_opaque(source, together=together)
        planned = tally.planned(name, lazy, is_joined=_is_joined(lazy.data))
        if index in self._bypassed:
            reason = f"{planned.plan.reason}; without dask, whose graph only reads"
            return replace(planned, plan=replace(planned.plan, reason=reason))
        return planned

    def _add_zarr(self, tally: _Tally, source: Read, *, together: bool, decodes: bool) -> None:
        overlaps = self._uses[_place(source.array)] > 1
        in_run = together and reads_small_block(source)

        def take(found: ReadPlan) -> None:
            count = self._counter.count(found, overlaps=overlaps)
            tally.add_array(source.array)
            tally.add(found, count, in_run=in_run, decodes=decodes)

        each_plan(source, take, shares=self._shares)
        array: Any = source.array
        if (host := host_of(array._array.store)) is not None:
            self.hosts[host] = None


def _without_dask(lazies: Sequence[Lazy]) -> tuple[Sequence[Lazy], frozenset[int]]:
    """Return the arrays as a load reads them, and the indexes of those it reads without dask."""
    chunked = [index for index, lazy in enumerate(lazies) if lazy.chunked]
    if not chunked or not is_bypassing_dask():
        return lazies, frozenset()
    arrays = without_dask([lazies[index].data for index in chunked])
    found = {i: data for i, data in zip(chunked, arrays, strict=True) if data is not None}
    read = [each._replace(data=found.get(i, each.data)) for i, each in enumerate(lazies)]
    return read, frozenset(found)


def _is_joined(data: Any) -> bool:
    source = plan(data).source
    return isinstance(source, Read) and means_of(source) is Means.JOINED


def _place(array: Any) -> Hashable:
    """Return a key for a Zarr array, in its store."""
    return same(array._array.store)[0], array._array.path


class _Tally:
    """The counts of the reads that one variable consists of."""

    def __init__(self) -> None:
        self._ways: dict[str, str] = {}
        self._counts: list[Count] = []
        self._layouts: list[Layout] = []
        self._beside: list[int] = []
        self._arrays: dict[tuple[str, str], None] = {}
        self._is_opaque = False

    def add(self, found: ReadPlan, count: Count, *, in_run: bool, decodes: bool) -> None:
        """Add the reads of ``found``."""
        way, reason = found.way.label, f"{found.way.value}, since {found.reason}"
        if in_run:
            way, reason = "together", f"read {_TOGETHER}, since hops to threads would take longer"
        if count.obstacle is not None:
            reason += f"; zarr's own codecs decode, because of {count.obstacle}"
        if _sends_head(found.store):
            reason += "; s3fs sends a HEAD request, too, for each whole chunk"
        self._ways.setdefault(way, reason)
        if in_run:
            count = replace(count, held=found.held, in_threads=True)
        self._counts.append(count)
        self._layouts.append(_layout(found, count))
        if decodes and count.wanted is not None:
            self._beside.append(count.wanted)

    def add_array(self, array: Any) -> None:
        """Add the Zarr array that is read."""
        inner = array._array
        self._arrays[printable(inner.store), inner.path] = None

    def add_opaque(self, source: Read | Opaque, *, together: bool) -> None:
        """Add a read whose requests only its library knows."""
        self._is_opaque = True
        self._ways.setdefault(*_opaque_way(source, together=together))

    def planned(self, name: str, lazy: Lazy, *, is_joined: bool) -> _Planned:
        """Return the plan of the variable ``lazy``, named ``name``."""
        way, reason = ", ".join(self._ways), "; ".join(self._ways.values())
        if self._is_opaque:
            wanted = None if is_unknown(lazy.data) else lazy.nbytes
            return _Planned(_opaque(name, way, reason, wanted))
        if not self._ways:
            way, reason = "memory", "nothing is selected, or its values are in memory"
        counts = self._counts
        parts = [_Part(each.held, each.reads, each.in_threads) for each in counts]
        beside = self._beside
        if is_joined:
            # Each part is an array, until it is copied into the result.
            beside = [each.wanted or 0 for each in counts]
        plan = VariablePlan(
            name,
            way,
            reason,
            chunks=sum(each.chunks for each in counts),
            shards=sum(each.shards for each in counts),
            shared=sum(each.shared for each in counts),
            requests=_sum([each.requests for each in counts]),
            ranges=_sum([each.ranges for each in counts]),
            bytes_wanted=_sum([each.wanted for each in counts]),
            bytes_fetched=_sum([each.fetched for each in counts]),
            requests_are_exact=all(each.requests_are_exact for each in counts),
            bytes_are_exact=all(each.bytes_are_exact for each in counts),
            round_trips=_most([each.round_trips for each in counts]),
            memory=_memory(parts, beside),
            advice=tuple(dict.fromkeys(advice(_whole(self._layouts)))) if self._layouts else (),
            label=lazy.label,
            arrays=tuple(self._arrays),
        )
        return _Planned(plan, parts, beside)


def _sends_head(store: Any) -> bool:
    """Return whether the client of ``store`` asks for the size of each whole value."""
    return "s3fs" in libraries(getattr(unwrapped(store), "fs", None))


def _layout(found: ReadPlan, count: Count) -> Layout:
    shards = found.shards
    return Layout(
        chunk_shape=found.spec.shape if shards is None else shards.inner_spec.shape,
        chunk_bytes=found.chunk_nbytes if shards is None else shards.inner_bytes,
        is_sharded=count.shards > 0,
        is_local=found.source is not None and not found.source.remote,
        requests=count.requests or 0,
        chunks=count.chunks - count.shared,
        wanted=count.wanted,
        obstacle=count.obstacle,
    )


def _whole(layouts: Sequence[Layout]) -> Layout:
    """Return the layout of a variable that consists of arrays with ``layouts``."""
    return replace(
        layouts[0],
        requests=sum(each.requests for each in layouts),
        chunks=sum(each.chunks for each in layouts),
        wanted=_sum([each.wanted for each in layouts]),
    )


def _sum(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else sum(count or 0 for count in counts)


def _most(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else max((count or 0 for count in counts), default=0)


# --- opaque data -----------------------------------------------------------------------------


def _opaque(
    name: str,
    way: str,
    reason: str,
    wanted: int | None,
    chunks: int | None = None,
    tasks: int | None = 0,
) -> VariablePlan:
    return VariablePlan(
        name,
        way,
        reason,
        chunks=chunks,
        shards=None,
        tasks=tasks,
        requests=None,
        ranges=None,
        bytes_wanted=wanted,
        bytes_fetched=None,
        requests_are_exact=False,
        bytes_are_exact=False,
        round_trips=None,
        memory=None,
    )


def _opaque_way(source: Read | Opaque, *, together: bool) -> tuple[str, str]:
    array = source.array
    library = _library(array)
    if means_of(source) is Means.ASYNCHRONOUS:
        return "asynchronous", f"awaited: {library} reads it with its own coroutine"
    if together:
        return "together", f"{library} reads it, {_TOGETHER}"
    if isinstance(source, Read) and lane_key(array) is not None:
        return "thread", f"{library} reads it in a worker thread, one read at a time"
    return "thread", f"{library} reads it in a worker thread"


def _library(array: Any) -> str:
    """Return the name of the library that reads ``array``."""
    module = type(array).__module__
    if module.startswith("xarray.backends."):
        return module.rpartition(".")[2].strip("_")
    return module.partition(".")[0]


def _of_dask(name: str, lazy: Lazy, computed: Sequence[Any]) -> VariablePlan:
    data = lazy.data
    library = _library(data)
    wanted = None if is_unknown(data) else lazy.nbytes
    chunks = math.prod(len(sizes) for sizes in data.chunks)
    if library != "dask":
        reason = f"{library} computes it, and makes the requests"
        return _opaque(name, library, reason, wanted, chunks, None)
    tasks = len(data.__dask_graph__())
    reason = f"dask computes it, and makes the requests, with scheduler {scheduler_of(computed)!r}"
    return _opaque(name, "dask", reason, wanted, chunks, tasks)
