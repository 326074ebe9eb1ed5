"""Errors name what the user gave, what was tried, and the way out; their types are xarray's."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore, WrapperStore

import aioxarray
from aioxarray._zarr.stores.printable import printable
from aioxarray.testing import ObjectServer
from tests import samples
from tests.opening.helpers import ENGINE, Way, every_way, own_ways
from tests.samples import contents, stored
from tests.test_bad_input import all_of
from tests.without import raised_without


def sample() -> xr.Dataset:
    return xr.Dataset({"v": ("x", np.arange(3.0))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a.nc and a.zarr."""
    folder = tmp_path_factory.mktemp("messages")
    sample().to_netcdf(folder / "a.nc", engine="netcdf4")
    sample().to_zarr(folder / "a.zarr", consolidated=False)
    return folder


# --- packages that are not installed -------------------------------------------------------------


def test_without_netcdf_libraries(folder: Path) -> None:
    raised = raised_without(
        ["netCDF4", "h5netcdf", "h5py", "scipy"],
        {
            "guessed": "aioxarray.open_dataset('a.nc')",
            "engine": "xr.open_dataset('a.nc', engine='aio')",
            "many": "aioxarray.open_mfdataset(['a.nc'])",
            "named": "aioxarray.open_dataset('a.nc', engine='netcdf4')",
            "saved": "aioxarray.to_netcdf(ds, 'b.nc')",
            "saved by": "aioxarray.to_netcdf(ds, 'b.nc', engine='h5netcdf')",
            "plain": "xr.open_dataset('a.nc')",
            "plain named": "xr.open_dataset('a.nc', engine='netcdf4')",
            "plain saved": "ds.to_netcdf('b.nc')",
            "absent": "aioxarray.open_dataset('none.nc')",
            "plain absent": "xr.open_dataset('none.nc')",
        },
        folder,
    )
    for name in ("guessed", "engine", "many"):
        assert raised[name].kinds == raised["plain"].kinds
        assert raised[name].text == raised["plain"].text
        assert "a.nc'" in raised[name].notes[0]
        assert "none of netCDF4, h5netcdf is installed" in raised[name].notes[1]
        assert "pip install 'aioxarray[netcdf]'" in raised[name].notes[1]
    assert raised["named"].kinds == raised["plain named"].kinds
    assert raised["named"].notes == [
        "while opening 'a.nc' with engine 'netcdf4'",
        "netCDF4 is not installed: pip install 'aioxarray[netcdf]'",
    ]
    assert raised["saved"].kinds == raised["plain saved"].kinds
    assert "pip install 'aioxarray[netcdf]'" in raised["saved"].text
    assert raised["saved by"].notes == [
        "while saving to 'b.nc'",
        "h5netcdf is not installed: pip install 'aioxarray[netcdf]'",
    ]
    # What is not there needs no package.
    assert raised["absent"].kinds == raised["plain absent"].kinds
    assert "install" not in "".join(raised["absent"].notes)


@pytest.mark.matrix(together=0)
# zarr 3.4 imports upath, which needs fsspec, where it is installed.
@pytest.mark.parametrize("also", [[], ["fsspec", "upath"]], ids=["", "without fsspec"])
def test_without_clients_of_object_stores(also: list[str], folder: Path) -> None:
    opening = {
        "s3": "aioxarray.open_dataset('s3://bucket/a.zarr')",
        "no suffix": "aioxarray.open_dataset('s3://bucket/a')",
        "engine": "xr.open_dataset('s3://bucket/a', engine='aio')",
        "gs": "aioxarray.open_dataset('gs://bucket/a.zarr')",
        "http": "aioxarray.open_dataset('http://127.0.0.1:9/a.zarr')",
        "netcdf": "aioxarray.open_dataset('http://127.0.0.1:9/a.nc', engine='h5netcdf')",
        "many": "aioxarray.open_mfdataset('s3://bucket/*.zarr', engine='zarr')",
        "tree": "aioxarray.load_datatree('s3://bucket/a.zarr')",
        "saved": "aioxarray.to_zarr(ds, 's3://bucket/a.zarr')",
    }
    raised = raised_without(["s3fs", "gcsfs", "aiohttp", "obstore", *also], opening, folder)
    assert set(raised) == set(opening)
    for name, error in raised.items():
        assert "ImportError" in error.kinds, name
        assert any("pip install 'aioxarray[remote]'" in note for note in error.notes), name
        assert "://" in error.notes[0], name


@pytest.mark.slow
def test_options_for_a_client_need_that_client(folder: Path) -> None:
    call = "aioxarray.open_dataset('gs://b/a.zarr', storage_options={'token': 'anon'})"
    (error,) = raised_without(["gcsfs"], {"gs": call}, folder).values()
    assert error.notes[-1] == "gcsfs is not installed: pip install gcsfs"


@pytest.mark.slow
def test_without_dask(folder: Path) -> None:
    raised = raised_without(
        ["dask", "distributed"],
        {
            "zarr": "aioxarray.open_dataset('a.zarr', chunks={}, consolidated=False)",
            "netcdf": "aioxarray.load_dataset('a.nc', chunks={})",
            "groups": "aioxarray.open_groups('a.nc', chunks={})",
            "many": "aioxarray.open_mfdataset(['a.nc'])",
            "saved": "aioxarray.to_netcdf(ds, 'b.nc', compute=False)",
            "zarr saved": "aioxarray.to_zarr(ds, {}, compute=False)",
        },
        folder,
    )
    assert len(raised) == 6
    for name, error in raised.items():
        assert "ImportError" in error.kinds, name
        assert "dask is not installed: pip install 'aioxarray[dask]'" in error.notes, name


# --- arguments that are misspelled ---------------------------------------------------------------

# What the user calls, with an argument that is nearly right, which is not ``concurrency``.
MISSPELLED: dict[str, tuple[Callable[[Path, dict[str, Any]], Any], str]] = {
    "load": (lambda _, given: aioxarray.load(sample(), **given), "concurrency"),
    "compute": (lambda _, given: aioxarray.compute(sample(), **given), "concurrency"),
    "to_zarr": (lambda _, given: aioxarray.to_zarr(sample(), {}, **given), "encoding"),
    "to_netcdf": (lambda at, given: aioxarray.to_netcdf(sample(), at / "b.nc", **given), "engine"),
}


def opening(name: str) -> Callable[[Path, dict[str, Any]], Any]:
    return lambda folder, given: getattr(aioxarray, name)(folder / "a.nc", **given)


for _name in ("open_dataset", "open_dataarray", "open_datatree", "open_groups", "open_mfdataset"):
    MISSPELLED[_name] = (opening(_name), "chunks")
for _name in ("load_dataset", "load_dataarray", "load_datatree"):
    MISSPELLED[_name] = (opening(_name), "decode_times")


@pytest.mark.parametrize("function", MISSPELLED)
def test_a_misspelled_argument_is_blamed_on_the_function_that_was_called(
    function: str, folder: Path
) -> None:
    call, right = MISSPELLED[function]
    wrong = right[:-2] + right[-1]
    with pytest.raises(TypeError) as caught:
        call(folder, {wrong: None})
    assert str(caught.value).startswith(
        f"{function}() got an unexpected keyword argument {wrong!r}"
    )
    assert str(caught.value).endswith(f"; did you mean {right!r}?")


@pytest.mark.parametrize("name", ["load", "compute", "to_zarr", "to_netcdf"])
@pytest.mark.parametrize("suffix", ["", "_async"])
def test_a_method_is_blamed_as_it_was_called(name: str, suffix: str) -> None:
    target = [] if name in ("load", "compute") else ["unused"]

    async def main() -> None:
        result = getattr(sample().aio, name + suffix)(*target, concurency=3)
        if suffix:
            await result

    with pytest.raises(TypeError) as caught:
        asyncio.run(main())
    words = str(caught.value)
    # A file's writer has arguments of its own, which the coroutine looks at.
    called = [name] if name == "to_netcdf" else [name + suffix]
    assert any(f"{each}() got an unexpected keyword argument" in words for each in called)


def test_too_few_and_too_many_arguments() -> None:
    function: Any = aioxarray.load
    with pytest.raises(TypeError, match=r"^load\(\) missing a required argument: 'obj'"):
        function()
    with pytest.raises(TypeError, match=r"^load\(\) too many positional arguments"):
        function(sample(), 3)


def test_a_type_error_of_what_is_called_stays_as_it_is() -> None:
    with pytest.raises(TypeError, match=r"^obj is of type int"):
        aioxarray.load(42)  # type: ignore[type-var]


@own_ways
def test_an_option_of_another_engine(way: Way, folder: Path) -> None:
    with pytest.raises(TypeError) as caught:
        way("open_dataset", folder / "a.nc", storage_options={"anon": True})
    words = all_of(caught.value)
    assert "'storage_options' for engine 'netcdf4'" in words
    assert f"while opening {str(folder / 'a.nc')!r} with engine 'netcdf4'" in words
    assert "engine= names another" in words


# --- what is not there ---------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("function", ["open_dataset", "open_datatree", "open_groups"])
def test_missing_sources_are_named_as_the_user_named_them(way: Way, function: str) -> None:
    with ObjectServer() as server:
        url = f"{server.url}/none.zarr"
        with pytest.raises(FileNotFoundError) as caught:
            way(function, url)
        assert f"No group found in store '{url}' at path ''" in str(caught.value)
        note = f"while opening '{url}' with engine 'zarr', which was guessed: "
        said_by = "inner_engine" if way is ENGINE else "engine"
        assert caught.value.__notes__ == [f"{note}{said_by}= names another"]


@every_way
def test_no_name_of_a_wrapper_is_shown(way: Way) -> None:
    class Wrapped(WrapperStore[MemoryStore]):
        pass

    store = Wrapped(MemoryStore())
    with pytest.raises(FileNotFoundError) as caught:
        way("open_dataset", store, consolidated=False)
    words = all_of(caught.value)
    assert words.count(printable(store)) == 2
    for name in ("Prefetched", "wrapping-", "Wrapped", "Wrapper"):
        assert name not in words


@every_way
def test_a_group_that_is_not_there(way: Way) -> None:
    store = stored(samples.tree(), consolidated=False)
    with pytest.raises(FileNotFoundError) as caught:
        way("open_dataset", store, group="a/none", consolidated=False)
    assert f"while opening group 'a/none' of '{store}' with engine 'zarr'" in all_of(caught.value)


def test_a_region_of_what_is_not_there_names_the_store() -> None:
    store = MemoryStore()
    with pytest.raises(FileNotFoundError) as caught:
        aioxarray.to_zarr(sample(), store, region={"x": slice(0, 3)})
    assert f"No group found in store '{store}'" in str(caught.value)
    assert f"while saving to '{store}'" in all_of(caught.value)


@own_ways
def test_one_of_many_files(way: Way, folder: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        way("open_mfdataset", [folder / "a.nc", folder / "none.nc"])
    assert f"while opening {str(folder / 'none.nc')!r} with" in all_of(caught.value)


# --- metadata that cannot be read ----------------------------------------------------------------

DAMAGE = {
    "not text": (b"\x80\x81", "no JSON document"),
    "cut": (b'{"zarr_format": 3, ', "no JSON document"),
    "a page": (b"<!DOCTYPE html><html>log in</html>", "an HTML page"),
}


@every_way
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("key", ["zarr.json", "x/zarr.json"])
def test_metadata_of_a_server_that_is_none(damage: str, key: str, way: Way) -> None:
    data, kind = DAMAGE[damage]
    objects = contents(stored(samples.numbers(), consolidated=False))
    with ObjectServer() as server:
        for name, value in {**objects, key: data}.items():
            server.put(f"a.zarr/{name}", value)
        url = f"{server.url}/a.zarr"
        with pytest.raises(ValueError) as plain:  # noqa: PT011 - its type is compared
            xr.open_dataset(url, consolidated=False)
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            way("open_dataset", url, consolidated=False)
    assert type(caught.value) is type(plain.value)
    assert f"{key!r} holds {kind}" in caught.value.__notes__
    assert f"while opening '{url}'" in all_of(caught.value)


# --- files that cannot be written ----------------------------------------------------------------


def no_folder(folder: Path) -> Path:
    return folder / "none" / "b.nc"


def file_for_a_folder(folder: Path) -> Path:
    (folder / "b").write_bytes(b"")
    return folder / "b" / "b.nc"


def folder_for_a_file(folder: Path) -> Path:
    (folder / "b.nc").mkdir()
    return folder / "b.nc"


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
@pytest.mark.parametrize("place", [no_folder, file_for_a_folder, folder_for_a_file])
def test_a_file_that_cannot_be_written_is_named_as_the_user_named_it(
    place: Callable[[Path], Path], engine: Any, tmp_path: Path
) -> None:
    path = place(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OSError) as plain:  # noqa: PT011 - its type is compared
        sample().to_netcdf(path, engine=engine)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        aioxarray.to_netcdf(sample(), path, engine=engine)
    assert type(caught.value) is type(plain.value)
    assert str(caught.value) == str(plain.value)
    assert caught.value.__notes__ == [f"while saving to {str(path)!r}"]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("engine", ["netcdf4", "h5netcdf", "scipy"])
def test_a_file_in_a_folder_that_is_read_only(engine: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    sample().to_netcdf(path, engine=engine)
    tmp_path.chmod(0o500)
    try:
        aioxarray.to_netcdf(sample() + 1, path, engine=engine)
        with pytest.raises(PermissionError) as caught:
            aioxarray.to_netcdf(sample(), tmp_path / "b.nc", engine=engine)
    finally:
        tmp_path.chmod(0o700)
    assert "b.nc" in str(caught.value)
    with xr.open_dataset(path, engine=engine) as found:
        xr.testing.assert_equal(found, sample() + 1)


@pytest.mark.parametrize("engine", [None, "netcdf4", "h5netcdf"])
def test_netcdf_is_not_written_to_urls(engine: Any) -> None:
    kind = TypeError if engine == "h5netcdf" else OSError
    with pytest.raises(kind) as caught:
        aioxarray.to_netcdf(sample(), "memory://a.nc", engine=engine)
    words = all_of(caught.value)
    assert "to_netcdf writes local files: write one and copy it, or save with to_zarr" in words
    assert "while saving to 'memory://a.nc'" in words


def test_a_misspelled_argument_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    ds = xr.open_zarr(stored(sample()), chunks=None)
    told: list[int] = []
    with pytest.raises(TypeError, match="'engin'"):
        aioxarray.to_netcdf(
            ds, tmp_path / "a.nc", engin="scipy", progress=lambda done, total: told.append(done)
        )
    assert told == []
    assert list(tmp_path.iterdir()) == []
