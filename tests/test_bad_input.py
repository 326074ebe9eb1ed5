"""Bad input is a clear error at once, and changes nothing."""

from __future__ import annotations

import asyncio
import gzip
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.codec import BytesBytesCodec
from zarr.codecs import GzipCodec
from zarr.registry import register_codec
from zarr.storage import MemoryStore, ZipStore

import aioxarray
from aioxarray._zarr.stores.printable import printable
from aioxarray.testing import FaultyStore, ObjectServer, RecordingStore
from tests import samples
from tests.oracle import Way, assert_same, every_way, lazy, plainly_computed
from tests.samples import contents, opened, opened_tree, stored

NUMBERS = stored(samples.numbers())


def all_of(error: BaseException) -> str:
    """Return what a user sees of an error."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def assert_refused(ds: Any, way: Way, kind: type[Exception] | tuple[type[Exception], ...]) -> str:
    """Check that a load fails and leaves the object as it was; return the error's words."""
    was = lazy(ds)
    assert was
    with pytest.raises(kind) as caught:
        way(ds)
    assert lazy(ds) == was
    return all_of(caught.value)


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"timeout": -1}, ValueError, "timeout must not be negative, got -1"),
        ({"timeout": -0.001}, ValueError, "timeout must not be negative"),
        ({"timeout": math.nan}, ValueError, "timeout"),
        ({"timeout": "3"}, TypeError, "timeout must be a number of seconds or None, got '3'"),
        ({"timeout": True}, TypeError, "timeout must be a number"),
        ({"concurrency": 1.5}, TypeError, r"concurrency must be an integer or 'auto', got 1\.5"),
        ({"concurrency": "8"}, TypeError, "concurrency must be an integer or 'auto', got '8'"),
        ({"concurrency": True}, TypeError, "concurrency must be an integer or 'auto', got True"),
        ({"concurrency": math.inf}, TypeError, "concurrency must be an integer or 'auto'"),
        ({"max_bytes": -1}, ValueError, "max_bytes must not be negative, got -1"),
        ({"max_bytes": "-1MB"}, ValueError, "max_bytes must not be negative, got '-1MB'"),
        ({"max_bytes": "many"}, ValueError, "max_bytes must be a number of bytes or a text"),
        ({"max_bytes": 1.5}, TypeError, r"max_bytes must be a number of bytes .* got 1\.5"),
        ({"max_bytes": True}, TypeError, "max_bytes must be a number of bytes"),
        (
            {"progress": "yes"},
            TypeError,
            'progress must be True, "verdict", False, None or a callable',
        ),
        ({"progress": 1}, TypeError, 'progress must be True, "verdict", False, None or a callable'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
@every_way
def test_arguments(arguments: dict[str, Any], kind: type[Exception], words: str, way: Way) -> None:
    recording = RecordingStore(NUMBERS)
    objects: list[Any] = [opened(recording), samples.numbers(), []]
    for obj in objects:
        was = lazy(obj)
        recording.log.clear()
        with pytest.raises(kind, match=words):
            way(obj, **arguments)
        assert recording.log.requests == ()
        assert lazy(obj) == was


@pytest.mark.parametrize("name", ["load", "compute", "load_async", "compute_async"])
def test_calls_that_python_refuses(name: str) -> None:
    def function(*args: Any, **kwargs: Any) -> Any:
        result = getattr(aioxarray, name)(*args, **kwargs)
        return asyncio.run(result) if name.endswith("_async") else result

    with pytest.raises(TypeError, match="positional argument"):
        function(opened(NUMBERS), 8)
    with pytest.raises(TypeError, match="unexpected keyword argument 'retries'"):
        function(opened(NUMBERS), retries=3)


@every_way
@pytest.mark.parametrize("concurrency", [1, 7, 0, -1, np.int64(3)])
def test_any_integer_is_a_limit(concurrency: int, way: Way) -> None:
    got = way(opened(NUMBERS), concurrency=concurrency)
    xr.testing.assert_identical(got, samples.numbers())


@every_way
def test_a_timeout_that_is_not_reached(way: Way) -> None:
    for timeout in (None, 60, 60.0, math.inf):
        xr.testing.assert_identical(way(opened(NUMBERS), timeout=timeout), samples.numbers())


@every_way
def test_no_time_at_all(way: Way) -> None:
    ds = opened(NUMBERS)
    words = assert_refused(ds, Way("", True, lambda obj: way(obj, timeout=0)), TimeoutError)
    assert "timeout of 0 s" in words
    assert "bytes" in words
    xr.testing.assert_identical(way(ds), samples.numbers())


@every_way
def test_data_in_memory_needs_no_time(way: Way) -> None:
    xr.testing.assert_identical(way(samples.numbers(), timeout=0), samples.numbers())


# --- files and stores that are gone --------------------------------------------------------------


@every_way
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
def test_a_closed_file(engine: Any, tmp_path: Path, way: Way) -> None:
    ds = xr.Dataset({"first": ("x", np.arange(4.0)), "second": ("x", np.arange(4.0))})
    path = tmp_path / "a.nc"
    ds.to_netcdf(path, engine=engine)
    # The file is opened again when it is read: gone is what cannot be.
    with xr.open_dataset(path, engine=engine) as file:
        assert lazy(file)
    path.unlink()
    with pytest.raises(Exception) as plain:  # noqa: PT011 - which one is the backend's choice
        plainly_computed(file)
    words = assert_refused(file, way, (type(plain.value),))
    assert "while loading variable 'first'" in words or "while loading variable 'second'" in words


@every_way
def test_a_zip_file_that_is_gone(tmp_path: Path, way: Way) -> None:
    with ZipStore(tmp_path / "a.zip", mode="w") as store:
        samples.numbers().to_zarr(store)
    store = ZipStore(tmp_path / "a.zip", mode="r")
    ds = opened(store)
    # A closed one is opened again when it is read.
    store.close()
    (tmp_path / "a.zip").unlink()
    words = assert_refused(ds, way, FileNotFoundError)
    assert "a.zip" in words
    assert "while loading variable " in words


@pytest.mark.matrix(together=0)
@every_way
def test_a_server_that_is_gone(way: Way) -> None:
    with ObjectServer() as server:
        for key, data in contents(NUMBERS).items():
            server.put(f"a/{key}", data)
        ds = opened(f"{server.url}/a")
        url = server.url
    words = assert_refused(ds, way, OSError)
    assert url in words
    assert "while loading variable " in words


@every_way
def test_a_directory_that_is_gone_is_read_as_plain_xarray_reads_it(
    tmp_path: Path, way: Way
) -> None:
    """A missing chunk is the fill value, and a store without a directory misses all chunks."""
    samples.numbers().to_zarr(tmp_path / "a")
    datasets = [opened(str(tmp_path / "a")) for _ in range(2)]
    (tmp_path / "a").rename(tmp_path / "b")
    assert_same(way(datasets[0]), plainly_computed(datasets[1]))


# --- chunks that cannot be read ------------------------------------------------------------------

COMPRESSED = stored(
    samples.numbers(),
    encoding={"cube": {"chunks": (2, 4, 3), "compressors": [GzipCodec()]}},
)
SHARDED = stored(samples.numbers(), encoding={"cube": {"chunks": (1, 2, 3), "shards": (2, 4, 6)}})


@every_way
@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: b"", lambda data: b"nonsense" * 9],
    ids=["cut", "empty", "other bytes"],
)
def test_a_corrupt_chunk(damage: Callable[[bytes], bytes], way: Way) -> None:
    store = FaultyStore.corrupt(COMPRESSED, "cube/c/1/0/2", damage)
    words = assert_refused(opened(store), way, (EOFError, OSError, ValueError, zlib.error))
    assert "while loading variable 'cube'" in words
    assert "'cube/c/1/0/2'" in words
    assert printable(store) in words


@every_way
def test_a_chunk_of_another_size(way: Way) -> None:
    store = FaultyStore.corrupt(
        COMPRESSED, "cube/c/1/0/2", lambda data: gzip.compress(gzip.decompress(data)[:-8])
    )
    words = assert_refused(opened(store), way, ValueError)
    assert "while loading variable 'cube'" in words
    assert "'cube/c/1/0/2'" in words


@every_way
def test_a_corrupt_shard(way: Way) -> None:
    # What a byte range asks for: the index first, with its checksum.
    store = FaultyStore.corrupt(SHARDED, "cube/c/0/1/1", lambda data: data[::-1])
    words = assert_refused(opened(store), way, Exception)
    assert "while loading variable 'cube'" in words
    assert "'cube/c/0/1/1'" in words
    assert printable(store) in words


@every_way
def test_a_corrupt_chunk_of_a_tree_and_of_a_nest(way: Way) -> None:
    tree = stored(samples.tree())
    store = FaultyStore.corrupt(tree, "a/deep/both/*", lambda data: data[:3])
    words = assert_refused(opened_tree(store), way, Exception)
    assert "while loading variable 'both' of group '/a/deep'" in words
    assert "a/deep/both/c/" in words
    nest = [opened(NUMBERS), {"t": opened_tree(store)}]
    words = assert_refused(nest, way, Exception)
    assert "while loading variable 'both' of group '/a/deep' in obj[1]['t']" in words


@every_way
def test_a_failing_request(way: Way) -> None:
    store = FaultyStore(
        COMPRESSED, lambda index, request: PermissionError("denied"), keys="plane/c/*"
    )
    ds = opened(store)
    words = assert_refused(ds, way, PermissionError)
    # The store's own text is that of the cause.
    assert words.startswith("could not read 'plane/c/0/0' of ")
    assert "access denied" in words
    assert "while loading variable 'plane'" in words
    assert "'plane/c/0/0'" in words
    assert printable(store) in words
    # The parts that can be read still can.
    assert_same(way(ds[["cube"]]), opened(COMPRESSED)[["cube"]].load())


@every_way
def test_the_object_loads_once_the_store_is_well_again(way: Way) -> None:
    ds = opened(FaultyStore.kth(COMPRESSED, 3, keys="cube/c/*"))
    assert "injected failure" in assert_refused(ds, way, OSError)
    assert_same(way(ds), opened(COMPRESSED).load())


class RefusingCodec(BytesBytesCodec):
    """Passes bytes on, but for the types that it refuses."""

    is_fixed_size = True
    refused: ClassVar[set[str]] = set()

    @classmethod
    def from_dict(cls, data: Any) -> RefusingCodec:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "tests.refusing"}

    def compute_encoded_size(self, size: int, _: Any) -> int:
        return size

    async def _decode_single(self, chunk: Any, spec: Any) -> Any:
        name = str(spec.dtype.to_native_dtype())
        if name in self.refused:
            raise TypeError(f"the codec cannot decode {name}")
        return chunk

    async def _encode_single(self, chunk: Any, spec: Any) -> Any:
        return chunk


@every_way
def test_a_type_that_the_codec_refuses(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    register_codec("tests.refusing", RefusingCodec)
    store = MemoryStore()
    group = zarr.create_group(store)
    for name in ("float32", "int16"):
        array = group.create_array(
            name, shape=(4,), dtype=name, compressors=[RefusingCodec()], dimension_names=["x"]
        )
        array[:] = np.arange(4)
    ds = opened(store, consolidated=False)
    monkeypatch.setattr(RefusingCodec, "refused", {"int16"})
    words = assert_refused(ds, way, TypeError)
    assert words.startswith("the codec cannot decode int16")
    assert "while loading variable 'int16'" in words
    assert "'int16/c/0'" in words
    monkeypatch.setattr(RefusingCodec, "refused", set())
    assert way(ds)["int16"].values.tolist() == [0, 1, 2, 3]


@every_way
def test_an_error_of_decoding(way: Way) -> None:
    """Times are checked by their first and last values; one between them may be impossible."""
    days = {"units": "days since 2000-01-01"}
    good = stored(xr.Dataset({"t": ("x", np.arange(5), days)}))
    bad = contents(stored(xr.Dataset({"t": ("x", np.array([0, 1, 2**62, 3, 4]), days)})))
    store = FaultyStore.corrupt(good, "t/c/0", lambda _: bad["t/c/0"])
    ds = opened(store)
    with pytest.raises(Exception) as plain:  # noqa: PT011 - which one is xarray's choice
        plainly_computed(opened(store))
    words = assert_refused(ds, way, type(plain.value))
    assert words.startswith(str(plain.value))
    assert "while loading variable 't'" in words


@every_way
def test_an_error_of_dask(way: Way) -> None:
    import dask.array as da

    def fail(block: Any) -> Any:
        raise ZeroDivisionError("in a block")

    array = da.map_blocks(fail, da.zeros(4, chunks=2), dtype="f8", meta=np.empty(0))
    ds = opened(NUMBERS).assign(broken=("q", array))
    words = assert_refused(ds, way, ZeroDivisionError)
    assert words.startswith("in a block")
    assert "variable 'broken'" in words
