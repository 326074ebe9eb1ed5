"""Loads many lazy arrays at once: the engine behind every verb, and the budgets they share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aioxarray._runtime.tasks import gather
from aioxarray._xarray.chunked import compute_chunked
from aioxarray._xarray.lazy import Lazy, load_data
from aioxarray._zarr.calls import Call, calling
from aioxarray._zarr.reading import Reading, decoders, reading
from aioxarray.config import cache_limit, memory_limit, request_limit, thread_count
from aioxarray.progress import Meter, Progress, check_progress, meter


@dataclass(frozen=True)
class Options:
    """How one call loads; see `load_async`. ``dask`` is for ``dask.compute``."""

    concurrency: int | None = None
    timeout: float | None = None
    progress: Progress = None
    dask: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Raise for what no load could do, before anything is requested."""
        request_limit(self.concurrency)
        memory_limit()
        cache_limit()
        thread_count()
        check_progress(self.progress)
        if self.timeout is None:
            return
        if isinstance(self.timeout, bool) or not isinstance(self.timeout, int | float):
            raise TypeError(f"timeout must be a number of seconds or None, got {self.timeout!r}")
        if not self.timeout >= 0:
            raise ValueError(f"timeout must not be negative, got {self.timeout!r}")


async def read_all(lazies: Sequence[Lazy], options: Options) -> list[Any]:
    """Return the values of ``lazies``; on the I/O loop."""
    total = sum(lazy.nbytes for lazy in lazies)
    async with calling("loaded", options.timeout, options.concurrency) as call:
        with meter(options.progress, total) as counter, reading(call.concurrency) as granted:
            call.progress = lambda: f"{counter.done} of {total} bytes had arrived"
            parts = await gather(_jobs(lazies, granted, counter, options, call))
    values = {index: value for part in parts for index, value in part.items()}
    return [values[index] for index in range(len(lazies))]


def _jobs(
    lazies: Sequence[Lazy], reading: Reading, counter: Meter, options: Options, call: Call
) -> list[Callable[[], Coroutine[Any, Any, dict[int, Any]]]]:
    """Return what to await: a job for each lazy array, and one for all chunked ones together."""

    def single(index: int, lazy: Lazy) -> Callable[[], Coroutine[Any, Any, dict[int, Any]]]:
        async def job() -> dict[int, Any]:
            try:
                report = counter.part(lazy.nbytes)
                with call.awaiting(f"variable {lazy.label}"):
                    return {index: await load_data(lazy, reading, decoders, report)}
            except Exception as error:
                error.add_note(f"while loading {lazy.label}")
                raise

        return job

    async def all_chunked() -> dict[int, Any]:
        arrays = [lazies[index].data for index in chunked]
        try:
            with contextlib.ExitStack() as labelled:
                for index in chunked:
                    labelled.enter_context(call.awaiting(f"variable {lazies[index].label}"))
                values = await compute_chunked(arrays, options.dask)
        except Exception as error:
            labels = ", ".join(lazies[index].label for index in chunked)
            error.add_note(f"while computing chunked data: {labels}")
            raise
        counter.part(sum(lazies[index].nbytes for index in chunked))(1, 1)
        return dict(zip(chunked, values, strict=True))

    chunked = [index for index, lazy in enumerate(lazies) if lazy.chunked]
    jobs = [single(index, lazy) for index, lazy in enumerate(lazies) if not lazy.chunked]
    return [*jobs, all_chunked] if chunked else jobs
