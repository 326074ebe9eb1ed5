"""What a benchmark found, and the tables made of it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("aioxarray", "xarray", "zarr", "numpy", "dask", "netCDF4", "fsspec")

# A number, or why there is none.
Cell = float | str | None


@dataclass(frozen=True)
class Row:
    """One measured number of aioxarray beside those of plain xarray.

    Attributes
    ----------
    what
        What was done, or what was counted.
    unit
        Of all numbers: "s", "ms" or "" (a count).
    load, load_async
        Plain xarray's, or what a group's own header says; a text where it raises or has no such
        function, None if not measured.
    ours
        aioxarray's.
    goal
        What ours must not exceed; None where there is no goal yet.
    """

    what: str
    unit: str
    load: Cell
    load_async: Cell
    ours: float
    goal: float | None = None

    @property
    def ratio(self) -> float | None:
        """Plain ``load`` over ours; None for counts, and where ours is nothing."""
        if not isinstance(self.load, int | float) or self.unit == "" or self.ours < 0.01:
            return None
        return self.load / self.ours

    @property
    def met(self) -> bool | None:
        """Whether the goal was reached; None without one."""
        return None if self.goal is None else self.ours <= self.goal

    def cells(self) -> list[str]:
        """Return the row as texts, for any table."""
        ratio = "" if self.ratio is None else f"{self.ratio:.{1 if self.ratio < 100 else 0}f}x"
        goal = "" if self.goal is None else f"<= {self._text(self.goal)}"
        met = {None: "", True: "met", False: "MISSED"}[self.met]
        numbers = map(self._text, (self.load, self.load_async, self.ours))
        return [self.what, *numbers, ratio, goal, met]

    def _text(self, value: Cell) -> str:
        if value is None:
            return ""
        if isinstance(value, str):
            return value
        if self.unit == "s":
            return f"{value:.2f} s"
        if self.unit == "ms":
            return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"
        return f"{value:.0f}"


COLUMNS = ["load", "load_async", "aioxarray", "ratio", "goal", ""]
WIDTHS = (48, 9, 10, 10, 7, 9, 6)


def line(cells: Sequence[str]) -> str:
    """Return a line of the table for terminals."""
    first, *rest = cells
    numbers = " ".join(f"{cell:>{width}}" for cell, width in zip(rest, WIDTHS[1:], strict=True))
    return f"{first:<{WIDTHS[0]}} {numbers}".rstrip()


@dataclass(frozen=True)
class Group:
    """The rows of one module of benchmarks, and what their columns are called."""

    title: str
    columns: Sequence[str]
    rows: list[Row]


def markdown(groups: Iterable[Group]) -> str:
    """Return a table in Markdown for each group, under what machine they were measured on."""
    lines = [machine()]
    for group in groups:
        lines += ["", f"| {' | '.join([f'**{group.title}**', *group.columns])} |"]
        lines.append("|---|--:|--:|--:|--:|--:|---|")
        lines += [f"| {' | '.join(row.cells())} |" for row in group.rows]
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

        # Not the installed one's: the source tree may be used as it is.
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
