"""The only place that touches zarr's internals: its loop, reading pipeline, store wrapper.

Importing it makes zarr's own loop the I/O loop.
"""

from __future__ import annotations

from aioxarray._runtime.loops import provide_io_loop
from aioxarray._zarr.compat import _get_loop

provide_io_loop(_get_loop)
