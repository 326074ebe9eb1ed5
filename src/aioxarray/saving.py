"""Saves xarray objects: `to_zarr` and its coroutine."""

from __future__ import annotations

from typing import Any

from aioxarray._runtime.loops import blocking, io_loop, run_on
from aioxarray._xarray.loader import Options
from aioxarray._xarray.recorder import ZarrOptions
from aioxarray._xarray.saver import save
from aioxarray.progress import Progress

__all__ = ["to_zarr", "to_zarr_async"]


async def to_zarr_async(
    obj: Any,
    store: Any = None,
    mode: Any = None,
    group: str | None = None,
    encoding: Any = None,
    *,
    concurrency: int | None = None,
    timeout: float | None = None,
    progress: Progress = None,
    **options: Any,
) -> Any:
    how = Options(concurrency, timeout, progress)
    how.check()
    chosen = ZarrOptions(mode=mode, group=group, encoding=encoding, **options)
    return await run_on(io_loop(), lambda: save(obj, store, chosen, how))


to_zarr = blocking(to_zarr_async)
