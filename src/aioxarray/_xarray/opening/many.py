"""Parts of `xarray.open_mfdataset`: finding the files, and closing them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from aioxarray._xarray.compat import _find_absolute_paths

if TYPE_CHECKING:
    import xarray as xr


def find_paths(paths: Any, options: dict[str, Any]) -> Any:
    """Return the (nested) list of files that ``paths`` stands for.

    Raises
    ------
    OSError
        If a pattern matches nothing, or the list is empty.
    """
    found = _find_absolute_paths(paths, **options)
    if not found:
        raise OSError("no files to open")
    return found


def closing_all(datasets: Iterable[xr.Dataset]) -> Callable[[], None]:
    """Return a function that closes ``datasets`` without holding, and so pickling, them."""
    # Private: the close callback; only its setter is public. xarray's own function reads it too.
    return partial(_call_all, [each._close for each in datasets if each._close is not None])


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
