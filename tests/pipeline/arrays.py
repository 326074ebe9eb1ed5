"""Zarr arrays of every kind, as recipes that make the same array again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numcodecs
import numpy as np
import zarr
import zarr.codecs as zc
import zarr.codecs.numcodecs as zn
from hypothesis import strategies as st
from zarr.abc.codec import ArrayArrayCodec, BytesBytesCodec
from zarr.dtype import VariableLengthBytes
from zarr.registry import register_codec

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from zarr.abc.store import Store
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import Buffer, NDBuffer

ZARRS = "zarr.core.codec_pipeline.BatchedCodecPipeline"
OURS = "aioxarray.CodecPipeline"

RECTILINEAR = tuple(map(int, zarr.__version__.split(".")[:2])) >= (3, 3)


T = TypeVar("T")


def in_one_second(make: Callable[[], T]) -> T:
    """Return what ``make`` makes, from the first call that ends in the second it began in.

    The bytes of gzip begin with the second in which they are made.
    """
    for _ in range(100):
        began = int(time.time())
        made = make()
        if int(time.time()) == began:
            break
    return made


@contextmanager
def using(pipeline: str) -> Iterator[None]:
    """Have zarr use ``pipeline`` for the arrays that are opened meanwhile."""
    settings: dict[str, Any] = {"codec_pipeline.path": pipeline}
    if RECTILINEAR:
        settings["array.rectilinear_chunks"] = True
    with zarr.config.set(settings):
        yield


@dataclass(frozen=True)
class Inverted(BytesBytesCodec):
    """A user's own codec: each byte inverted."""

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Inverted:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tests.inverted"}

    def _invert(self, data: Buffer, spec: ArraySpec) -> Buffer:
        return spec.prototype.buffer.from_array_like(~np.asarray(data.as_numpy_array()))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return self._invert(chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return self._invert(chunk_data, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        return input_byte_length


@dataclass(frozen=True)
class Mirrored(ArrayArrayCodec):
    """A user's own codec: each chunk backwards."""

    is_fixed_size = True

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Mirrored:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tests.mirrored"}

    def _mirror(self, data: NDBuffer, spec: ArraySpec) -> NDBuffer:
        mirrored: Any = np.flip(data.as_numpy_array()).copy()
        return spec.prototype.nd_buffer.from_ndarray_like(mirrored)

    async def _decode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._mirror(chunk_data, chunk_spec)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> NDBuffer:
        return self._mirror(chunk_data, chunk_spec)

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: ArraySpec) -> int:
        return input_byte_length


register_codec("tests.inverted", Inverted)
register_codec("tests.mirrored", Mirrored)


@dataclass(frozen=True)
class Recipe:
    """How to make an array, and values of its type.

    Attributes
    ----------
    shape
        Of the array.
    kind
        A name in `KINDS`.
    options
        For `zarr.create_array`.
    """

    shape: tuple[int, ...]
    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def create(self, store: Store) -> zarr.Array[Any]:
        """Return a new array in ``store``, with the pipeline of the moment."""
        options: Any = dict(self.options)
        return zarr.create_array(
            store, name="a", shape=self.shape, dtype=KINDS[self.kind].zarr_type, **options
        )

    def values(self, shape: tuple[int, ...], seed: int) -> NDArray[Any]:
        """Return values of the array's type; a third of them are zero or empty."""
        rng = np.random.default_rng(seed)
        numbers = rng.integers(0, 90, size=shape) * (rng.random(size=shape) > 0.3)
        return KINDS[self.kind].values(numbers)


@dataclass(frozen=True)
class Kind:
    """A type of data."""

    zarr_type: Any
    values: Callable[[NDArray[np.int64]], NDArray[Any]]


def _numbers(name: str) -> Kind:
    return Kind(name, lambda numbers: numbers.astype(name))


def _objects(function: Callable[[int], Any]) -> Callable[[NDArray[np.int64]], NDArray[Any]]:
    def values(numbers: NDArray[np.int64]) -> NDArray[Any]:
        found = np.empty(numbers.shape, dtype=object)
        flat = found.reshape(-1)
        for index, number in enumerate(numbers.ravel()):
            flat[index] = function(int(number))
        return found

    return values


def _structured(numbers: NDArray[np.int64], dtype: Any) -> NDArray[Any]:
    found = np.zeros(numbers.shape, dtype=dtype)
    found["a"], found["b"] = numbers, numbers / 4
    return found


_WORD = _objects(lambda n: "" if n == 0 else "Zürich日"[: n % 8 + 1] * (n % 3 + 1))
STRUCTURED = np.dtype([("a", "<i4"), ("b", "<f8")])
STRUCTURED_BIG = np.dtype([("a", ">i4"), ("b", "<f8")])

NUMBERS = ["i1", "u2", "<i4", ">i4", "<f4", ">f4", "<f8", ">f8", "<c8", ">c16", "u8", "f2"]
KINDS: dict[str, Kind] = {
    **{name: _numbers(name) for name in NUMBERS},
    "bool": Kind("bool", lambda numbers: numbers % 2 == 1),
    "M8[ns]": _numbers("<M8[ns]"),
    ">M8[s]": _numbers(">M8[s]"),
    "m8[ms]": _numbers("<m8[ms]"),
    "text": Kind("<U5", lambda n: _WORD(n).astype("<U5")),
    "big text": Kind(">U5", lambda n: _WORD(n).astype(">U5")),
    "bytes": Kind("S4", lambda n: n.astype("S4")),
    "raw": Kind(np.dtype("V4"), lambda n: n.astype("<u4").view("V4")),
    "structured": Kind(STRUCTURED, lambda n: _structured(n, STRUCTURED)),
    "big structured": Kind(STRUCTURED_BIG, lambda n: _structured(n, STRUCTURED_BIG)),
    "any text": Kind(str, _WORD),
    "any bytes": Kind(VariableLengthBytes(), _objects(lambda n: b"x" * (n % 7))),
}
VARIABLE = ("any text", "any bytes")
# zarr 3.1 itself mixes up the byte orders of these in format 3.
ONLY_V2 = ("big structured",)
# zarr 3.1 itself fails on shards of these: their fill values are unhashable.
NO_SHARDS = ("raw", "structured")

BLOSC: list[dict[str, Any]] = [
    {"cname": cname, "shuffle": shuffle, "clevel": 3}
    for cname in ("lz4", "zstd", "zlib", "blosclz")
    for shuffle in ("noshuffle", "shuffle", "bitshuffle")
]


def _compressors_v3(kind: str) -> st.SearchStrategy[Any]:
    size = 1 if kind in VARIABLE else np.dtype(KINDS[kind].zarr_type).itemsize
    each: list[Any] = [
        None,
        *(zc.BloscCodec(typesize=size, **options) for options in BLOSC),
        zc.ZstdCodec(level=1),
        zc.ZstdCodec(level=3, checksum=True),
        zc.GzipCodec(level=1),
        zn.LZ4(),
        zn.Zlib(level=1),
        zn.LZMA(),
        Inverted(),
        [zc.ZstdCodec(), zc.Crc32cCodec()],
        [zc.Crc32cCodec(), zc.ZstdCodec()],
        zc.Crc32cCodec(),
        zn.CRC32(),
        zn.Adler32(),
        [zn.Shuffle(elementsize=size), zn.Zlib(level=1), zc.Crc32cCodec()],
        [zc.GzipCodec(level=1), zc.ZstdCodec()],
        [Inverted(), zn.LZ4()],
    ]
    return st.sampled_from(each)


def _compressors_v2() -> st.SearchStrategy[Any]:
    return st.sampled_from(
        [
            None,
            numcodecs.Zstd(level=1),
            numcodecs.GZip(level=1),
            numcodecs.Zlib(level=1),
            numcodecs.LZ4(),
            numcodecs.LZMA(),
            numcodecs.BZ2(),
            *(
                numcodecs.Blosc(cname=cname, shuffle=n)
                for cname in ("lz4", "zstd")
                for n in range(3)
            ),
        ]
    )


def _filters(kind: str, ndim: int, zarr_format: int) -> st.SearchStrategy[Any]:
    found: list[Any] = [None, None]
    dtype = None if kind in VARIABLE else np.dtype(KINDS[kind].zarr_type)
    floats, integers = dtype is not None and dtype.kind == "f", kind in ("<i4", "i1", "u8", "u2")
    if zarr_format == 2:
        if kind in VARIABLE:
            return st.just("auto")
        assert dtype is not None
        found.append([numcodecs.Shuffle(dtype.itemsize)])
        if integers or kind in ("<f4", "<f8"):
            found.append([numcodecs.Delta(dtype=dtype.str)])
        if kind == "<f8":
            found.append([numcodecs.FixedScaleOffset(0, 4, "<f8", "<i4")])
            found.append([numcodecs.Quantize(2, "<f8"), numcodecs.Shuffle(8)])
        return st.sampled_from(found)
    if kind not in VARIABLE:
        found += [zc.TransposeCodec(order=tuple(range(ndim))[::-1]), Mirrored()]
        if ndim == 3:
            found.append([zc.TransposeCodec(order=(1, 2, 0)), zc.TransposeCodec(order=(0, 2, 1))])
    if dtype is not None and (integers or (floats and kind in ("<f4", "<f8"))):
        found.append([zn.Delta(dtype=dtype.str)])
    if kind == "<f8":
        found.append([zn.FixedScaleOffset(offset=0, scale=4, dtype="<f8", astype="<i4")])
        found.append([zn.Quantize(digits=2, dtype="<f8")])
    return st.sampled_from(found)


def _fill_values(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    if kind in NUMBERS:
        return st.sampled_from([{}, {"fill_value": 7}])
    return st.just({})


def _split(draw: Any, size: int) -> list[int]:
    """Draw the lengths of chunks of varying length that make up ``size``."""
    lengths = []
    while size:
        lengths.append(draw(st.integers(1, size)))
        size -= lengths[-1]
    return lengths


@st.composite
def recipes(draw: Any) -> Recipe:
    """Recipes for arrays of up to three dimensions."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    zarr_format = draw(st.sampled_from([2, 3, 3]))
    kind = draw(st.sampled_from([k for k in KINDS if zarr_format == 2 or k not in ONLY_V2]))
    chunks: Any = tuple(draw(st.integers(1, size + 1)) for size in shape)
    options: dict[str, Any] = {
        "zarr_format": zarr_format,
        "chunks": chunks,
        "filters": draw(_filters(kind, len(shape), zarr_format)),
        "config": {
            "write_empty_chunks": draw(st.booleans()),
            "order": draw(st.sampled_from("CF")),
        },
        **draw(_fill_values(kind)),
    }
    if zarr_format == 2:
        options["compressors"] = draw(_compressors_v2())
        options["order"] = options["config"].pop("order")
        return Recipe(shape, kind, options)
    options["compressors"] = draw(_compressors_v3(kind))
    if kind in NUMBERS and draw(st.booleans()):
        options["serializer"] = zc.BytesCodec(endian=draw(st.sampled_from(["little", "big"])))
    grid = draw(st.sampled_from(["regular", "regular", "sharded", "nested", "rectilinear"]))
    if grid == "sharded" and kind not in NO_SHARDS:
        options["shards"] = {
            "shape": tuple(length * draw(st.integers(1, 3)) for length in chunks),
            "index_location": draw(st.sampled_from(["start", "end"])),
        }
    elif grid == "nested" and kind in NUMBERS:
        _nest(draw, options)
    elif grid == "rectilinear" and RECTILINEAR:
        options["chunks"] = [_split(draw, size) for size in shape]
    return Recipe(shape, kind, options)


def _nest(draw: Any, options: dict[str, Any]) -> None:
    """Put shards into shards, maybe with an unchecked index, maybe all compressed."""
    inner = options["chunks"]
    middle = tuple(length * draw(st.integers(1, 2)) for length in inner)
    outer = tuple(length * draw(st.integers(1, 2)) for length in middle)
    index = draw(st.sampled_from([{}, {"index_codecs": [zc.BytesCodec()]}]))
    codecs: list[Any] = [zc.BytesCodec(), zc.ZstdCodec()]
    inside = zc.ShardingCodec(chunk_shape=inner, codecs=codecs, index_location="start")
    options["chunks"] = outer
    options["serializer"] = zc.ShardingCodec(chunk_shape=middle, codecs=[inside], **index)
    options["compressors"] = draw(st.sampled_from([None, zc.ZstdCodec()]))
    options["filters"] = None


Access = tuple[str, Any]


@st.composite
def accesses(draw: Any, recipe: Recipe) -> Access:
    """Ways of indexing, each a name of zarr's and its argument."""
    shape = recipe.shape
    regular = not isinstance(recipe.options["chunks"], list)
    ways = ["basic", "basic", "all", "orthogonal", "points", "mask"] + ["blocks"] * regular
    way = draw(st.sampled_from(ways))
    if way == "all":
        return "basic", ...
    if isinstance(recipe.options.get("serializer"), zc.ShardingCodec):
        # zarr itself reads shards in shards by slices only.
        return "basic", tuple(draw(_range(size)) for size in shape)
    if way == "basic":
        return "basic", tuple(draw(_basic(size)) for size in shape)
    if way == "orthogonal":
        return "orthogonal", tuple(draw(st.one_of(_basic(n), _list(n), _mask(n))) for n in shape)
    if way == "points":
        count = draw(st.integers(1, 6))
        lists = st.lists
        return "points", tuple(
            np.array(draw(lists(st.integers(0, n - 1), min_size=count, max_size=count)))
            for n in shape
        )
    if way == "mask":
        flat = draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
        return "mask", np.array(flat).reshape(shape)
    lengths = (recipe.options.get("shards") or {}).get("shape", recipe.options["chunks"])
    counts = [-(-size // length) for size, length in zip(shape, lengths, strict=True)]
    return "blocks", tuple(draw(_block(count)) for count in counts)


def _basic(size: int) -> st.SearchStrategy[Any]:
    def forward(part: slice) -> slice:
        # zarr has steps from 1 on.
        start, stop, step = part.indices(size)
        return slice(max(0, min(start, stop)), max(start, stop), abs(step))

    slices = st.slices(size).map(forward)
    return st.one_of(st.integers(0, size - 1), slices, st.just(slice(None)))


def _range(size: int) -> st.SearchStrategy[slice]:
    return st.tuples(st.integers(0, size - 1), st.integers(1, size)).map(
        lambda pair: slice(pair[0], pair[0] + pair[1])
    )


def _list(size: int) -> st.SearchStrategy[Any]:
    return st.lists(st.integers(0, size - 1), min_size=1, max_size=6).map(np.array)


def _mask(size: int) -> st.SearchStrategy[Any]:
    return st.lists(st.booleans(), min_size=size, max_size=size).map(np.array)


def _block(count: int) -> st.SearchStrategy[Any]:
    pairs = st.tuples(st.integers(0, count - 1), st.integers(1, count))
    return st.one_of(
        st.integers(0, count - 1), pairs.filter(lambda p: p[0] < p[1]).map(lambda p: slice(*p))
    )


def _view(array: zarr.Array[Any], way: str) -> Any:
    return {
        "basic": array,
        "orthogonal": array.oindex,
        "points": array.vindex,
        "mask": array.vindex,
        "blocks": array.blocks,
    }[way]


def get(array: zarr.Array[Any], access: Access) -> Any:
    """Read ``array``."""
    way, selection = access
    return _view(array, way)[selection]


def put(array: zarr.Array[Any], access: Access, values: Any) -> None:
    """Write to ``array``."""
    way, selection = access
    _view(array, way)[selection] = values
