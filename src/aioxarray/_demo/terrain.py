"""Real data to load: an elevation grid that ships with matplotlib, and fields derived from it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from zarr.storage import MemoryStore

Grid = NDArray[np.float64]

# A degree of latitude in metres; for longitude, multiply by the cosine of the latitude.
_METRES_A_DEGREE = 111_195.0
_WINDOWS = (3, 5, 9, 17, 33)
_SUNS = 16


@dataclass(frozen=True)
class Sizes:
    """How much data to store; `TINY` is only for checking that the demo works.

    Attributes
    ----------
    step
        Keep every ``step``-th cell of the grid, along both axes.
    fields
        The number of variables of `fields`, 40 at most.
    suns
        The number of sun positions of `hillshades`.
    rows, columns
        The number of windows into which `windows` cuts the grid, along each axis.
    """

    step: int = 1
    fields: int = 40
    suns: int = 24
    rows: int = 3
    columns: int = 4


TINY = Sizes(step=4, fields=4, suns=2, rows=1, columns=2)


def elevation() -> xr.DataArray:
    """Return the elevation around the Jacksboro fault (Tennessee), 344 × 403 cells, in metres."""
    from matplotlib.cbook import get_sample_data

    # matplotlib's type for the result is that of other kinds of files.
    sample: Any = get_sample_data("jacksboro_fault_dem.npz")
    with sample as file:
        heights = file["elevation"]
        rows, columns = heights.shape
        # The file calls the northern edge, where its rows begin, ymin.
        lat = np.linspace(float(file["ymin"]), float(file["ymax"]), rows)
        lon = np.linspace(float(file["xmin"]), float(file["xmax"]), columns)
    return xr.DataArray(
        heights,
        {"lat": ("lat", lat, {"units": "degrees_north"}), "lon": ("lon", lon, _EAST)},
        ("lat", "lon"),
        "elevation",
        {"units": "m", "long_name": "elevation above sea level"},
    )


_EAST = {"units": "degrees_east"}


def stored(sizes: Sizes) -> dict[str, dict[str, bytes]]:
    """Return consolidated Zarr to serve: names of stores, then keys and values.

    There is a dataset of many variables, one with a variable of many chunks, and a tree.
    """
    grid = elevation()[:: sizes.step, :: sizes.step]
    lat, lon = grid.shape
    terrain = fields(grid, sizes)
    return {
        "fields.zarr": as_zarr(terrain, {"lat": -(-lat // 2), "lon": -(-lon // 2)}),
        "day.zarr": as_zarr(
            hillshades(grid, sizes), {"azimuth": 1, "lat": -(-lat // 4), "lon": -(-lon // 4)}
        ),
        "windows.zarr": as_zarr(windows(terrain, sizes), {}),
    }


def fields(grid: xr.DataArray, sizes: Sizes) -> xr.Dataset:
    """Derive the basic variables of terrain analysis, all on the same grid."""
    heights = grid.values.astype(float)
    south, east = _gradient(grid)
    derived: dict[str, tuple[Grid, str]] = {
        "slope": (_slope(south, east), "degree"),
        "aspect": (_aspect(south, east), "degree"),
        "curvature": (_curvature(grid, south, east), "m-1"),
    }
    for width in _WINDOWS:
        mean = _window_mean(heights, width)
        spread = np.sqrt(np.maximum(_window_mean((heights - mean) ** 2, width), 0))
        derived |= {
            f"smooth_{width}": (mean, "m"),
            f"position_{width}": (heights - mean, "m"),
            f"roughness_{width}": (spread, "m"),
            f"deviation_{width}": ((heights - mean) / np.maximum(spread, 1e-3), "1"),
        }
    for index in range(_SUNS):
        azimuth = 360 / _SUNS * index
        derived[f"hillshade_{index}"] = (_hillshade(south, east, azimuth, 45.0), "1")
    variables = {"elevation": grid}
    for name, (values, units) in list(derived.items())[: sizes.fields - 1]:
        variables[name] = grid.copy(data=values.astype("float32")).assign_attrs(
            units=units, long_name=name.replace("_", " ")
        )
    return xr.Dataset(variables, attrs={"title": "Terrain around the Jacksboro fault"})


def hillshades(grid: xr.DataArray, sizes: Sizes) -> xr.Dataset:
    """Return one variable of many chunks: the illumination of the terrain over a day."""
    south, east = _gradient(grid)
    azimuths = np.linspace(90, 270, sizes.suns)
    heights = 60 * np.sin(np.radians(azimuths - 90)) + 1
    lit = [_hillshade(south, east, *sun) for sun in zip(azimuths, heights, strict=True)]
    stacked = xr.DataArray(
        np.stack(lit).astype("float32"),
        {"azimuth": ("azimuth", azimuths, {"units": "degree"}), **grid.coords},
        ("azimuth", "lat", "lon"),
        attrs={"units": "1", "long_name": "hillshade"},
    )
    return stacked.to_dataset(name="hillshade")


def windows(terrain: xr.Dataset, sizes: Sizes) -> xr.DataTree:
    """Cut the first four variables into windows, each a node of a tree."""
    few = terrain[list(terrain.data_vars)[:4]]
    nodes = {"/": xr.Dataset(attrs=terrain.attrs)}
    parts_of_lat = np.array_split(np.arange(terrain.sizes["lat"]), sizes.rows)
    parts_of_lon = np.array_split(np.arange(terrain.sizes["lon"]), sizes.columns)
    for row, lat in enumerate(parts_of_lat):
        for column, lon in enumerate(parts_of_lon):
            part = few.isel(lat=slice(lat[0], lat[-1] + 1), lon=slice(lon[0], lon[-1] + 1))
            nodes[f"/window_{row}_{column}"] = part
    return xr.DataTree.from_dict(nodes)


def as_zarr(obj: xr.Dataset | xr.DataTree, chunks: dict[str, int]) -> dict[str, bytes]:
    """Return the keys and values of ``obj`` as consolidated Zarr.

    Hillshades are packed into 8 bits and slopes into 16, as is usual for such data.
    """
    stored: dict[str, Any] = {}
    store = MemoryStore(stored)
    with warnings.catch_warnings():
        # "Consolidated metadata is currently not part in the Zarr format 3 specification"
        warnings.simplefilter("ignore", UserWarning)
        _write(obj, store, chunks)
    return {key: value.to_bytes() for key, value in stored.items()}


def _write(obj: xr.Dataset | xr.DataTree, store: MemoryStore, chunks: dict[str, int]) -> None:
    if isinstance(obj, xr.Dataset):
        obj.to_zarr(store, encoding=_encoding(obj, chunks), consolidated=True)
    else:
        encoding = {node.path: _encoding(node.to_dataset(), chunks) for node in obj.subtree}
        obj.to_zarr(store, encoding=encoding, consolidated=True)


def _encoding(data: xr.Dataset, chunks: dict[str, int]) -> dict[str, dict[str, Any]]:
    encoding: dict[str, dict[str, Any]] = {}
    for name, variable in data.data_vars.items():
        sizes = variable.sizes
        own: dict[str, Any] = {
            "chunks": tuple(min(chunks.get(str(d), n), n) for d, n in sizes.items())
        }
        if str(name).startswith("hillshade"):
            own |= {"dtype": "uint8", "scale_factor": 1 / 254, "_FillValue": 255}
        elif str(name) == "slope":
            own |= {"dtype": "int16", "scale_factor": 0.01, "_FillValue": -1}
        encoding[str(name)] = own
    return encoding


def _gradient(grid: xr.DataArray) -> tuple[Grid, Grid]:
    """Return the rise towards the south and towards the east, in metres per metre."""
    lat, lon = grid["lat"].values, grid["lon"].values
    north_south = abs(lat[1] - lat[0]) * _METRES_A_DEGREE
    east_west = abs(lon[1] - lon[0]) * _METRES_A_DEGREE * np.cos(np.radians(lat.mean()))
    south, east = np.gradient(grid.values.astype(float), north_south, east_west)
    return south, east


def _slope(south: Grid, east: Grid) -> Grid:
    return np.degrees(np.arctan(np.hypot(south, east)))


def _aspect(south: Grid, east: Grid) -> Grid:
    """Return the compass direction that a slope faces; NaN where it is flat."""
    facing: Grid = np.degrees(np.arctan2(-east, south)) % 360
    facing[np.hypot(south, east) == 0] = np.nan
    return facing


def _curvature(grid: xr.DataArray, south: Grid, east: Grid) -> Grid:
    metres = abs(float(grid["lat"][1] - grid["lat"][0])) * _METRES_A_DEGREE
    return (np.gradient(south, axis=0) + np.gradient(east, axis=1)) / metres


def _hillshade(south: Grid, east: Grid, azimuth: float, altitude: float) -> Grid:
    """Return how directly the sun shines on each cell, 0 to 1."""
    sun = np.radians(altitude)
    steepness = np.arctan(np.hypot(south, east))
    facing = np.arctan2(-east, south)
    direct = np.sin(sun) * np.cos(steepness) + np.cos(sun) * np.sin(steepness) * np.cos(
        np.radians(azimuth) - facing
    )
    clipped: Grid = np.clip(direct, 0, 1)
    return clipped


def _window_mean(values: Grid, width: int) -> Grid:
    """Return the mean over a window of ``width`` cells around each cell, by cumulative sums."""
    half = width // 2
    padded = np.pad(values, ((half + 1, half), (half + 1, half)), mode="edge")
    sums = padded.cumsum(axis=0).cumsum(axis=1)
    inside = sums[width:, width:] - sums[:-width, width:] - sums[width:, :-width]
    mean: Grid = (inside + sums[:-width, :-width]) / width**2
    return mean
