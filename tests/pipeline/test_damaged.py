"""Damaged chunks: an error that says where, never wrong values, never a bomb's memory."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numcodecs.blosc
import numcodecs.lz4
import numcodecs.zstd
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec
from zarr.codecs import numcodecs as wrapped
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.stores.printable import printable
from aioxarray.testing import RecordingStore
from tests.samples import opened

if TYPE_CHECKING:
    import xarray as xr
    from zarr.abc.store import Store

pytestmark = pytest.mark.filterwarnings(
    # zarr 3.1 says so whenever it opens an array with such a codec.
    "ignore:Numcodecs codecs are not in the Zarr version 3 specification"
)

COUNT = 1000
BOMB = 1 << 24


def in_format_3(name: str) -> Any:
    """Return a codec of numcodecs as zarr wraps it for format 3, and warns each time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(wrapped, name)()


DELTA = {"zarr_format": 2, "filters": [numcodecs.Delta("i8")]}
CODECS: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zstd": {"compressors": ZstdCodec()},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "gzip": {"compressors": GzipCodec()},
    "crc32c": {"compressors": [ZstdCodec(), Crc32cCodec()]},
    "v2 zlib": {"zarr_format": 2, "compressors": numcodecs.Zlib()},
    "v2 lz4": {"zarr_format": 2, "compressors": numcodecs.LZ4()},
    # By zarr's own code.
    "delta, zstd": {**DELTA, "compressors": numcodecs.Zstd()},
    "delta, blosc": {**DELTA, "compressors": numcodecs.Blosc()},
    "delta, lz4": {**DELTA, "compressors": numcodecs.LZ4()},
    "delta, gzip": {**DELTA, "compressors": numcodecs.GZip()},
    "delta, zlib": {**DELTA, "compressors": numcodecs.Zlib()},
    "delta, bz2": {**DELTA, "compressors": numcodecs.BZ2()},
    "delta, lzma": {**DELTA, "compressors": numcodecs.LZMA()},
    "gzip of numcodecs": {"compressors": in_format_3("GZip")},
    "zlib of numcodecs": {"compressors": in_format_3("Zlib")},
    "bz2 of numcodecs": {"compressors": in_format_3("BZ2")},
    "lzma of numcodecs": {"compressors": in_format_3("LZMA")},
    "zlib as a filter": {
        "zarr_format": 2,
        "filters": [numcodecs.Delta("i8"), numcodecs.Zlib()],
        "compressors": None,
    },
}


def lzma_compress(data: bytes) -> bytes:
    """Compress with a small dictionary: the decoder allocates one of that size."""
    return lzma.compress(data, preset=0)


ENCODE: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "zstd": lambda data: bytes(numcodecs.zstd.compress(data, 1)),
    "blosc": lambda data: bytes(numcodecs.blosc.compress(data, b"lz4", 5, 1)),
    "gzip": gzip.compress,
    "v2 zlib": zlib.compress,
    "v2 lz4": lambda data: bytes(numcodecs.lz4.compress(data)),
    "delta, zstd": lambda data: bytes(numcodecs.zstd.compress(data, 1)),
    "delta, blosc": lambda data: bytes(numcodecs.blosc.compress(data, b"lz4", 5, 1)),
    "delta, lz4": lambda data: bytes(numcodecs.lz4.compress(data)),
    "delta, gzip": gzip.compress,
    "delta, zlib": zlib.compress,
    "delta, bz2": bz2.compress,
    "delta, lzma": lzma_compress,
    "gzip of numcodecs": gzip.compress,
    "zlib of numcodecs": zlib.compress,
    "bz2 of numcodecs": bz2.compress,
    "lzma of numcodecs": lzma_compress,
    "zlib as a filter": zlib.compress,
}
STORES: dict[str, Callable[[Path], Store]] = {
    "memory": lambda path: MemoryStore(),
    "local": LocalStore,
    "coroutines": lambda path: RecordingStore(MemoryStore()),
}


class Sample:
    """A dataset of one chunk that can be damaged."""

    def __init__(self, path: Path, make: str, kind: str) -> None:
        self.store = STORES[make](path)
        group = zarr.create_group(self.store, zarr_format=CODECS[kind].get("zarr_format", 3))
        options = {key: value for key, value in CODECS[kind].items() if key != "zarr_format"}
        values = np.random.default_rng(0).integers(0, 50, COUNT).astype("i8")
        names: dict[str, Any] = (
            {"dimension_names": ["x"]} if "zarr_format" not in CODECS[kind] else {}
        )
        array = group.create_array(
            "v", shape=COUNT, dtype="i8", chunks=(COUNT,), **options, **names
        )
        if not names:
            array.attrs["_ARRAY_DIMENSIONS"] = ["x"]
        array[:] = values
        self.key = "v/c/0" if names else "v/0"

    def damage(self, change: Callable[[bytes], bytes]) -> None:
        async def replace() -> None:
            prototype = default_buffer_prototype()
            buffer = await self.store.get(self.key, prototype)
            assert buffer is not None
            await self.store.set(self.key, buffer.from_bytes(change(buffer.to_bytes())))

        run_blocking(replace)

    def error(self) -> str:
        ds: xr.Dataset = opened(self.store, consolidated=False)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - of each codec its own
            aioxarray.load(ds)
        assert not ds["v"]._in_memory
        return "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "one byte": lambda data: data[:1],
    "a byte less": lambda data: data[:-1],
}


@pytest.mark.matrix(together=2)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("make", STORES)
def test_truncated(make: str, kind: str, damage: str, tmp_path: Path) -> None:
    sample = Sample(tmp_path, make, kind)
    sample.damage(DAMAGES[damage])
    said = sample.error()
    assert "variable 'v'" in said
    assert repr(sample.key) in said
    assert repr(printable(sample.store)) in said


@pytest.mark.matrix(together=2)
@pytest.mark.parametrize("size", [COUNT * 8 - 8, COUNT * 8 + 8, 0])
@pytest.mark.parametrize("kind", ENCODE)
@pytest.mark.parametrize("make", STORES)
def test_another_size(make: str, kind: str, size: int, tmp_path: Path) -> None:
    sample = Sample(tmp_path, make, kind)
    sample.damage(lambda data: ENCODE[kind](b"x" * size))
    assert repr(sample.key) in sample.error()


SMALL = 100
MENDED: dict[str, Callable[[bytes], bytes]] = {
    "more": lambda data: data + b"more",
    "a frame more": lambda data: data + data,
    "another size": lambda data: ENCODE["zstd"](b"x" * (SMALL * 8 + 8)),
    "no frame": lambda data: b"x" * len(data),
    **DAMAGES,
}


@pytest.mark.parametrize("damage", MENDED)
@pytest.mark.parametrize("make", ["memory", "local"])
def test_one_of_many_small_chunks(make: str, damage: str, tmp_path: Path) -> None:
    """Such are decoded many at once, by what says neither which one, nor what is behind it."""
    store = STORES[make](tmp_path)
    array = zarr.create_group(store).create_array(
        "v", shape=50 * SMALL, dtype="i8", chunks=(SMALL,), dimension_names=["x"]
    )
    array[:] = np.arange(50 * SMALL)

    async def replace() -> None:
        buffer = await store.get("v/c/7", default_buffer_prototype())
        assert buffer is not None
        await store.set("v/c/7", buffer.from_bytes(MENDED[damage](buffer.to_bytes())))

    run_blocking(replace)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - of each codec its own
        aioxarray.load(opened(store, consolidated=False))
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert "chunk 'v/c/7'" in said


@pytest.mark.parametrize("kind", ["zstd", "delta, zstd"])
def test_bytes_that_are_no_frame_are_not_said_to_have_a_size(kind: str, tmp_path: Path) -> None:
    sample = Sample(tmp_path, "local", kind)
    sample.damage(lambda data: b"this is a page of a server that says: not found")
    said = sample.error()
    assert "decodes to" not in said
    assert repr(sample.key) in said


@pytest.mark.parametrize("kind", [kind for kind in ENCODE if kind != "none"])
def test_bombs_are_not_unpacked(kind: str, tmp_path: Path) -> None:
    sample = Sample(tmp_path, "local", kind)
    sample.damage(lambda data: ENCODE[kind](bytes(BOMB)))
    tracemalloc.start()
    try:
        said = sample.error()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert repr(sample.key) in said
    assert most < BOMB / 4


def test_wrong_checksum(tmp_path: Path) -> None:
    sample = Sample(tmp_path, "memory", "crc32c")
    sample.damage(lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    assert "checksum" in sample.error()


@pytest.mark.parametrize("damage", ["index", "data", "short"])
@pytest.mark.parametrize("part", [slice(None), slice(0, 16)])
@pytest.mark.parametrize("make", STORES)
def test_shards(make: str, part: slice, damage: str, tmp_path: Path) -> None:
    store = STORES[make](tmp_path)
    array = zarr.create_array(store, shape=64, dtype="i4", chunks=(8,), shards=(64,))
    array[:] = np.arange(64)

    def change(data: bytes) -> bytes:
        if damage == "short":
            return data[:10]
        at = len(data) - 30 if damage == "index" else 0
        return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]

    async def replace() -> None:
        buffer = await store.get("c/0", default_buffer_prototype())
        assert buffer is not None
        await store.set("c/0", buffer.from_bytes(change(buffer.to_bytes())))

    run_blocking(replace)
    with zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"}):
        array = zarr.open_array(store, mode="r")
        with pytest.raises((ValueError, RuntimeError)) as caught:
            array[part]
    assert any("'c/0'" in note for note in caught.value.__notes__)
