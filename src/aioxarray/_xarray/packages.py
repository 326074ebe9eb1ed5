"""What to install when a package is missing: the extra of aioxarray that brings it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec

# The extra of each package that xarray, zarr, fsspec and this package ask for, by its import.
_EXTRAS = {
    "aiohttp": "remote",
    "cfgrib": "grib",
    "dask": "dask",
    "distributed": "dask",
    "eccodes": "grib",
    "fsspec": "remote",
    "h5netcdf": "netcdf",
    "h5py": "netcdf",
    "icechunk": "icechunk",
    "netCDF4": "netcdf",
    "obstore": "remote",
    "requests": "remote",
    "s3fs": "remote",
    "scipy": "netcdf",
    "virtualizarr": "virtual",
}
# Those that no extra brings.
_OTHERS = ("adlfs", "gcsfs", "pydap")
# What obstore reads, which an extra brings, in their place; not with options meant for fsspec.
_BY_OBSTORE = ("adlfs", "gcsfs")
_NETCDF = ("netCDF4", "h5netcdf", "scipy")


def missing_package(error: BaseException) -> str | None:
    """Return the import that failed behind ``error``; None if that is not what happened."""
    if not isinstance(error, ImportError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name.partition(".")[0]
        cause = cause.__cause__ or cause.__context__
    # Libraries that look before they import say it in words.
    words = re.findall(r"\w+", str(error))
    return next((word for word in words if word in _EXTRAS or word in _OTHERS), None)


def how_to_install(packages: Iterable[str], *, zarr: bool = False, options: bool = False) -> str:
    """Return a sentence that says how to install one of ``packages``; "" where nobody knows.

    Parameters
    ----------
    packages
        Names of imports.
    zarr, options
        Whether Zarr was to be opened, and with ``storage_options``: without them obstore will do.
    """
    wanted = [name for name in packages if name in _EXTRAS or name in _OTHERS]
    extras = {
        "remote" if zarr and not options and name in _BY_OBSTORE else _EXTRAS.get(name)
        for name in wanted
    }
    commands = sorted(f"pip install 'aioxarray[{extra}]'" for extra in extras if extra)
    commands += [f"pip install {name}" for name in wanted if not commands]
    if not commands:
        return ""
    return f"{' or '.join(wanted)} is not installed: {' or '.join(commands)}"


def missing_for_netcdf() -> list[str]:
    """Return the packages that write netCDF if none of them is installed, else nothing."""
    return [] if any(find_spec(name) for name in _NETCDF) else list(_NETCDF)
