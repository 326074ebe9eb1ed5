"""Benchmark of ``aioxarray copy``: undecoded and decoded, on slow lines, killed, beside others.

Each copy is a process of its own, of 1 GB in 512 chunks of 2 MB. Times and processor times are
those of the copy, after the imports and the opening, which `--dry-run` does alone; those of the
others are of their whole processes. Speeds are those of the slower side: a server with a limited
bandwidth, whose stored bytes take at least so long.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, NamedTuple

import psutil
import zarr

from aioxarray.testing import ObjectServer
from benchmarks.rows import Row

if TYPE_CHECKING:
    from benchmarks.data import Files
    from benchmarks.measuring import Options

TITLE = "`aioxarray copy` of 1 GB from HTTP to a disk (load: with dask, load_async: a plain loop)"
TABLE = Row
_KILLS = 20
_MOST_MB = 512
# Level 0 is level 3 to zstd, but not to Zarr: these chunks are decoded, and are the same.
_DECODED = ("--compress", "zstd:3")

# The ways of today, one script each.
_DASK = """
import sys, xarray as xr
ds = xr.open_zarr(sys.argv[1], chunks={})
ds.to_zarr(sys.argv[2])
"""
_LOOP = """
import sys, xarray as xr
ds = xr.open_zarr(sys.argv[1], chunks=None)
dim, size = next(iter(ds.sizes.items()))
for at in range(0, size, 4):
    part = ds.isel({dim: slice(at, at + 4)})
    part.to_zarr(sys.argv[2], **({"append_dim": dim} if at else {"mode": "w"}))
"""


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    path = files.large_chunks()
    folder = files.root
    chunks = [each for each in path.glob("v*/c/**/*") if each.is_file()]
    stored = sum(each.stat().st_size for each in chunks)
    with ObjectServer(root=folder, process=True) as server:
        url = f"{server.url}/{path.name}"
        moved = _Copy(url, folder / "moved").measured()
        again = _Copy(url, folder / "decoded", *_DECODED).measured()
        peers = []
        for script in (_DASK, _LOOP):
            command = [sys.executable, "-W", "ignore", "-c", script, url, str(folder / "peer")]
            peers.append(_measured(command))
            shutil.rmtree(folder / "peer")
        for way, taken, goal in (("decoded", again, None), ("undecoded", moved, 0.5)):
            for what, unit, at in (("", "s", 0), (": processor time", "s", 1), (": peak", "MB", 2)):
                limit = _MOST_MB if unit == "MB" else goal and goal * again[at]
                yield Row(f"{way}{what}", unit, peers[0][at], peers[1][at], taken[at], limit)
    for mb_per_s in (50, 100):
        with ObjectServer(root=folder, process=True, bytes_per_s=mb_per_s * 1e6) as server:
            url = f"{server.url}/{path.name}"
            least = stored / mb_per_s / 1e6
            for way, more in (("undecoded", ()), ("decoded", _DECODED)):
                taken = _Copy(url, folder / "slow", *more).measured()
                what = f"{way}, {mb_per_s} MB/s: of {least:.1f} s at least"
                yield Row(what, "s", None, None, taken.seconds, least / 0.9)
    yield from _killed(path, folder / "five.zarr", options)


def _killed(path: Path, large: Path, options: Options) -> Iterator[Row]:
    """Yield how many chunks are read again, of five times the data; each kill loses a few."""
    variables = 4 if options.quick else 20
    shutil.copytree(path, large, copy_function=os.link)
    for number in range(4, variables):
        shutil.copytree(path / "v0", large / f"v{number}", copy_function=os.link)
    (large / "zarr.json").unlink()
    shutil.copy(path / "zarr.json", large)
    zarr.consolidate_metadata(large)
    chunks = [each for each in large.glob("v*/c/**/*") if each.is_file()]
    seconds = sum(each.stat().st_size for each in chunks) / 100e6
    kills = 2 if options.quick else _KILLS
    with ObjectServer(root=large, process=True, bytes_per_s=100e6) as server:
        for way, more in (("undecoded", ()), ("decoded", _DECODED)):
            if not options.wants(way):
                continue
            before = server.log.count("GET", "v*/c/*")
            copy = _Copy(server.url, large.with_name("killed"), *more)
            peak = copy.killed(kills, seconds)
            again = server.log.count("GET", "v*/c/*") - before - len(chunks)
            what = f"{way}, killed {kills} times: of {len(chunks)} chunks, read again"
            yield Row(what, "", None, None, again, 0.05 * len(chunks))
            yield Row(f"{way}, killed: peak", "MB", None, None, peak, _MOST_MB)


class _Taken(NamedTuple):
    seconds: float
    cpu_s: float
    peak_mb: float


def _measured(command: Sequence[str]) -> _Taken:
    """Run a command, and return the time, the processor time and the peak of its process."""
    begun = perf_counter()
    child = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    peak, user, system = 0.0, 0.0, 0.0
    # Not those of `resource`: a child's peak begins with its parent's.
    while child.poll() is None:
        with suppress(psutil.Error, OSError):
            peak = max(peak, _peak_mb(child.pid))
            user, system, *_ = child.cpu_times()
        sleep(0.02)
    seconds = perf_counter() - begun
    if child.returncode:
        raise RuntimeError(f"{command} failed")
    output = child.stdout.read()
    child.stdout.close()
    if output:
        # A copy tells its own time.
        seconds = json.loads(output)["seconds"]
    return _Taken(seconds, user + system, peak)


def _peak_mb(process: int) -> float:
    """Return the most memory that a process has had."""
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    _, _, rest = status.partition("VmHWM:")
    return float(rest.split()[0]) / 1024 if rest else 0.0


class _Copy:
    """A copy, deleted once it is complete."""

    def __init__(self, url: str, target: Path, *options: str) -> None:
        self._target = target
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "aioxarray",
            "copy",
            url,
            str(target),
            "--json",
        ]
        self._command = [*command, *options]

    def measured(self) -> _Taken:
        """Make it."""
        base = _measured([*self._command, "--dry-run"])
        try:
            taken = _measured(self._command)
            return taken._replace(cpu_s=taken.cpu_s - base.cpu_s)
        finally:
            shutil.rmtree(self._target, ignore_errors=True)

    def killed(self, times: int, seconds: float) -> float:
        """Make it with so many kills; return the peak of its memory in MB.

        The kills come at random moments after the first block of each run.
        """
        rng = random.Random(11)
        journal = self._target.with_name(f".{self._target.name}.journal")
        peak = 0.0
        for _ in range(times):
            before = journal.stat().st_size if journal.exists() else 0
            child = psutil.Popen(self._command, stdout=subprocess.DEVNULL)
            while child.poll() is None and (
                not journal.exists() or journal.stat().st_size <= before + 200
            ):
                sleep(0.01)
            sleep(rng.uniform(0, seconds / times))
            if child.poll() is None:
                peak = max(peak, _peak_mb(child.pid))
                child.kill()
            child.wait()
        return max(peak, self.measured().peak_mb)
