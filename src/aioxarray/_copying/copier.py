"""Making a copy: what may be there already, writing what is missing, and finishing it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

import aioxarray
from aioxarray._copying.encoding import CODING, Compression, Layout
from aioxarray._copying.fingerprint import fingerprint
from aioxarray._copying.journal import Journal, JournalError
from aioxarray._copying.targets import LocalTarget, Target
from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.saving.recorder import ZarrOptions
from aioxarray._xarray.saving.saver import save
from aioxarray._xarray.saving.undecoded import ways
from aioxarray.config import Concurrency, cache_limit, config, memory_limit

# With these a copy takes less than 512 MB of memory, whatever its size, if its chunks are small.
_LEAST_MEMORY, _MOST_MEMORY = 96 << 20, 192 << 20
# An eighth of the setting `memory` is blocks in flight, which a kill loses: 1/400 of a copy at
# most, or 12 MiB if that is more.
_MEMORY_PART = 50
_CACHE = 48 << 20


class TargetError(Exception):
    """There is something in place of the copy; the message says what, and the way out."""


@dataclass(frozen=True)
class Copy:
    """A copy to be made.

    Attributes
    ----------
    dataset
        The selected part of the source, lazy.
    target
        The place of the copy.
    layout
        How it is stored.
    origin
        The source of the copy, ready for JSON: an unfinished copy is only resumed by its equal.
    overwrite
        Whether to replace what is at the target.
    concurrency
        As in `aioxarray.load`.
    """

    dataset: xr.Dataset
    target: Target
    layout: Layout
    origin: Mapping[str, Any]
    overwrite: bool = False
    concurrency: Concurrency | None = None

    def check(self) -> int:
        """Return how many blocks an unfinished copy at the target has; change nothing.

        Raises
        ------
        TargetError
            If something else is there, and is not to be replaced.
        """
        with _told(JournalError):
            blocks = self._journal().recorded()
        if not (blocks and self._is_finished()):
            self._check_free()
        return blocks

    def make(self, progress: Callable[[int, int], object] | None = None) -> int:
        """Make or resume the copy; return how many of its blocks were there before.

        Parameters
        ----------
        progress
            Takes (done, total) in bytes of the stored arrays, before compression.

        Raises
        ------
        TargetError
            As in `check`.
        Exception
            The errors of `aioxarray.to_zarr`. What is written stays, and the same copy resumes.
        """
        with ExitStack() as stack:
            with _told(JournalError):
                journal = stack.enter_context(self._journal())
            if journal.blocks and not self._is_finished() and not self.target.has_begun():
                # Its part was deleted.
                journal.clear()
            before = journal.blocks
            if not (before and self._is_finished()):
                try:
                    self._check_free()
                except TargetError:
                    if not before:
                        journal.remove()
                    raise
                if not before:
                    self.target.discard()
                self._write(journal, progress)
                self._finish()
            journal.remove()
        return before

    def _journal(self) -> Journal:
        description = {
            **self.origin,
            "layout": self.layout.to_dict(),
            "fingerprint": fingerprint(self.dataset),
        }
        return Journal(self.target.journal, description, replaces=self.overwrite)

    def _is_finished(self) -> bool:
        """Return whether an earlier run, which left its journal, lacked its last step only."""
        if isinstance(self.target, LocalTarget):
            return self.target.exists() and not self.target.has_begun()
        return not self.overwrite and self.target.exists()

    def _check_free(self) -> None:
        if not self.overwrite and self.target.exists():
            raise TargetError(f"{self.target.name} is there already (--overwrite replaces it)")

    def ways(self) -> dict[str, str | None]:
        """Return, for each variable, why it is decoded; None if its chunks are copied as they are.

        Makes no request.
        """
        found = ways(self.layout.applied(self.dataset), self._options("w-"))
        return {str(name): reason for name, reason in found}

    def _options(self, mode: Any) -> ZarrOptions:
        return ZarrOptions(
            mode=mode,
            storage_options=dict(self.target.storage_options or {}) or None,
            zarr_format=2 if self.layout.format == "zarr2" else 3,
        )

    def _write(self, journal: Journal, progress: Callable[[int, int], object] | None) -> None:
        replaces = self.overwrite and not journal.blocks and self.target.has_old()
        options = self._options("w" if replaces else "w-")
        how = Options(self.concurrency, None, progress)
        dataset = self.layout.applied(self.dataset)
        memory = min(max(dataset.nbytes // _MEMORY_PART, _LEAST_MEMORY), _MOST_MEMORY)
        limits = {"memory": int(min(memory, memory_limit())), "cache": cache_limit() or _CACHE}
        with config.set(limits):
            run_blocking(lambda: save(dataset, self.target.store, options, how, journal))

    def _finish(self) -> None:
        if self.layout.format != "netcdf4":
            self.target.finish()
            return
        assert isinstance(self.target, LocalTarget)
        part = self.target.path.with_name(f".{self.target.path.name}.part.nc")
        with ExitStack() as stack:
            stack.callback(part.unlink, missing_ok=True)
            _write_netcdf(self.target.store, part, self.layout.compression)
            self.target.put(part)
        shutil.rmtree(self.target.store)


@contextmanager
def _told(kind: type[Exception]) -> Iterator[None]:
    """Turn errors of ``kind`` into a `TargetError`."""
    try:
        yield
    except kind as error:
        raise TargetError(str(error)) from error


def _write_netcdf(store: str, path: Path, compression: Compression | None) -> None:
    """Write a Zarr store in local files to a netCDF file, chunk by chunk."""
    with xr.open_dataset(store, engine="zarr", chunks={}) as dataset:
        for variable in dataset.variables.values():
            variable.encoding = _netcdf_encoding(variable, compression)
        aioxarray.to_netcdf(dataset, os.fspath(path), format="NETCDF4")


def _netcdf_encoding(variable: xr.Variable, compression: Compression | None) -> dict[str, Any]:
    stored = variable.encoding
    encoding = {key: stored[key] for key in CODING if key in stored}
    if not variable.ndim or variable.dtype.kind not in "biufmM":
        return encoding
    if stored.get("chunks") is not None:
        encoding["chunksizes"] = tuple(map(min, stored["chunks"], variable.shape))
    if compression is None or compression.name != "none":
        level = None if compression is None else compression.level
        encoding |= {"zlib": True, "complevel": level or _ZLIB_LEVEL, "shuffle": True}
    return encoding


_ZLIB_LEVEL = 4
