"""Zarr: stores, metadata, chunks and codecs, and all uses of zarr's internals.

Importing the package makes zarr's own event loop the I/O loop.
"""

from __future__ import annotations

from aioxarray._runtime.loops import provide_io_loop
from aioxarray._zarr.compat import _get_loop

provide_io_loop(_get_loop)
