"""The contents of a dataset or of its groups, as values ready for JSON and as text.

The text has the parts of ``ncdump -h`` in their order: dimensions, variables with their attributes,
global attributes, groups. Comments tell how the values are stored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._xarray.lazy.sizes import is_unknown, size_text
from aioxarray._zarr.stores.request import DOCUMENTS
from aioxarray.cli.selecting import label

if TYPE_CHECKING:
    import xarray as xr

# The attributes that decoding moves to the encoding: readers of the file see them.
_CODING = ("units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value")
# Text shows at most so many characters of an attribute.
_SHOWN = 300
# A store in local files has a file for each chunk: more are not looked at.
_MOST_FILES = 100_000


def contents(groups: Mapping[str, xr.Dataset], location: str | None) -> dict[str, Any]:
    """Return the contents of ``groups`` ready for JSON.

    ``location`` is where they are stored; None leaves out the sizes there.
    """
    files = _Files(location)
    described = {path: _group(path, dataset, files) for path, dataset in groups.items()}
    variables = [each for group in described.values() for each in group["variables"].values()]
    decoded = [each["bytes"] for each in variables]
    return {
        "bytes": None if None in decoded else sum(decoded),
        "bytes_stored": files.total([each["bytes_stored"] for each in variables]),
        "groups": described,
    }


def _group(path: str, dataset: xr.Dataset, files: _Files) -> dict[str, Any]:
    return {
        "dimensions": {str(name): size for name, size in dataset.sizes.items()},
        "variables": {
            str(name): _variable(path, str(name), dataset, files) for name in dataset.variables
        },
        "attributes": _plain(dataset.attrs),
    }


def _variable(path: str, name: str, dataset: xr.Dataset, files: _Files) -> dict[str, Any]:
    variable = dataset.variables[name]
    encoding = variable.encoding
    stored_dtype = encoding.get("dtype", variable.dtype)
    ends = None
    if name in dataset.xindexes and variable.ndim == 1 and variable.size:
        ends = [label(variable.values[0]), label(variable.values[-1])]
    attributes = dict(variable.attrs)
    attributes |= {key: encoding[key] for key in _CODING if encoding.get(key) is not None}
    return {
        "dimensions": list(map(str, variable.dims)),
        "shape": list(variable.shape),
        "dtype": str(variable.dtype),
        "stored_dtype": str(stored_dtype),
        "is_coordinate": name in dataset.coords,
        "first_and_last": ends,
        "attributes": _plain(attributes),
        "chunks": _lengths(encoding.get("chunks") or encoding.get("chunksizes")),
        "shards": _lengths(encoding.get("shards")),
        "codecs": _codecs(encoding),
        "bytes": None if is_unknown(variable) else int(variable.nbytes),
        "bytes_stored": files.below(f"{path.strip('/')}/{name}".strip("/")),
    }


def _lengths(value: Any) -> list[int] | None:
    if value is None or value == "auto":
        return None
    return [int(np.max(each)) for each in value]


def _codecs(encoding: Mapping[str, Any]) -> list[str]:
    """Return the codecs in the order in which they encode, each with its settings."""
    listed: list[Any] = [*(encoding.get("filters") or ())]
    if encoding.get("serializer") is not None:
        listed.append(encoding["serializer"])
    compressors = encoding.get("compressors") or ()
    listed += compressors if isinstance(compressors, list | tuple) else [compressors]
    named = [_codec(each) for each in listed]
    # HDF5's filters.
    named += ["shuffle"] if encoding.get("shuffle") is True else []
    level = encoding.get("complevel")
    for name in ("zlib", "szip", "zstd", "bzip2", "blosc"):
        if encoding.get(name):
            named.append(name if level is None else f"{name}(level={level})")
    return named + (["fletcher32"] if encoding.get("fletcher32") is True else [])


def _codec(codec: Any) -> str:
    if hasattr(codec, "to_dict"):
        document = codec.to_dict()
        name, settings = str(document.get("name")), dict(document.get("configuration") or {})
    elif hasattr(codec, "get_config"):
        settings = dict(codec.get_config())
        name = str(settings.pop("id"))
    else:
        return type(codec).__name__
    texts = ", ".join(f"{key}={_text(value)}" for key, value in settings.items())
    return f"{name}({texts})" if texts else name


def _plain(value: Any) -> Any:
    """Return a value of an attribute as JSON can hold it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float) and not math.isfinite(value):
        # JSON has no such numbers.
        return str(value)
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)


def _text(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False)


# --- sizes in local files ----------------------------------------------------------------------


class _Files:
    """Sizes of the files of a Zarr store or of a single file; unknown if it is not local."""

    def __init__(self, location: str | None) -> None:
        path = (location or "").removeprefix("file://")
        self._root = Path(os.path.expanduser(path)) if path else None
        self._left = _MOST_FILES if self._root is not None and self._root.is_dir() else 0

    def below(self, path: str) -> int | None:
        """Return the bytes of the chunks of the array at ``path``."""
        if self._root is None or not self._left:
            return None
        total = 0
        for folder, _, names in os.walk(self._root / path):
            self._left -= len(names)
            if self._left <= 0:
                self._left = 0
                return None
            for name in names:
                if name not in DOCUMENTS:
                    total += os.lstat(os.path.join(folder, name)).st_size
        return total

    def total(self, sizes: list[int | None]) -> int | None:
        """Return the bytes of all arrays, given those of each."""
        if self._root is not None and self._root.is_file():
            return self._root.stat().st_size
        known = [size for size in sizes if size is not None]
        return sum(known) if known and len(known) == len(sizes) else None


# --- text --------------------------------------------------------------------------------------


def as_text(described: Mapping[str, Any]) -> str:
    """Return the `contents` as text."""
    groups = described["groups"]
    lines = []
    for path, group in groups.items():
        if len(groups) > 1 or path != "/":
            lines += ["", f"group: {path}"]
        lines += _group_lines(group)
    return "\n".join(lines).strip("\n")


def _group_lines(group: Mapping[str, Any]) -> Iterator[str]:
    if group["dimensions"]:
        yield "dimensions:"
        for name, size in group["dimensions"].items():
            yield f"  {name} = {size}"
    if group["variables"]:
        yield "variables:"
        for name, variable in group["variables"].items():
            yield from _variable_lines(name, variable)
    if group["attributes"]:
        yield "attributes:"
        for name, value in group["attributes"].items():
            yield f"  {name} = {_shortened(value)}"


def _variable_lines(name: str, variable: Mapping[str, Any]) -> Iterator[str]:
    ends = variable["first_and_last"]
    shown = "" if ends is None else f"  // {ends[0]} … {ends[1]}"
    yield f"  {variable['dtype']} {name}({', '.join(variable['dimensions'])}){shown}"
    yield f"    // {_storage(variable)}"
    for key, value in variable["attributes"].items():
        yield f"    {name}:{key} = {_shortened(value)}"


def _storage(variable: Mapping[str, Any]) -> str:
    """Return how a variable is stored, in one line."""
    parts = []
    if variable["stored_dtype"] != variable["dtype"]:
        parts.append(f"stored as {variable['stored_dtype']}")
    if variable["shards"]:
        parts.append(f"shards {_product(variable['shards'])}")
    if variable["chunks"]:
        parts.append(f"chunks {_product(variable['chunks'])}")
    parts += [", ".join(variable["codecs"])] if variable["codecs"] else []
    size = variable["bytes"]
    parts.append("size unknown" if size is None else size_text(size))
    if variable["bytes_stored"] is not None:
        parts[-1] += f" ({size_text(variable['bytes_stored'])} stored)"
    return "; ".join(parts)


def _product(lengths: list[int]) -> str:
    return " × ".join(map(str, lengths))


def _shortened(value: Any) -> str:
    text = _text(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"
