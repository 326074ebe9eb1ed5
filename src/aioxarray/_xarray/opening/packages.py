"""Install hints for missing packages: which extra of aioxarray includes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec

# Import name -> extra, for the packages that xarray, zarr, fsspec and aioxarray ask for.
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
# Packages that are in no extra.
_OTHERS = ("adlfs", "gcsfs", "pydap")
# Packages that obstore, which is in an extra, can replace.
_BY_OBSTORE = ("adlfs", "gcsfs")
_NETCDF = ("netCDF4", "h5netcdf", "scipy")


def missing_package(error: BaseException) -> str | None:
    """Return the package whose failed import caused ``error``; None for any other error."""
    if not isinstance(error, ImportError):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            return cause.name.partition(".")[0]
        cause = cause.__cause__ or cause.__context__
    # Libraries that check before they import only name the package in the message.
    words = re.findall(r"\w+", str(error))
    return next((word for word in words if word in _EXTRAS or word in _OTHERS), None)


def how_to_install(packages: Sequence[str], *, by_obstore: bool = False) -> str:
    """Return a sentence on how to install one of ``packages``; "" if none of them is known.

    Parameters
    ----------
    packages
        Import names of packages, any one of which is enough.
    by_obstore
        Whether obstore is enough, too: for Zarr, without options meant for fsspec.
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
    """Return the packages that can write netCDF, or [] if one of them is installed."""
    return [] if any(find_spec(name) for name in _NETCDF) else list(_NETCDF)
