"""The encoding of a copy: that of the source, as far as the format of the target can hold it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numcodecs
from zarr.codecs import GzipCodec, ZstdCodec

from aioxarray._xarray.saving.undecoded import whole_axes

if TYPE_CHECKING:
    import xarray as xr

Format = Literal["zarr2", "zarr3", "netcdf4"]
FORMATS: tuple[Format, ...] = ("zarr3", "zarr2", "netcdf4")

CODING = (
    *("dtype", "scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned"),
    *("units", "calendar", "coordinates", "grid_mapping"),
)
"""The parts of an encoding that tell how values are represented, which every format can hold."""

CHANGEABLE = (*CODING[:8], "chunks")
"""The parts of an encoding that can be given for a copy; None leaves one out."""

# How one version of Zarr stores chunks.
_STORAGE = ("compressors", "filters", "serializer", "fill_value")
# Data that is stored without chunks gets chunks of at most so many bytes.
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Compression:
    """A codec for all numbers of a copy.

    Attributes
    ----------
    name
        "none", or one of `CODECS`.
    level
        Its level; None for its default.
    """

    name: str
    level: int | None = None

    @classmethod
    def parse(cls, text: str) -> Compression:
        """Return the compression "NAME" or "NAME:LEVEL"; raise ValueError for another text."""
        name, colon, level = text.partition(":")
        if name not in ("none", *CODECS):
            raise ValueError(f"must be one of {', '.join(('none', *CODECS))}; got {text!r}")
        if not colon:
            return cls(name)
        lowest, highest = CODECS.get(name, (0, -1))
        if not (level.isdecimal() and lowest <= int(level) <= highest):
            raise ValueError(f"the level of {name} is from {lowest} to {highest}; got {text!r}")
        return cls(name, int(level))

    def compressors(self, target: Format) -> Any:
        """Return the encoding "compressors" for Zarr."""
        given: dict[str, Any] = {} if self.level is None else {"level": self.level}
        if self.name == "none":
            return None
        if self.name == "zstd":
            return [ZstdCodec(**given) if target == "zarr3" else numcodecs.Zstd(**given)]
        return [GzipCodec(**given) if target == "zarr3" else numcodecs.GZip(**given)]


CODECS = {"zstd": (1, 22), "gzip": (1, 9)}
"""The codecs, with their lowest and highest levels."""


@dataclass(frozen=True)
class Layout:
    """How a copy is stored.

    Attributes
    ----------
    format
        The format.
    chunks
        The lengths of chunks along dimensions; those of the source along the others.
    compression
        The compression; None for that of the source if the format has it, or else the default.
    encoding
        For variables, the parts of `CHANGEABLE` that are not those of the source.
    """

    format: Format = "zarr3"
    chunks: Mapping[str, int] = field(default_factory=dict)
    compression: Compression | None = None
    encoding: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as JSON can hold it."""
        compression = self.compression
        document: dict[str, Any] = {
            "format": self.format,
            "chunks": dict(self.chunks),
            "compression": None if compression is None else [compression.name, compression.level],
        }
        if self.encoding:
            document["encoding"] = {name: dict(own) for name, own in self.encoding.items()}
        return document

    def applied(self, dataset: xr.Dataset) -> xr.Dataset:
        """Return ``dataset`` with the encoding of a copy to Zarr; its data stays as it is."""
        new = dataset.copy(deep=False)
        for name, variable in new.variables.items():
            variable.encoding = self._encoding(name, variable)
        new.encoding = {}
        return new

    def _encoding(self, name: Hashable, variable: xr.Variable) -> dict[str, Any]:
        source = variable.encoding
        encoding = {key: source[key] for key in CODING if key in source}
        # A copy to netCDF is first one to Zarr.
        target: Format = "zarr2" if self.format == "zarr2" else "zarr3"
        if "compressors" in source and ("serializer" in source) == (target == "zarr3"):
            encoding |= {key: source[key] for key in _STORAGE if key in source}
        if variable.ndim:
            chunks, shards = self._chunks(variable)
            encoding["chunks"] = chunks
            if shards is not None and target == "zarr3":
                encoding["shards"] = shards
        if self.compression is not None and variable.dtype.kind in "biufcmM":
            encoding["compressors"] = self.compression.compressors(target)
        own = self.encoding.get(str(name), {})
        if own.keys() & {"dtype", "_FillValue"}:
            # These are made for the type of the source.
            for key in ("fill_value", "filters", "serializer"):
                encoding.pop(key, None)
        if "chunks" in own:
            encoding.pop("shards", None)
        encoding |= own
        return {
            key: value for key, value in encoding.items() if key not in own or value is not None
        }

    def _chunks(self, variable: xr.Variable) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
        """Return the lengths of the chunks, and of the shards if there are any."""
        source = variable.encoding
        stored = source.get("chunks") or source.get("chunksizes")
        if stored is None or stored == "auto" or not all(isinstance(each, int) for each in stored):
            # Not stored in chunks, or in unequal ones.
            stored, shards = _default_chunks(variable), None
        else:
            shards = source.get("shards")
        if len(stored) != variable.ndim:
            # A position was selected along a dimension, which is gone. Names tell the others.
            lengths = source.get("preferred_chunks", {})
            shards = None
            stored = tuple(
                lengths.get(dim, length)
                for dim, length in zip(variable.dims, _default_chunks(variable), strict=True)
            )
        sizes = [max(size, 1) for size in variable.shape]
        asked = [self.chunks.get(str(dim)) for dim in variable.dims]
        # Chunks that are longer than their dimension stay so: they can be copied as they are.
        kept = [
            own is None and is_whole
            for own, is_whole in zip(asked, whole_axes(variable), strict=True)
        ]
        chunks = tuple(
            length if keeps else min(length if own is None else own, size)
            for length, own, keeps, size in zip(stored, asked, kept, sizes, strict=True)
        )
        if shards is None or any(own is not None for own in asked):
            return chunks, None
        # A shard has whole chunks.
        whole = (
            shard if keeps else min(shard, -(-size // chunk) * chunk) // chunk * chunk
            for shard, keeps, size, chunk in zip(shards, kept, sizes, chunks, strict=True)
        )
        return chunks, tuple(whole)


def _default_chunks(variable: xr.Variable) -> tuple[int, ...]:
    """Return chunks of at most `_CHUNK_BYTES`, long along the last dimensions."""
    lengths = [max(size, 1) for size in variable.shape]
    for axis in range(len(lengths)):
        others = math.prod(lengths) // lengths[axis] * max(variable.dtype.itemsize, 1)
        lengths[axis] = max(1, min(lengths[axis], _CHUNK_BYTES // others))
        if lengths[axis] > 1:
            break
    return tuple(lengths)
