"""The code of the documentation, and what it runs on: the data and names that its pages assume."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

# A load with progress imports it when it is first used, which the watch over blocking calls sees.
import tqdm.auto  # noqa: F401
import xarray as xr
import zarr
from opentelemetry.sdk.trace import TracerProvider
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import ObjectServer

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
URL = "https://data.example.org"
"""The server of all examples; a local one takes its place."""

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
    if "_hooks" not in path.parts
)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes
    ----------
    page, line
        Where it begins.
    language
        The word after the fence.
    code
        Its lines, without the indentation of the fence.
    reason
        Why it does not run, from a comment ``<!-- not run: … -->`` above it; "" if it does.
    """

    page: str
    line: int
    language: str
    code: str
    reason: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of code of a page."""
    text = (ROOT / page).read_text("utf-8")
    fenced = re.compile(
        r"(?:^[ ]*<!-- not run: (?P<reason>[^>]+) -->\n+)?"
        r"^(?P<indent>[ ]*)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
        re.MULTILINE | re.DOTALL,
    )
    found = []
    for match in fenced.finditer(text):
        indent = len(match["indent"])
        code = "".join(f"{line[indent:]}\n" for line in match["code"].splitlines())
        line = text.count("\n", 0, match.start("code"))
        found.append(Block(page, line, match["language"], code, match["reason"] or ""))
    return found


def era5() -> xr.Dataset:
    """Sixty days of hours on a coarse globe."""
    time = pd.date_range("2024-01-01", periods=60 * 24, freq="h")
    lat = np.linspace(90, -90, 121)
    lon = np.linspace(0, 360, 41, endpoint=False)
    day = np.sin(np.arange(time.size) / 24 * 2 * np.pi).astype("f4")[:, None, None]
    place = (30 * np.cos(np.radians(lat))).astype("f4")[:, None] + np.zeros(41, "f4")
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {
            "t2m": (dims, 250 + place + day, {"units": "K"}),
            "u10": (dims, place / 10 + 0 * day, {"units": "m s-1"}),
            "sst": (dims, 270 + place + 0 * day, {"units": "K"}),
        },
        {"time": time, "lat": lat, "lon": lon},
    )


def radar() -> xr.DataTree:
    """Two volumes of two sweeps."""
    sweep = xr.Dataset({"dbz": (("azimuth", "range"), np.ones((36, 20), "f4"))})
    return xr.DataTree.from_dict(
        {f"/volume_{v}/sweep_{s}": sweep for v in range(2) for s in range(2)}
    )


def make_data(folder: Path) -> None:
    """Write what the server of the examples has, and the local files beside them."""
    ds = era5()
    chunks = {name: {"chunks": (240, 121, 41)} for name in ds.data_vars}
    aioxarray.to_zarr(ds, folder / "era5.zarr", encoding=chunks, consolidated=True)
    aioxarray.to_zarr(radar(), folder / "radar.zarr", consolidated=True)
    zarr.create_array(folder / "data.zarr", data=np.arange(1000))
    (folder / "2024").mkdir()
    for day in range(3):
        part = ds[["t2m"]].isel(time=slice(24 * day, 24 * (day + 1)), lat=slice(0, 10))
        part.to_netcdf(folder / "2024" / f"{day + 1:02}.nc", engine="h5netcdf")


def names(server: ObjectServer) -> dict[str, Any]:
    """Return the names that pages use and do not define."""
    tree = xr.open_datatree(f"{server.url}/radar.zarr", engine="zarr", chunks=None)
    # Two days: a page loads each hour by itself, in ten epochs.
    ds = aioxarray.open_zarr(f"{server.url}/era5.zarr").isel(time=slice(48))
    pieces = aioxarray.stream([ds.isel(time=n) for n in range(3)], epochs=10)
    return {
        "aioxarray": aioxarray,
        "ds": ds,
        "later": ds.assign_coords(time=ds.time + np.timedelta64(2, "D")),
        "np": np,
        "saved": __import__("json").dumps(pieces.state_dict()),
        "store": MemoryStore(),
        "tracer": TracerProvider().get_tracer("docs"),
        "tree": tree,
        "xr": xr,
        # Functions of the reader.
        "save": lambda text: None,
        "train": lambda *pieces: None,
    }


def execute(block: Block, space: dict[str, Any], server: ObjectServer) -> None:
    """Run a block of Python, with ``await`` as in a notebook."""
    source = block.code.replace(URL, server.url)
    # Tracebacks show the lines of the page.
    code = compile(
        "\n" * block.line + source,
        str(ROOT / block.page),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
    )
    if code.co_flags & inspect.CO_COROUTINE:

        async def main() -> None:
            await eval(code, space)

        asyncio.run(main())
    else:
        exec(code, space)
