"""Zarr: stores, metadata, chunks and codecs, and all uses of zarr's internals.

Importing the package makes zarr's own event loop the I/O loop.
"""

from __future__ import annotations

# Private: the event loop on which zarr's synchronous calls run has no public name. fsspec
# filesystems that those calls opened are bound to it, so requests have to run there, too
# (zarr-developers/zarr-python#3487). Can go when zarr makes it public, as #3997 proposes.
from zarr.core.sync import _get_loop

from aioxarray._runtime.loops import provide_io_loop

provide_io_loop(_get_loop)
