"""The data that a command names: its arguments, opening it, and the engine for it."""

from __future__ import annotations

import argparse
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from aioxarray._zarr.stores.printable import printable
from aioxarray.cli.arguments import json_object
from aioxarray.cli.failures import InputError, naming
from aioxarray.cli.repositories import is_repository, opened_session
from aioxarray.explaining import OpenPlan, observed_open

if TYPE_CHECKING:
    import xarray as xr

_HDF5_SUFFIXES = (".nc", ".nc4", ".cdf", ".h5", ".hdf5", ".he5")
_HINT = " (--engine names another reader, --group a group)"


@dataclass(frozen=True)
class Source:
    """Data that a command reads.

    Attributes
    ----------
    location
        A path, a URL, or a pattern of paths with ``*``.
    group, engine
        As for `aioxarray.open_dataset`; the engine "icechunk" opens a repository.
    storage_options
        The same; for icechunk, the arguments of its storage.
    ref
        The branch, tag or snapshot of an icechunk repository; None for the branch "main".
    """

    location: str
    group: str | None = None
    engine: str | None = None
    storage_options: dict[str, Any] = field(default_factory=dict)
    ref: str | None = None

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Source:
        """Return the source that the arguments of `add_arguments` name."""
        return cls(
            arguments.source,
            arguments.group,
            arguments.engine,
            arguments.storage_options or {},
            arguments.ref,
        )

    @property
    def name(self) -> str:
        """The location without credentials."""
        return printable(self.location)

    @property
    def is_pattern(self) -> bool:
        """Whether the location stands for many files."""
        return "*" in self.location and not os.path.exists(self.location)

    @property
    def snapshot(self) -> str | None:
        """The snapshot of an icechunk repository that is read; None for other sources."""
        return str(self._session.snapshot_id) if self._is_repository else None

    @cached_property
    def _is_repository(self) -> bool:
        if self.engine is not None:
            return self.engine == "icechunk"
        return not self.is_pattern and is_repository(self.location)

    @cached_property
    def _session(self) -> Any:
        return opened_session(self.location, self.ref, self.storage_options)

    @contextmanager
    def groups(
        self, group_filter: str | None = None
    ) -> Iterator[tuple[dict[str, xr.Dataset], OpenPlan]]:
        """Open all groups, and close them after the body.

        ``group_filter`` is that of `aioxarray.open_groups`.
        """
        if group_filter is not None and self.is_pattern:
            raise InputError(
                f"--group-filter selects groups of a Zarr store, and {self.location!r} stands for "
                "many files"
            )
        if self.is_pattern:
            with self.dataset() as (dataset, plan):
                yield {"/": dataset}, plan
            return
        try:
            options = {} if group_filter is None else {"group_filter": group_filter}
            opened, plan = self._open("open_groups", **options)
        except InputError as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
            # A format without groups.
            with self.dataset() as (dataset, plan):
                yield {"/": dataset}, plan
            return
        groups = cast("dict[str, xr.Dataset]", opened)
        try:
            yield groups, plan
        finally:
            for each in groups.values():
                each.close()

    @contextmanager
    def dataset(self) -> Iterator[tuple[xr.Dataset, OpenPlan]]:
        """Open the group as a dataset, and close it after the body."""
        opened, plan = self._open("open_mfdataset" if self.is_pattern else "open_dataset")
        with cast("xr.Dataset", opened) as dataset:
            yield dataset, plan

    def _open(self, opener: str, **options: Any) -> tuple[Any, OpenPlan]:
        if self.group is not None:
            options["group"] = self.group
        if self._is_repository:
            with naming(f"open {self.name}", hint=_HINT):
                store = self._session.store
                options |= {"engine": "zarr", "consolidated": False}
                return observed_open(store, opener=opener, **options)
        if self.ref is not None:
            raise InputError(
                f"--ref names a commit of an icechunk repository, and {self.name} is none; in a "
                "bucket, --engine icechunk says that it is one"
            )
        if self.storage_options:
            options["storage_options"] = self.storage_options
        location: Any = self.location
        if self.is_pattern:
            options["chunks"] = None
            if "://" not in location:
                location = sorted(glob.glob(os.path.expanduser(location)))
                if not location:
                    raise InputError(f"no file matches {self.location!r}")
        place = self.name if self.group is None else f"group {self.group!r} of {self.name}"
        with naming(f"open {place}", hint=_HINT):
            try:
                return observed_open(location, opener=opener, engine=self._engine(), **options)
            except (NotImplementedError, FileNotFoundError):
                raise
            except (OSError, ValueError):
                if not self._is_assumed_hdf5():
                    raise
                # A service such as OPeNDAP, whose URLs have the suffixes of files.
                return observed_open(location, opener=opener, **options)

    def _engine(self) -> str | None:
        return "h5netcdf" if self._is_assumed_hdf5() else self.engine

    def _is_assumed_hdf5(self) -> bool:
        """Return whether the location looks like an HDF5 file on a web server.

        xarray leaves these to netCDF-C, which opens services rather than files.
        """
        path = self.location.split("?")[0].lower()
        return (
            self.engine is None
            and path.startswith(("http://", "https://"))
            and path.endswith(_HDF5_SUFFIXES)
        )


def add_arguments(parser: argparse.ArgumentParser, name: str = "URL") -> None:
    """Add the arguments that name a source."""
    parser.add_argument(
        "source",
        metavar=name,
        help="data that xarray opens: a URL (http, https, s3, gs...), a path, or a quoted pattern "
        "of paths such as 'data/*.nc'",
    )
    parser.add_argument("--group", metavar="PATH", help="the group in it (default: the outermost)")
    parser.add_argument(
        "--engine",
        metavar="NAME",
        help="xarray's engine that reads it, or icechunk for a repository (default: guessed)",
    )
    parser.add_argument(
        "--ref",
        metavar="NAME",
        help="the branch, tag or snapshot of an icechunk repository (default: main)",
    )
    parser.add_argument(
        "--storage-options",
        type=json_object,
        metavar="JSON",
        help="options for the store's client, such as '{\"anon\": true}' for public data in S3",
    )
