"""Memory of a stream, measured in a process of its own: its peak, and its growth."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from time import sleep

import numpy as np
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from benchmarks import data
from benchmarks.memory import kilobytes, reset_peak

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """Pieces of one size.

    Attributes
    ----------
    variables, steps
        The variables in a piece, and the steps of 512 x 512 numbers of each.
    ahead_mib
        The bytes that the stream may hold.
    pause_s
        The time that the consumer takes for a piece, in which the stream gets as far as it may.
    """

    variables: int
    steps: int
    ahead_mib: int
    pause_s: float

    @property
    def piece_mb(self) -> float:
        """The size of a piece."""
        return self.variables * self.steps * 2 * MIB / 1e6

    @property
    def limit_mb(self) -> float:
        """The goal: what the stream may hold, what the consumer holds, and 64 MB."""
        return self.ahead_mib * MIB / 1e6 + self.piece_mb + 64


CASES = {
    "peak of memory, pieces of 2 MB, ahead 64 MiB": Case(1, 1, 64, 0.02),
    "peak of memory, pieces of 200 MB, ahead 512 MiB": Case(4, 24, 512, 0.5),
}


def peak(path: str, case: Case) -> float:
    """Return by how many MB the peak of memory is above that before the stream."""
    ds = data.opened(Path(path))
    ds = ds[list(ds.data_vars)[: case.variables]]
    pieces = aioxarray.blocks(ds, {"t": case.steps})
    aioxarray.compute(ds.isel(t=0, y=slice(1), x=slice(1)))
    reset_peak()
    before = kilobytes("VmRSS")
    with aioxarray.stream(pieces, ahead=case.ahead_mib * MIB) as stream:
        for piece in stream:
            # A GPU works meanwhile.
            sleep(case.pause_s)
            del piece
    return (kilobytes("VmHWM") - before) * 1024 / 1e6


def growth(count: int) -> float:
    """Return by how many MB memory grows over ``count`` small pieces, after a tenth of them."""
    store = MemoryStore()
    values = xr.Dataset({"v": (("t", "x"), np.arange(2560.0).reshape(256, 10))})
    values.to_zarr(store, encoding={"v": {"chunks": (16, 10)}})
    endless = itertools.cycle(aioxarray.blocks(data.opened(store), {"t": 1}))
    with aioxarray.stream(endless) as stream:
        for _ in itertools.islice(stream, count // 10):
            pass
        before = kilobytes("VmRSS")
        for _ in itertools.islice(stream, count - count // 10):
            pass
        return (kilobytes("VmRSS") - before) * 1024 / 1e6


if __name__ == "__main__":
    with data.quiet():
        what, *arguments = sys.argv[1:]
        if what == "peak":
            print(peak(arguments[0], CASES[arguments[1]]))
        else:
            print(growth(int(arguments[0])))
