"""The data of the soak test, of which both sides know the values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec

SIZE = 1200
CHUNK = 100
# A window of a map; it touches nine chunks at most.
WINDOW = 200
NAMES = ("temperature", "wind")
# The status that the application gives a window with a chunk that was damaged in two answers.
DAMAGED = 502


@dataclass(frozen=True)
class Window:
    """A square of a variable."""

    name: str
    y: int
    x: int

    def of(self, ds: xr.Dataset) -> xr.DataArray:
        """Return the window of a dataset."""
        return ds[self.name].isel(
            y=slice(self.y, self.y + WINDOW), x=slice(self.x, self.x + WINDOW)
        )


@cache
def values(name: str) -> np.ndarray:
    """Return the values of a variable."""
    seed = NAMES.index(name)
    array = np.random.default_rng(seed).random((SIZE, SIZE), dtype="f4")
    array.flags.writeable = False
    return array


def dataset() -> xr.Dataset:
    """Return the dataset, in chunks with checksums."""
    ds = xr.Dataset({name: (("y", "x"), values(name)) for name in NAMES})
    for name in NAMES:
        ds[name].encoding = {
            "chunks": (CHUNK, CHUNK),
            "compressors": [ZstdCodec(), Crc32cCodec()],
        }
    return ds
