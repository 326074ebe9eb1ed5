"""Rows with benchmark results, and their tables."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Protocol

import psutil

PACKAGES = (
    *("aioxarray", "xarray", "zarr", "numpy", "dask", "netCDF4", "fsspec", "obstore"),
    *("zarrs", "tensorstore", "xarray-tensorstore"),
    *("insitubatch", "zarr-beluga", "xbatcher", "torch", "icechunk", "rustytree-xarray"),
)

# A number, or the reason for its absence.
Cell = float | str | None


@dataclass(frozen=True)
class Row:
    """Row that compares aioxarray with plain xarray.

    Attributes
    ----------
    what
        The row's label: what was done or counted.
    unit
        The unit of all numbers: "s", "ms" or "" (a count).
    load, load_async
        Plain xarray's numbers, or those that a group's own header names. A string if xarray raises
        or has no such function; None if not measured.
    ours
        aioxarray's number.
    goal
        The upper limit for ``ours``; None if there is no goal yet.
    """

    HEADER: ClassVar[Sequence[str]] = ["", "load", "load_async", "aioxarray", "ratio", "goal", ""]
    WIDTHS: ClassVar[Sequence[int]] = (48, 9, 10, 10, 7, 9, 6)

    what: str
    unit: str
    load: Cell
    load_async: Cell
    ours: float
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Plain ``load`` over ours; None for counts, and if ours is close to zero."""
        if not isinstance(self.load, int | float) or self.unit == "" or self.ours < 0.01:
            return None
        return self.load / self.ours

    def met(self) -> list[bool]:
        """Return whether the goal was met; empty if there is none."""
        return [] if self.goal is None else [self.ours <= self.goal]

    def texts(self) -> list[str]:
        """Return the row's cells as strings."""
        ratio = "" if self.ratio is None else f"{self.ratio:.{1 if self.ratio < 100 else 0}f}x"
        goal = "" if self.goal is None else f"<= {self._text(self.goal)}"
        met = "".join("met" if met else "MISSED" for met in self.met())
        numbers = map(self._text, (self.load, self.load_async, self.ours))
        return [self.what, *numbers, ratio, goal, met]

    def below(self) -> list[str]:
        """Return the lines below the row: none."""
        return []

    def _text(self, value: Cell) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else number(value, self.unit)


class AnyRow(Protocol):
    """Interface of the rows of any table."""

    HEADER: ClassVar[Sequence[str]]
    WIDTHS: ClassVar[Sequence[int]]

    def texts(self) -> list[str]: ...

    def below(self) -> list[str]: ...

    def met(self) -> list[bool]: ...


def number(value: float, unit: str) -> str:
    """Return a number with its unit, with a useful number of digits."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 0.2 else f"{value:.3f} s"
    if unit == "ms":
        return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
    return f"{value:.0f} {unit}".rstrip()


def line(table: type[AnyRow], texts: Sequence[str]) -> str:
    """Return a table line for terminals."""
    first, *rest = texts
    numbers = " ".join(f"{t:>{width}}" for t, width in zip(rest, table.WIDTHS[1:], strict=True))
    return f"{first:<{table.WIDTHS[0]}} {numbers}".rstrip()


def markdown(groups: Iterable[tuple[str, type[AnyRow], Sequence[AnyRow]]]) -> str:
    """Return all rows as Markdown tables, below a description of the machine."""
    lines = [machine()]
    last: type[AnyRow] | None = None
    for title, table, rows in groups:
        if table is not last:
            head = [*table.HEADER, ""]
            lines += ["", f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 2) + "|---|"]
            last = table
        lines.append(f"| **{title}** {'| ' * len(table.HEADER)}|")
        lines += [f"| {' | '.join([*row.texts(), '; '.join(row.below())])} |" for row in rows]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Describe this machine and the packages in use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    return (
        f"{_processor()}, {cores} cores, {memory:.0f} GiB of memory, {platform.system()}; "
        f"Python {platform.python_version()}, {versions}"
    )


def _version(name: str) -> str:
    if name == "aioxarray":
        import aioxarray

        # Not that of the installed package: the source tree may be used without installation.
        return aioxarray.__version__
    try:
        return version(name)
    except PackageNotFoundError:
        return "(none)"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for text in info.read_text().splitlines():
            if text.startswith("model name"):
                return text.partition(":")[2].strip()
    return platform.processor() or platform.machine()
