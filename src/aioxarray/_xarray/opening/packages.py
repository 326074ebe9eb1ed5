"""What to install when a package is missing: the extra of aioxarray that brings it."""

from __future__ import annotations

import re
from collections.abc import Sequence
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
# What obstore, which an extra brings, reads and writes in their place.
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


def how_to_install(packages: Sequence[str], *, by_obstore: bool = False) -> str:
    """Return a sentence that says how to install one of ``packages``; "" where nobody knows.

    Parameters
    ----------
    packages
        Names of imports, of which one would do.
    by_obstore
        Whether obstore would do, too: for Zarr, without options that are meant for fsspec.
    """
    known = [name for name in packages if name in _EXTRAS or name in _OTHERS]
    if not known:
        return ""
    absent = f"{known[0]} is" if len(known) == 1 else f"none of {', '.join(known)} is"
    if by_obstore and known[0] in _BY_OBSTORE:
        return f"{absent} not installed; obstore will do: pip install 'aioxarray[remote]'"
    extra = _EXTRAS.get(known[0])
    name = known[0] if extra is None else f"'aioxarray[{extra}]'"
    return f"{absent}{' not' if len(known) == 1 else ''} installed: pip install {name}"


def missing_for_netcdf() -> list[str]:
    """Return the packages that write netCDF if none of them is installed, else nothing."""
    return [] if any(find_spec(name) for name in _NETCDF) else list(_NETCDF)
