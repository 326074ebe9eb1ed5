"""What `xarray.open_mfdataset` does before it opens files, and how it closes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

# Private: patterns, nested lists and remote globs become lists of paths as in xarray's own
# function, which offers no way to open them concurrently (pydata/xarray#7810).
from xarray.backends.common import _find_absolute_paths

if TYPE_CHECKING:
    import xarray as xr


def find_paths(paths: Any, options: dict[str, Any]) -> Any:
    """Return the (nested) list of what to open for ``paths``.

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
    """Return what closes ``datasets``, and does not hold them: a pickle would carry them all."""
    # Private: what closes a dataset; public is only the setter. xarray's own function does so too.
    return partial(_call_all, [each._close for each in datasets if each._close is not None])


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()
