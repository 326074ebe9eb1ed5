"""Loading of many lazy arrays at once, on which all loading functions are built."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aioxarray._runtime.tasks import gather, in_steps
from aioxarray._runtime.threads.pool import BLOCKING_THREADS
from aioxarray._settings.brought import brought
from aioxarray._xarray.arrays.plan import settings_of
from aioxarray._xarray.arrays.read import blocking_pool
from aioxarray._xarray.compat import as_compatible_data
from aioxarray._xarray.dask.carried import is_in_cluster
from aioxarray._xarray.dask.chunked import compute_chunked
from aioxarray._xarray.dask.reading import without_dask
from aioxarray._xarray.lazy.slabs import load_in_slabs, slabs_of
from aioxarray._xarray.lazy.together import UNREAD, Sorting, read_run
from aioxarray._xarray.lazy.variables import Lazy, load_data, put_data
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.calls import Call, calling
from aioxarray._zarr.stores.grants import Grants, open_grants
from aioxarray._zarr.stores.request import for_variable
from aioxarray.config import (
    Concurrency,
    byte_bound,
    check_settings,
    is_bypassing_dask,
    request_limit,
)
from aioxarray.progress import Meter, Progress, check_progress, meter


@dataclass(frozen=True)
class Options:
    """The options of one load; see `load_async`. ``dask`` has options for ``dask.compute``."""

    concurrency: Concurrency | None = None
    timeout: float | None = None
    progress: Progress = None
    max_bytes: int | str | None = None
    dask: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise for invalid options and settings, before any request is made."""
        if self.concurrency is not None:
            request_limit(self.concurrency)
        check_settings()
        check_progress(self.progress)
        self.most_bytes()
        if self.timeout is None:
            return
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds or None, got {self.timeout!r}")
        if not self.timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {self.timeout!r}")

    def most_bytes(self) -> int | None:
        """Return ``max_bytes`` as a number; None for no limit."""
        return None if self.max_bytes is None else byte_bound("max_bytes", self.max_bytes)


async def read_all(lazies: Sequence[Lazy], options: Options) -> list[Any]:
    """Return the values of ``lazies``; on the I/O loop."""
    with brought(await _brought_settings(lazies)):
        async with calling("loaded", options.timeout, options.concurrency) as call:
            with open_grants(call.concurrency) as grants:
                return await read_with(lazies, grants, options, call)


async def _brought_settings(lazies: Sequence[Lazy]) -> Mapping[str, Any] | None:
    """Return the settings that hold in this process for the work of another one, if it is that."""
    if not is_in_cluster():
        return None
    found = (settings_of(lazy.data) for lazy in lazies)
    settings = next((each for each in found if each is not None), None)
    return None if settings is None else await settings.share()


async def read_with(
    lazies: Sequence[Lazy], grants: Grants, options: Options, call: Call
) -> list[Any]:
    """Return the values of ``lazies``, read with ``grants`` for ``call``; on the I/O loop."""
    total = sum(lazy.nbytes for lazy in lazies)
    async with meter(options.progress, total) as counter:
        call.progress = counter.state
        load = _Load(lazies, grants, counter, options, call)
        await gather(await load.jobs())
    return load.values


class _Load:
    """The reads of one call, and the values that have been loaded."""

    def __init__(
        self,
        lazies: Sequence[Lazy],
        grants: Grants,
        counter: Meter,
        options: Options,
        call: Call,
    ) -> None:
        self.values: list[Any] = [None] * len(lazies)
        self._lazies = lazies
        # The indexes of dask arrays that are read without dask.
        self._bypassed: set[int] = set()
        self._grants = grants
        self._counter = counter
        self._options = options
        self._call = call

    async def jobs(self) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return the coroutine functions to run concurrently."""
        await self._bypass_dask()
        chunked = [index for index, lazy in enumerate(self._lazies) if lazy.chunked]
        others = [index for index, lazy in enumerate(self._lazies) if not lazy.chunked]
        if len(others) < tuning.FEW_VARIABLES:
            jobs = self._workers(others)
        else:
            sorting = Sorting()
            await in_steps(sorting.each(self._lazies, others, keeps=self._grants.shares))
            places, rest = sorting.done()
            jobs = self._workers(rest)
            jobs += [partial(self._together, *each) for each in places.items()]
        return [*jobs, partial(self._all_chunked, chunked)] if chunked else jobs

    async def _bypass_dask(self) -> None:
        """Replace dask arrays that only read Zarr by lazy arrays, if dask is not asked for."""
        chunked = [index for index, lazy in enumerate(self._lazies) if lazy.chunked]
        if not chunked or self._options.dask or not is_bypassing_dask():
            return
        arrays = [self._lazies[index].data for index in chunked]
        found = dict(
            zip(chunked, await blocking_pool.run(lambda: without_dask(arrays)), strict=True)
        )
        self._bypassed = {index for index, lazy in found.items() if lazy is not None}
        if self._bypassed:
            self._lazies = [
                lazy if found.get(index) is None else lazy._replace(data=found[index])
                for index, lazy in enumerate(self._lazies)
            ]

    def _workers(self, indexes: Sequence[int]) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        """Return workers that together read the arrays at ``indexes``, each of them sequentially.

        There are only as many as can be busy, instead of a task for each of ten thousand variables.
        """
        todo = iter(indexes)

        async def work() -> None:
            for index in todo:
                await self._one(index)

        width = self._grants.requests.bound + BLOCKING_THREADS
        return [work] * int(min(len(indexes), width))

    async def _one(self, index: int) -> None:
        lazy = self._lazies[index]
        report = self._counter.part(lazy.nbytes)
        try:
            with self._call.awaiting(lazy.label), for_variable(lazy.label):
                slabs = slabs_of(lazy) if index in self._bypassed else []
                if slabs:
                    value = await load_in_slabs(lazy, slabs, self._grants, report)
                else:
                    value = await load_data(lazy, self._grants, report)
                self.values[index] = value
        except Exception as error:
            error.add_note(f"while loading {lazy.label}")
            raise

    async def _together(self, place: Hashable, indexes: list[int]) -> None:
        """Read the arrays at ``indexes`` in runs; read those that runs cannot read individually."""
        unread = []
        start = 0
        while start < len(indexes):
            run = indexes[start : start + tuning.RUN_VARIABLES]
            with self._call.awaiting(self._lazies[run[0]].label):
                values = await read_run(place, self._lazies, run, self._grants)
            start += len(values)
            for index, value in zip(run, values, strict=False):
                lazy = self._lazies[index]
                if value is UNREAD:
                    unread.append(index)
                    continue
                if lazy.into:
                    value = await put_data(lazy, value, _as_it_is, self._grants)
                self.values[index] = value
                self._counter.part(lazy.nbytes)(1, 1)
        await gather(self._workers(unread))

    async def _all_chunked(self, chunked: Sequence[int]) -> None:
        lazies = [self._lazies[index] for index in chunked]
        try:
            with contextlib.ExitStack() as labelled:
                for lazy in lazies:
                    labelled.enter_context(self._call.awaiting(lazy.label))
                arrays = [lazy.data for lazy in lazies]
                into = {index: lazy.into[0] for index, lazy in enumerate(lazies) if lazy.into}
                values = await compute_chunked(arrays, self._options.dask, into)
                for index in into:
                    computed = values[index]
                    values[index] = await put_data(
                        lazies[index], computed, as_compatible_data, self._grants
                    )
        except Exception as error:
            labels = ", ".join(lazy.label for lazy in lazies)
            error.add_note(f"while computing chunked data: {labels}")
            raise
        self._counter.part(sum(lazy.nbytes for lazy in lazies))(1, 1)
        for index, value in zip(chunked, values, strict=True):
            self.values[index] = value


def _as_it_is(value: Any) -> Any:
    return value
