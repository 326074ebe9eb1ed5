"""Everything that can be opened: paths, URLs, stores and sessions of every library, files."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import icechunk
import obstore.store
import pytest
import xarray as xr
from zarr.storage import FsspecStore, LocalStore, ObjectStore, ZipStore

import aioxarray
from aioxarray.testing import ObjectServer
from tests import samples
from tests.opening.helpers import Way, every_way, own_ways, root
from tests.s3 import s3_server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Zarr store, a zip of it and a netCDF file, all of the same data."""
    folder = tmp_path_factory.mktemp("inputs")
    samples.numbers().to_zarr(folder / "a.zarr")
    with ZipStore(folder / "a.zip", mode="w") as store:
        samples.numbers().to_zarr(store)
    netcdf().to_netcdf(folder / "a.nc", engine="h5netcdf")
    return folder


def netcdf() -> xr.Dataset:
    return samples.numbers().drop_vars("complex")


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """Where the same is served over HTTP."""
    with ObjectServer(root=folder) as server:
        yield server.url


def check(way: Way, source: Any, **options: Any) -> None:
    """Check that ``way`` opens the sample at ``source``, and a loaded copy is the sample."""
    for name in ("open_dataset", "load_dataset"):
        with way(name, source, **options) as got:
            xr.testing.assert_identical(got.load(), samples.numbers())


@every_way
def test_paths(way: Way, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(way, folder / "a.zarr")
    check(way, str(folder / "a.zarr"))
    check(way, f"file://{folder / 'a.zarr'}", consolidated=True)
    monkeypatch.chdir(folder)
    check(way, "a.zarr")


@every_way
def test_stores_of_zarr(way: Way, folder: Path) -> None:
    check(way, LocalStore(folder / "a.zarr"), engine="zarr")
    with ZipStore(folder / "a.zip", mode="r") as store:
        check(way, store, engine="zarr")


@every_way
def test_stores_of_obstore(way: Way, folder: Path, url: str) -> None:
    http = obstore.store.HTTPStore.from_url(f"{url}/a.zarr", client_options={"allow_http": True})
    memory = obstore.store.MemoryStore()
    samples.numbers().to_zarr(ObjectStore(memory))
    local = obstore.store.LocalStore(folder / "a.zarr")
    for store in (http, memory, local):
        check(way, store, consolidated=True)
        check(way, ObjectStore(store, read_only=True), consolidated=True)


@every_way
def test_sessions_and_stores_of_icechunk(way: Way) -> None:
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    session = repository.writable_session("main")
    samples.numbers().to_zarr(session.store, consolidated=False)
    session.commit("numbers")
    reading = repository.readonly_session("main")
    check(way, reading)
    check(way, reading.store)


@every_way
def test_mappers_and_stores_of_fsspec(way: Way, folder: Path, url: str) -> None:
    check(way, fsspec.get_mapper(f"{url}/a.zarr"), consolidated=True)
    check(way, fsspec.get_mapper(str(folder / "a.zarr")), consolidated=True)
    check(way, FsspecStore.from_url(f"{url}/a.zarr", read_only=True), consolidated=True)


@every_way
def test_urls(way: Way, url: str) -> None:
    check(way, f"{url}/a.zarr", consolidated=True)


@own_ways
def test_a_url_of_netcdf4(way: Way, url: str) -> None:
    with way("open_dataset", f"{url}/a.nc", engine="h5netcdf") as got:
        xr.testing.assert_identical(got.load(), netcdf())


@pytest.fixture(scope="module")
def s3(folder: Path) -> Iterator[dict[str, Any]]:
    """How fsspec reaches a bucket ``opening`` of an S3 server that has the Zarr store."""
    with s3_server("opening") as (filesystem, options):
        filesystem.put(str(folder / "a.zarr"), "opening/a.zarr", recursive=True)
        yield options


@pytest.mark.matrix(together=0)
@every_way
def test_credentials_and_endpoint(way: Way, s3: dict[str, Any]) -> None:
    check(way, "s3://opening/a.zarr", storage_options=s3)
    with pytest.raises(FileNotFoundError):
        way("open_dataset", "s3://opening/none.zarr", engine="zarr", storage_options=s3)


@pytest.mark.matrix(together=1)
@every_way
@pytest.mark.parametrize("function", ["open_datatree", "open_groups"])
def test_credentials_for_trees(way: Way, function: str, s3: dict[str, Any]) -> None:
    url = "s3://opening/a.zarr"
    got = way(function, url, engine="zarr", storage_options=s3, consolidated=True)
    xr.testing.assert_identical(root(got).load(), samples.numbers())


@own_ways
def test_credentials_for_open_zarr(way: Way, s3: dict[str, Any]) -> None:
    got = way("open_zarr", "s3://opening/a.zarr", storage_options=s3, consolidated=True)
    xr.testing.assert_identical(got.load(), samples.numbers())


@own_ways
def test_a_url_that_fsspec_has_nothing_for_is_obstores(
    way: Way, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where s3fs is not installed. By this scheme, which fsspec has not met here: it would
    # remember the filesystem.
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3["client_kwargs"]["endpoint_url"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3["secret"])
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    with way("open_dataset", "s3a://opening/a.zarr", engine="zarr", consolidated=True) as got:
        xr.testing.assert_identical(got.load(), samples.numbers())
    with pytest.raises(FileNotFoundError):
        way("open_dataset", "s3a://opening/none.zarr", engine="zarr")
    # Its options are fsspec's, so that fsspec says what is missing.
    with pytest.raises(ImportError, match="s3fs"):
        way("open_dataset", "s3a://opening/a.zarr", engine="zarr", storage_options=s3)


def test_a_store_of_obstore_with_credentials(s3: dict[str, Any]) -> None:
    store = obstore.store.S3Store(
        "opening",
        prefix="a.zarr",
        endpoint=s3["client_kwargs"]["endpoint_url"],
        access_key_id=s3["key"],
        secret_access_key=s3["secret"],
        region="us-east-1",
        virtual_hosted_style_request=False,
        client_options={"allow_http": True},
    )
    xr.testing.assert_identical(aioxarray.load_dataset(store), samples.numbers())


@every_way
def test_open_files(way: Way, folder: Path) -> None:
    with (folder / "a.nc").open("rb") as file:
        with way("open_dataset", file) as got:
            xr.testing.assert_identical(got.load(), netcdf())
    with way("open_dataset", io.BytesIO((folder / "a.nc").read_bytes())) as got:
        xr.testing.assert_identical(got.load(), netcdf())


@own_ways
def test_open_files_of_fsspec(way: Way, url: str) -> None:
    with fsspec.open(f"{url}/a.nc") as file:
        with way("open_dataset", file, engine="h5netcdf") as got:
            xr.testing.assert_identical(got.load(), netcdf())


@every_way
@pytest.mark.parametrize("function", ["open_datatree", "open_groups", "load_datatree"])
def test_trees_at_paths_and_urls(way: Way, function: str, folder: Path, url: str) -> None:
    for source in (folder / "a.zarr", f"{url}/a.zarr"):
        got = way(function, source, engine="zarr", consolidated=True)
        xr.testing.assert_identical(root(got).load(), samples.numbers())
        for each in got.values() if isinstance(got, dict) else [got]:
            each.close()
