"""The only place that touches zarr's internals: its loop, reading pipeline, store wrapper.

Importing it makes zarr's own loop the I/O loop.
"""

from __future__ import annotations

# Private: zarr has no public name for the loop on which its synchronous calls run. fsspec
# filesystems that those calls opened are bound to it, so requests have to run there too
# (zarr-developers/zarr-python#3487). Can go when zarr offers it, as #3997 proposes.
from zarr.core.sync import _get_loop

from aioxarray._runtime.loops import provide_io_loop

provide_io_loop(_get_loop)
