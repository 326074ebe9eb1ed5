"""A fingerprint of a lazy dataset, which tells whether a source has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

# Parts of the encoding that do not name the place of the file.
_STORED = ("dtype", "chunks", "chunksizes", "shards", "scale_factor", "add_offset", "units")


def fingerprint(dataset: xr.Dataset) -> str:
    """Return a text that depends on the metadata of ``dataset`` and on its indexes.

    Values that are not in memory are not read: a source whose values alone have changed has the
    same fingerprint.
    """
    digest = hashlib.sha256()

    def add(*values: Any) -> None:
        digest.update(repr(values).encode())

    add(_texts(dataset.attrs))
    for name in sorted(dataset.variables, key=str):
        variable = dataset.variables[name]
        stored = {key: variable.encoding[key] for key in _STORED if key in variable.encoding}
        add(name, variable.dims, variable.shape, str(variable.dtype))
        add(_texts(variable.attrs), _texts(stored))
        if isinstance(variable, xr.IndexVariable):
            values = variable.values
            add(
                values.tolist()
                if values.dtype.hasobject
                else np.ascontiguousarray(values).tobytes()
            )
    return digest.hexdigest()


def _texts(values: Mapping[Any, Any]) -> list[tuple[str, str]]:
    """Return names and values as texts in the order of the names."""
    return sorted((str(key), _text(value)) for key, value in values.items())


def _text(value: Any) -> str:
    # An array's own text leaves out values.
    return repr(value.tolist()) if isinstance(value, np.ndarray) else str(value)
