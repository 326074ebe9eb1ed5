"""The part of a dataset that a command reads: ``--var``, ``--sel``, ``--isel`` and ``--bbox``.

Texts become the arguments of xarray's ``sel`` and ``isel``. A range ``a:b`` has both ends, as in
``sel``, and may be given in either order, whichever way the coordinate runs.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from aioxarray.cli.failures import InputError
from aioxarray.cli.longitudes import BoundingBox
from aioxarray.errors import did_you_mean

# A time, which contains colons itself, to any precision from the year on.
_TIME = r"[+-]?\d{4,}(?:-\d\d?(?:-\d\d?(?:[T ]\d\d?(?::\d\d(?::\d\d(?:\.\d+)?)?)?Z?)?)?)?"
_TIMES = re.compile(rf"({_TIME})?:({_TIME})?")


@dataclass(frozen=True)
class Selection:
    """A part of a dataset, as texts.

    Attributes
    ----------
    variables
        The names of the variables; empty for all.
    labels
        For each dimension, a label or a range of labels.
    positions
        For each dimension, a position or a slice.
    box
        A box in longitude and latitude.
    """

    variables: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    positions: Mapping[str, str] = field(default_factory=dict)
    box: BoundingBox | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Selection:
        """Return the selection of the arguments of `add_arguments`."""
        names = [name for text in arguments.var for name in text.split(",") if name]
        return cls(
            tuple(dict.fromkeys(names)),
            _by_dimension("--sel", arguments.sel),
            _by_dimension("--isel", arguments.isel),
            arguments.bbox,
        )

    def __bool__(self) -> bool:
        return bool(self.variables or self.labels or self.positions or self.box)

    def to_dict(self) -> dict[str, Any]:
        """Return the selection as JSON can hold it."""
        return {
            "variables": list(self.variables),
            "labels": dict(self.labels),
            "positions": dict(self.positions),
            "box": None if self.box is None else list(self.box.bounds),
        }

    def of_dataset(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return the selected part of ``dataset``, as lazy as it is.

        Raises
        ------
        InputError
            If a name is unknown, or nothing is selected.
        """
        for name in self.variables:
            if name not in dataset.variables:
                raise InputError(
                    f"--var: there is no variable {name!r}{_known(name, dataset.variables)}"
                )
        part = dataset[list(self.variables)] if self.variables else dataset
        for dimension, text in self.positions.items():
            _check_dimension("--isel", dimension, part)
            key = _position(dimension, text, part.sizes[dimension])
            part = part.isel({dimension: key})
        for dimension, text in self.labels.items():
            part = _labelled(part, dimension, text)
        return part if self.box is None else self.box.of_dataset(part)


def _known(name: Hashable, names: Any) -> str:
    texts = list(map(str, names))
    close = did_you_mean(str(name), texts)
    return close or (f"; there are {', '.join(texts[:20])}" if texts else "")


def _check_dimension(option: str, dimension: str, dataset: xr.Dataset) -> None:
    if dimension not in dataset.sizes:
        hint = _known(dimension, dataset.sizes)
        raise InputError(f"{option}: {dimension!r} is no dimension of the data{hint}")


def _position(dimension: str, text: str, size: int) -> int | slice:
    parts = text.split(":")
    try:
        numbers = [int(part) if part.strip() else None for part in parts]
    except ValueError:
        numbers = []
    at = numbers[0] if len(numbers) == 1 else None
    if at is not None:
        if not -size <= at < size:
            raise InputError(f"--isel: {dimension}={at} is not one of the {size} positions")
        return at
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and (numbers[2] or 1) < 1):
        raise InputError(
            f"--isel: {dimension}={text} is neither a position nor a range such as 0:10 or 0:10:2"
        )
    key = slice(*numbers)
    if not len(range(*key.indices(size))):
        raise InputError(f"--isel: {dimension}={text} selects none of the {size} positions")
    return key


def _labelled(dataset: xr.Dataset, dimension: str, text: str) -> xr.Dataset:
    """Select a label, or a range of labels, along ``dimension``."""
    if dimension not in dataset.xindexes:
        _check_dimension("--sel", dimension, dataset)
        raise InputError(f"--sel: {dimension!r} has no labels; select positions with --isel")
    index = dataset.xindexes[dimension].to_pandas_index()
    coordinate = dataset[dimension]
    key = _label_key(dimension, text, index)
    try:
        part = dataset.sel({dimension: key})
    except (KeyError, ValueError, TypeError) as error:
        hint = _near(key, index) or _extent(coordinate)
        raise InputError(f"--sel: {dimension}={text} selects nothing: {hint}") from error
    if part.sizes.get(dimension) == 0:
        raise InputError(f"--sel: {dimension}={text} selects nothing: {_extent(coordinate)}")
    return part


def _extent(coordinate: xr.DataArray) -> str:
    if not coordinate.size:
        return f"{coordinate.name} is empty"
    values = coordinate.values
    return f"{coordinate.name} runs from {label(values[0])} to {label(values[-1])}"


def _label_key(dimension: str, text: str, index: pd.Index) -> Any:
    if isinstance(index, pd.DatetimeIndex | xr.CFTimeIndex):
        matched = _TIMES.fullmatch(text.strip())
        if matched is None:
            if re.fullmatch(_TIME, text.strip()):
                return text.strip()
            raise InputError(
                f"--sel: {dimension}={text} is neither a time nor a range of times such as "
                "2024-01:2024-03"
            )
        ends: Sequence[Any] = matched.groups()
    elif text in index:
        return text
    elif text.count(":") == 1:
        ends = [part.strip() or None for part in text.split(":")]
        ends = [None if end is None else _value(dimension, end, index) for end in ends]
    else:
        return _value(dimension, text, index)
    return _ordered(dimension, text, ends, index)


def _value(dimension: str, text: str, index: pd.Index) -> Any:
    """Return a text as a label of ``index``."""
    if index.dtype.kind not in "iufm":
        return text
    try:
        if index.dtype.kind == "m":
            return pd.Timedelta(text)
        return float(text) if index.dtype.kind == "f" or "." in text else int(text)
    except ValueError:
        raise InputError(
            f"--sel: {dimension}={text} is neither a number nor a range of numbers such as 60:40"
            if index.dtype.kind != "m"
            else f"--sel: {dimension}={text} is no duration such as '6h'"
        ) from None


def _ordered(dimension: str, text: str, ends: Sequence[Any], index: pd.Index) -> slice:
    """Return a slice with its ends in the order of the index."""
    first, last = ends
    rises, falls = index.is_monotonic_increasing, index.is_monotonic_decreasing
    if not rises and not falls:
        raise InputError(
            f"--sel: {dimension} is not sorted, so that {text} is no range of it; select positions "
            "with --isel"
        )
    if first is not None and last is not None:
        digits = min(len(first), len(last)) if isinstance(first, str) else None
        # Texts of times compare as the times do. "2024-03" is all of March: neither before nor
        # after a day of it.
        one, other = (first[:digits], last[:digits]) if digits else (first, last)
        backwards = one > other if rises else one < other
        if backwards:
            first, last = last, first
    return slice(first, last)


def _near(key: Any, index: pd.Index) -> str:
    """Return a hint at the labels next to a number that is none of them."""
    if not isinstance(key, int | float) or index.dtype.kind not in "iuf" or not len(index):
        return ""
    values = np.unique(index.to_numpy())
    at = int(np.searchsorted(values, key))
    nearest = [label(value) for value in values[max(at - 1, 0) : at + 1]]
    first, last = nearest[0], nearest[-1]
    if first == last:
        return f"the nearest label is {first}"
    return f"the nearest labels are {first} and {last}; a range such as {first}:{last} has both"


def label(value: Any) -> str:
    """Return a value of a coordinate as text."""
    if isinstance(value, np.datetime64):
        text = np.datetime_as_string(value, unit="auto") if not np.isnat(value) else "NaT"
        return str(text)
    if isinstance(value, np.timedelta64):
        return str(pd.Timedelta(value))
    if isinstance(value, np.floating | float):
        return f"{float(value):.10g}"
    return str(value)


def _by_dimension(option: str, texts: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"{option} takes DIM=VALUE, such as {_EXAMPLES[option]}; got {text!r}")
        if name in found:
            raise InputError(f"{option}: {name!r} is given twice")
        found[name] = value
    return found


_EXAMPLES = {"--sel": "time=2024-01:2024-03", "--isel": "time=0:24"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of a selection."""
    parser.add_argument(
        "--var",
        action="append",
        default=[],
        metavar="NAME[,NAME...]",
        help="only these variables, and their coordinates (may be repeated)",
    )
    parser.add_argument(
        "--sel",
        action="append",
        default=[],
        metavar="DIM=LABELS",
        help="a label or a range with both ends: time=2024-01:2024-03, lat=60:40 (may be repeated)",
    )
    parser.add_argument(
        "--isel",
        action="append",
        default=[],
        metavar="DIM=POSITIONS",
        help="a position or a range without its end: time=0, time=0:24, x=-100:, y=::10",
    )
    parser.add_argument(
        "--bbox",
        type=BoundingBox.parse,
        metavar="W,S,E,N",
        help="a box in degrees; W may be greater than E to cross 180 degrees (write --bbox=W,S,E,N "
        "if W is negative)",
    )
