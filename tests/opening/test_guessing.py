"""Which engine opens an input whose engine was not named, and how another is named."""

from __future__ import annotations

import gc
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import xarray as xr
from zarr.storage import MemoryStore, ZipStore

import aioxarray
from aioxarray.testing import ObjectServer
from tests import samples
from tests.opening.helpers import ENGINE, Way, every_way, own_ways, root
from tests.s3 import s3_server
from tests.samples import contents, stored

NUMBERS = contents(stored(samples.numbers()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the sample as a zip file, as references of kerchunk's and as HDF5."""
    folder = tmp_path_factory.mktemp("guessing")
    with ZipStore(folder / "numbers.zip", mode="w") as store:
        samples.numbers().to_zarr(store)
    netcdf().to_netcdf(folder / "numbers.nc", engine="h5netcdf")
    (folder / "numbers.nc").rename(folder / "numbers.h5")
    refer(folder)
    return folder


def netcdf() -> xr.Dataset:
    return samples.numbers().drop_vars("complex")


def refer(folder: Path) -> None:
    """Write references to all chunks of the sample, which lie in one file with other bytes."""
    refs: dict[str, Any] = {}
    packed = bytearray(b"a head")
    for key, value in contents(stored(samples.numbers(), 2)).items():
        if key.rpartition("/")[2].startswith("."):
            refs[key] = value.decode()
        else:
            refs[key] = [str(folder / "packed"), len(packed), len(value)]
            packed += value
    (folder / "packed").write_bytes(packed)
    (folder / "refs.json").write_text(json.dumps({"version": 1, "refs": refs}))


@pytest.fixture(scope="module")
def memory(folder: Path) -> Iterator[None]:
    """Fill the memory of fsspec."""
    filesystem = fsspec.filesystem("memory")
    for key, value in NUMBERS.items():
        filesystem.pipe(f"/guessing/numbers/{key}", value)
    filesystem.pipe("/guessing/numbers.h5", (folder / "numbers.h5").read_bytes())
    filesystem.pipe("/guessing/numbers.nc", (folder / "numbers.h5").read_bytes())
    yield
    filesystem.rm("/guessing", recursive=True)


def zarr_urls(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return URLs of the sample that do not say that it is Zarr, and their options."""
    refs = {"fo": str(folder / "refs.json"), "remote_protocol": "file"}
    return {
        "references": ("reference://", {"storage_options": refs}),
        "chained references": (f"reference::file://{folder / 'refs.json'}", {}),
        "references without a scheme": (f"reference::{folder / 'refs.json'}", {}),
        "memory": ("memory://guessing/numbers", {}),
        "zip": (f"zip://::{folder / 'numbers.zip'}", {}),
        "zip of a URL": (f"zip://::file://{folder / 'numbers.zip'}", {}),
        "cached": ("simplecache::memory://guessing/numbers", {}),
    }


ZARR_URLS = list(zarr_urls(Path()))


@every_way
@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ZARR_URLS)
def test_urls_of_fsspec_protocols_are_zarr(name: str, folder: Path, way: Way) -> None:
    url, options = zarr_urls(folder)[name]
    xr.testing.assert_identical(way("load_dataset", url, **options), samples.numbers())
    tree = way("open_datatree", url, **options)
    xr.testing.assert_identical(root(tree).load(), samples.numbers())
    with xr.open_dataset(url, engine="zarr", **options) as plain:
        xr.testing.assert_identical(way("open_dataset", url, **options), plain)


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ZARR_URLS)
def test_the_inner_engine_can_be_named(name: str, folder: Path) -> None:
    url, options = zarr_urls(folder)[name]
    given = {"engine": "aio", **options}
    named = {"inner_engine": "zarr"}
    function: Any
    for function in (xr.open_dataset, aioxarray.open_dataset):
        xr.testing.assert_identical(function(url, **given, **named).load(), samples.numbers())
        got = function(url, **given, backend_kwargs=named)
        xr.testing.assert_identical(got.load(), samples.numbers())
    for function in (xr.open_datatree, aioxarray.open_datatree, xr.open_groups):
        xr.testing.assert_identical(root(function(url, **given, **named)).load(), samples.numbers())
    for function in (xr.open_mfdataset, aioxarray.open_mfdataset):
        with function([url], combine="nested", **given, **named) as got:
            xr.testing.assert_identical(got.load(), samples.numbers())


def test_the_inner_engine_is_used(folder: Path) -> None:
    """An engine that cannot open the file is not replaced by one that can."""
    for options in ({"inner_engine": "scipy"}, {"backend_kwargs": {"inner_engine": "scipy"}}):
        for function in (xr.open_dataset, aioxarray.open_dataset):
            with pytest.raises(TypeError) as caught:
                function(folder / "numbers.h5", engine="aio", **options)
            (note,) = caught.value.__notes__
            assert note.endswith("numbers.h5' with engine 'scipy'")
    named = xr.backends.H5netcdfBackendEntrypoint
    for function in (xr.open_dataset, aioxarray.open_dataset):
        with function(folder / "numbers.h5", engine="aio", inner_engine=named) as got:
            xr.testing.assert_identical(got.load(), netcdf())


def test_the_inner_engine_is_another() -> None:
    for function in (xr.open_dataset, aioxarray.open_dataset):
        with pytest.raises(ValueError, match="inner_engine names the engine that 'aio' opens with"):
            function(MemoryStore(), engine="aio", inner_engine="aio")
        with pytest.raises(ValueError, match="unrecognized engine 'nonsense'"):
            function(MemoryStore(), engine="aio", inner_engine="nonsense")
    with pytest.raises(TypeError, match="unexpected keyword argument 'inner_engine'"):
        aioxarray.open_dataset(MemoryStore(), engine="zarr", inner_engine="zarr")


@every_way
@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name", ["numbers.h5", "numbers.nc"])
def test_a_file_that_only_fsspec_reaches_is_h5netcdfs(name: str, way: Way) -> None:
    with way("open_dataset", f"memory://guessing/{name}") as got:
        xr.testing.assert_identical(got.load(), netcdf())


@every_way
@pytest.mark.usefixtures("memory")
def test_a_file_in_a_cache_of_fsspecs_is_h5netcdfs(way: Way) -> None:
    with warnings.catch_warnings():
        # xarray leaves the file, which fsspec opened for it, to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        got = way("load_dataset", "simplecache::memory://guessing/numbers.nc")
        xr.testing.assert_identical(got, netcdf())
        gc.collect()


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[dict[str, Any]]:
    """How fsspec reaches a bucket ``guessing`` of an S3 server that has the HDF5 file."""
    with s3_server("guessing") as (filesystem, options):
        filesystem.put(str(folder / "numbers.h5"), "guessing/numbers.nc")
        yield options


@every_way
def test_a_file_on_s3_is_h5netcdfs(way: Way, s3: dict[str, Any]) -> None:
    with way("open_dataset", "s3://guessing/numbers.nc", storage_options=s3) as got:
        xr.testing.assert_identical(got.load(), netcdf())


@every_way
def test_a_web_server_is_asked(way: Way) -> None:
    with ObjectServer() as server:
        for key, value in NUMBERS.items():
            server.put(f"numbers/{key}", value)
        xr.testing.assert_identical(
            way("load_dataset", f"{server.url}/numbers", consolidated=True), samples.numbers()
        )
        server.log.clear()
        with pytest.raises(OSError) as plain:  # noqa: PT011 - its type is compared
            xr.open_dataset(f"{server.url}/none")
        requests = len(server.log.requests)
        server.log.clear()
        with pytest.raises(OSError) as caught:  # noqa: PT011
            way("open_dataset", f"{server.url}/none")
        # zarr.json, .zgroup and .zmetadata; then netCDF-C asks as it does.
        assert len(server.log.requests) == requests + 3
    assert type(caught.value) is type(plain.value)
    said_by = "inner_engine" if way is ENGINE else "engine"
    assert f"with engine 'netcdf4', which was guessed: {said_by}= names" in "".join(
        caught.value.__notes__
    )


@every_way
def test_a_page_for_everything_is_no_zarr(way: Way) -> None:
    with ObjectServer() as server:
        for key in ("zarr.json", ".zgroup", ".zmetadata"):
            server.put(f"page/{key}", b"<!DOCTYPE html>")
        with pytest.raises(OSError) as caught:  # noqa: PT011 - netCDF-C's
            way("open_dataset", f"{server.url}/page")
    assert "with engine 'netcdf4'" in "".join(caught.value.__notes__)


@every_way
def test_a_group_of_what_has_no_root(way: Way) -> None:
    with ObjectServer() as server:
        for key, value in NUMBERS.items():
            server.put(f"rootless/deep/{key}", value)
        got = way("load_dataset", f"{server.url}/rootless", group="deep", consolidated=False)
    xr.testing.assert_identical(got, samples.numbers())


@own_ways
@pytest.mark.parametrize("source", [None, 42, ["a.zarr"]])
def test_a_source_that_no_engine_opens_raises_xarrays_error(source: Any, way: Way) -> None:
    with pytest.raises(ValueError, match="did not find a match in any of xarray's currently"):
        way("open_dataset", source)


@every_way
def test_files_by_url(way: Way, folder: Path) -> None:
    url = f"file://{folder / 'numbers.h5'}"
    with way("open_dataset", url) as got:
        xr.testing.assert_identical(got.load(), netcdf())
