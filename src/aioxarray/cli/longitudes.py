"""Boxes in longitude and latitude, whichever way a dataset counts its longitudes."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray.cli.failures import InputError

if TYPE_CHECKING:
    import xarray as xr

# Degrees are equal if they differ by less than this: 0.1 mm.
_TOLERANCE = 1e-9

_NAMES = {
    "longitude": ({"lon", "longitude", "nav_lon", "lons"}, "degrees_east", "X"),
    "latitude": ({"lat", "latitude", "nav_lat", "lats"}, "degrees_north", "Y"),
}


@dataclass(frozen=True)
class BoundingBox:
    """A box, in degrees; ``east`` may be less than ``west`` if the box crosses 180 degrees."""

    west: float
    south: float
    east: float
    north: float

    @classmethod
    def parse(cls, text: str) -> BoundingBox:
        """Return the box "W,S,E,N"; for argparse."""
        try:
            west, south, east, north = map(float, text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be four numbers W,S,E,N in degrees, got {text!r}"
            ) from None
        if not -90 <= south <= north <= 90:
            raise argparse.ArgumentTypeError(
                f"must have latitudes from -90 to 90, the southern one first: W,S,E,N; got {text!r}"
            )
        if not (-360 <= west <= 360 and -360 <= east <= 360):
            raise argparse.ArgumentTypeError(f"must have longitudes from -360 to 360, got {text!r}")
        return cls(west, south, east, north)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """West, south, east and north."""
        return self.west, self.south, self.east, self.north

    def of_dataset(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return the part of ``dataset`` in the box.

        Longitudes rise from ``west`` on, so that a box across the seam of the data is one piece:
        those that the data counts otherwise differ from it by 360.

        Raises
        ------
        InputError
            If the data has no longitudes and latitudes along dimensions, or none in the box.
        """
        lon, lat = (_dimension(dataset, kind) for kind in ("longitude", "latitude"))
        latitudes, near = _degrees(dataset[lat])
        inside = (latitudes >= self.south - near) & (latitudes <= self.north + near)
        rows = np.flatnonzero(inside)
        columns, values = self._columns(*_degrees(dataset[lon]))
        if not rows.size or not columns.size:
            raise InputError(
                f"--bbox selects nothing: {lon} runs from {_ends(dataset[lon])}, "
                f"{lat} from {_ends(dataset[lat])}"
            )
        part = dataset.isel({lon: _as_slice(columns), lat: _as_slice(rows)})
        if np.array_equal(values, part[lon].values):
            return part
        moved = part[lon].copy(data=values.astype(part[lon].dtype))
        return part.assign_coords({lon: moved})

    def _columns(self, longitudes: np.ndarray[Any, Any], near: float) -> tuple[Any, Any]:
        """Return the positions of the longitudes in the box, from west to east, and their values.

        The order is that of the data if it needs no change of longitudes and falls.
        """
        width = self.east - self.west
        if width < 0:
            width += 360
        turns = np.floor((longitudes - self.west + near) / 360)
        offsets = longitudes - self.west - 360 * turns
        (found,) = np.nonzero(offsets <= width + near)
        if not turns[found].any() and np.all(np.diff(longitudes[found]) < 0):
            return found, longitudes[found]
        order = found[np.argsort(offsets[found], kind="stable")]
        return order, longitudes[order] - 360 * turns[order]


def _dimension(dataset: xr.Dataset, kind: str) -> str:
    """Return the dimension along which the longitudes or latitudes lie."""
    known, units, axis = _NAMES[kind]
    for name, coordinate in dataset.coords.items():
        if coordinate.dims != (name,) or coordinate.dtype.kind not in "iuf":
            continue
        attributes = coordinate.attrs
        if (
            attributes.get("standard_name") == kind
            or str(attributes.get("units", "")).replace("degree_", "degrees_") == units
            or str(name).lower() in known
            or (attributes.get("axis") == axis and attributes.get("units") == "degrees")
        ):
            return str(name)
    names = ", ".join(map(str, dataset.sizes))
    raise InputError(f"--bbox: no dimension of the data has {kind}s; there are {names}")


def _degrees(coordinate: xr.DataArray) -> tuple[np.ndarray[Any, Any], float]:
    """Return degrees as float64, and the difference that their own type cannot tell."""
    kind = coordinate.dtype
    rounding = 360 * float(np.finfo(kind).eps) if kind.kind == "f" else 0.0
    return np.asarray(coordinate.values, "float64"), max(_TOLERANCE, rounding)


def _ends(coordinate: xr.DataArray) -> str:
    values = coordinate.values
    return f"{float(values[0]):.10g} to {float(values[-1]):.10g}" if values.size else "nothing"


def _as_slice(positions: np.ndarray[Any, Any]) -> Any:
    """Return positions in a row as a slice, which reads without an index array."""
    if positions.size and np.all(np.diff(positions) == 1):
        return slice(int(positions[0]), int(positions[-1]) + 1)
    return positions
