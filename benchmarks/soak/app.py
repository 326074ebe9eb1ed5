"""The application: it serves windows of a remote Zarr, loaded by aioxarray or by plain xarray.

It is what users write, but for the numbers about itself.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import xarray as xr
from fastapi import FastAPI, HTTPException, Response
from fastapi.concurrency import run_in_threadpool

import aioxarray
from aioxarray._runtime.loops import io_loop
from aioxarray._zarr.stores import grants
from aioxarray.errors import DamagedDataError
from benchmarks.soak.data import DAMAGED, Window

URL = os.environ.get("SOAK_URL", "")
# "aioxarray" or "xarray"
READER = os.environ.get("SOAK_READER", "aioxarray")
TIMEOUT_S = float(os.environ.get("SOAK_TIMEOUT_S", "10"))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the data once for each worker."""
    if READER == "aioxarray":
        aioxarray.config.set(stall_s=1)
        app.state.ds = await aioxarray.open_zarr_async(URL, consolidated=False)
    else:
        app.state.ds = await run_in_threadpool(
            lambda: xr.open_zarr(URL, consolidated=False, chunks=None)
        )
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/window/{name}/{y}/{x}")
async def window(name: str, y: int, x: int) -> Response:
    """Return the bytes of a window, with their checksum."""
    part = Window(name, y, x).of(app.state.ds)
    try:
        if READER == "aioxarray":
            loaded = await aioxarray.compute_async(part, timeout=TIMEOUT_S)
        else:
            loaded = await run_in_threadpool(part.compute)
    except TimeoutError as error:
        raise HTTPException(504, _words(error)) from None
    except DamagedDataError as error:
        # Two answers in a row were damaged: the promise is an error that says so.
        raise HTTPException(DAMAGED, _words(error)) from None
    except Exception as error:  # noqa: BLE001  # the clients count them by what they say
        raise HTTPException(500, _words(error)) from None
    body = loaded.values.tobytes()
    return Response(
        body,
        media_type="application/octet-stream",
        headers={"X-Checksum": f"{zlib.crc32(body):08x}"},
    )


def _words(error: Exception) -> str:
    text = " | ".join([str(error), *getattr(error, "__notes__", ())])
    return f"{type(error).__name__}: {text}"


@app.get("/state")
async def state() -> dict[str, Any]:
    """Return what this worker has in memory and under way."""
    gc.collect()
    return {
        "pid": os.getpid(),
        "tasks": len(asyncio.all_tasks()),
        "io_tasks": await _io_tasks() if READER == "aioxarray" else 0,
        "threads": threading.active_count(),
        "requests": grants.requests.statistics().in_use,
        "bytes": grants.memory.statistics().in_use,
        "shares": grants.requests.statistics().shares,
    }


async def _io_tasks() -> int:
    async def count() -> int:
        return len(asyncio.all_tasks()) - 1

    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(count(), io_loop()))
