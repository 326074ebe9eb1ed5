"""What `xarray.open_mfdataset` does to paths before it opens them."""

from __future__ import annotations

from typing import Any

# Private: patterns, nested lists and remote globs become lists of paths as in xarray's own
# function, which offers no way to open them concurrently (pydata/xarray#7810).
from xarray.backends.common import _find_absolute_paths


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
