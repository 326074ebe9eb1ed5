"""``aioxarray copy`` of whole chunks: their bytes are moved, with two requests for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.codecs import Crc32cCodec, ZstdCodec

from aioxarray.testing import ObjectServer
from tests.cli.helpers import Commands

# More than 256 KiB: smaller variables are loaded as a whole.
SHAPE = (20, 64, 512)
CHUNKS = (5, 64, 128)
SHARDS = (10, 64, 256)

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "v2": (2, {"chunks": CHUNKS}),
    "v3": (3, {"chunks": CHUNKS}),
    "shards": (3, {"chunks": CHUNKS, "shards": SHARDS}),
    "packed": (3, {"chunks": CHUNKS, "dtype": "i2", "scale_factor": 0.01, "_FillValue": -1}),
    "long chunks": (3, {"chunks": (50, 100, 128)}),
}


def written(path: Path, layout: str) -> xr.Dataset:
    """Write a field with a hole to ``path``; chunks of the hole are not stored."""
    values = np.random.default_rng(1).normal(size=SHAPE).astype("f4")
    values[:10, :, :256] = np.nan
    ds = xr.Dataset({"a": (("t", "y", "x"), values)}, {"t": np.arange(SHAPE[0])})
    form, encoding = LAYOUTS[layout]
    ds.to_zarr(path, zarr_format=form, encoding={"a": encoding})
    with xr.open_dataset(path, engine="zarr") as stored:
        return stored.load()


def files(folder: Path) -> dict[str, bytes]:
    """Return the stored chunks of the variable."""
    found = (each for each in (folder / "a").rglob("*") if each.is_file())
    documents = ("zarr.json", ".zarray", ".zattrs")
    return {
        each.relative_to(folder).as_posix(): each.read_bytes()
        for each in found
        if each.name not in documents
    }


@pytest.fixture
def source(tmp_path: Path) -> Iterator[tuple[Path, ObjectServer]]:
    """A folder for data, and a server of it."""
    folder = tmp_path / "data"
    folder.mkdir()
    with ObjectServer(root=folder) as server:
        yield folder, server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    """A server of an empty bucket. Journals of copies to it are in ``tmp_path``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with ObjectServer() as server:
        yield server


def options(bucket: ObjectServer) -> Mapping[str, Any]:
    """Return the options of a client of the bucket."""
    return {"key": "any", "secret": "any", "client_kwargs": {"endpoint_url": bucket.url}}


def to(bucket: ObjectServer) -> tuple[str, ...]:
    """Return the arguments of a copy to the bucket."""
    return ("s3://bucket/copy", "--dest-options", json.dumps(options(bucket)))


def opened(place: Path | ObjectServer) -> xr.Dataset:
    """Open a copy as plain xarray does."""
    where: dict[str, Any] = {"filename_or_obj": place}
    if isinstance(place, ObjectServer):
        where = {"filename_or_obj": "s3://bucket/copy", "storage_options": options(place)}
    with xr.open_dataset(**where, engine="zarr") as ds:
        return ds.load()


def form_of(layout: str) -> tuple[str, str]:
    return ("--format", f"zarr{LAYOUTS[layout][0]}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_chunk_is_read_and_written_once(
    source: tuple[Path, ObjectServer],
    bucket: ObjectServer,
    run: Commands,
    layout: str,
) -> None:
    folder, server = source
    expected = written(folder / "s", layout)
    copy = ("copy", f"{server.url}/s", *to(bucket), *form_of(layout))
    plan = run.succeed(*copy, "--dry-run", "--json").json["variables"]
    assert plan == {
        "a": {"decoded": False, "reason": None},
        "t": {"decoded": True, "reason": "it is encoded as a whole"},
    }
    run.succeed(*copy)
    xr.testing.assert_identical(opened(bucket), expected)
    stored = files(folder / "s")
    puts = [each.key for each in bucket.log.requests if each.method == "PUT"]
    chunks = sorted(key for key in puts if key.removeprefix("bucket/copy/") in stored)
    assert chunks == sorted(f"bucket/copy/{key}" for key in stored)
    for key, content in stored.items():
        assert bucket.data[f"bucket/copy/{key}"] == content
        assert server.log.count("GET", f"s/{key}") == 1


@pytest.mark.parametrize("layout", ["v2", "v3", "shards"])
def test_a_selection_of_whole_chunks_on_a_disk(
    source: tuple[Path, ObjectServer], tmp_path: Path, run: Commands, layout: str
) -> None:
    folder, _ = source
    expected = written(folder / "s", layout)
    copy: tuple[object, ...] = ("copy", folder / "s", tmp_path / "copy", *form_of(layout))
    copy += ("--isel", "t=10:", "--isel", "x=256:512")
    assert "a: chunks as they are stored" in run.succeed(*copy, "--dry-run").output
    run.succeed(*copy)
    part = expected.isel(t=slice(10, None), x=slice(256, 512))
    xr.testing.assert_identical(opened(tmp_path / "copy"), part)
    assert set(files(tmp_path / "copy").values()) <= set(files(folder / "s").values())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--isel", "t=1:20"], "the selection has parts of chunks, which are 5 x 64 x 128"),
        (["--isel", "t=::5"], "the selection has parts of chunks"),
        (["--isel", "t=0"], "single positions are selected"),
        (["--chunks", "t=4"], "the copy has other chunks"),
        (["--compress", "gzip"], "the copy has other codecs"),
        (["--format", "zarr2"], "the copy has Zarr format 2, the source 3"),
    ],
)
def test_other_chunks_are_decoded(
    source: tuple[Path, ObjectServer],
    tmp_path: Path,
    run: Commands,
    arguments: list[str],
    reason: str,
) -> None:
    folder, _ = source
    ds = xr.Dataset({"a": (("t", "y", "x"), np.ones((20, 64, 640), "f8"))})
    ds.to_zarr(folder / "s", encoding={"a": {"chunks": CHUNKS}})
    copy = ("copy", folder / "s", tmp_path / "copy", *arguments)
    (told,) = run.succeed(*copy, "--dry-run", "--json").json["variables"].values()
    assert told["decoded"] is True
    assert told["reason"].startswith(reason)
    run.succeed(*copy)


def test_a_copy_of_chunks_goes_on_where_it_failed(
    source: tuple[Path, ObjectServer], bucket: ObjectServer, run: Commands
) -> None:
    folder, server = source
    ds = xr.Dataset({"a": (("t", "x"), np.random.default_rng(2).normal(size=(20, 1 << 18)))})
    # Each chunk is a block.
    ds.to_zarr(folder / "s", encoding={"a": {"chunks": (1, 1 << 18)}})
    copy = ("copy", f"{server.url}/s", *to(bucket), "--concurrency", "2")
    bucket.fail("bucket/copy/a/c/15/*", 403, method="PUT")
    assert run(*copy).exit_code == 1
    bucket.mend()
    before = len(server.log.requests)
    blocks = run.succeed(*copy, "--json").json["resumed_blocks"]
    assert blocks >= 5
    # A request that the failure has cancelled may arrive late: its chunk is read again, too.
    again = {each.key for each in server.log.requests[before:] if "/a/c/" in each.key}
    assert len(again) == 20 - blocks
    xr.testing.assert_identical(opened(bucket), ds)


def test_a_chunk_that_is_refused_for_a_moment_is_requested_again(
    source: tuple[Path, ObjectServer], bucket: ObjectServer, run: Commands
) -> None:
    folder, server = source
    expected = written(folder / "s", "v3")
    server.fail("s/a/c/3/0/3", 503, times=1)
    bucket.fail("bucket/copy/a/c/2/0/1", 503, times=1, method="PUT")
    run.succeed("copy", f"{server.url}/s", *to(bucket))
    xr.testing.assert_identical(opened(bucket), expected)


def test_a_chunk_that_does_not_match_its_checksum_is_not_copied(
    source: tuple[Path, ObjectServer], tmp_path: Path, run: Commands
) -> None:
    folder, server = source
    ds = xr.Dataset({"a": (("t", "y", "x"), np.random.default_rng(1).normal(size=SHAPE))})
    codecs = [ZstdCodec(), Crc32cCodec()]
    ds.to_zarr(folder / "s", encoding={"a": {"chunks": CHUNKS, "compressors": codecs}})
    chunk = folder / "s/a/c/1/0/1"
    content = bytearray(chunk.read_bytes())
    content[100] ^= 1
    chunk.write_bytes(content)
    for place in (f"{server.url}/s", folder / "s"):
        ended = run("copy", place, tmp_path / "copy", "--overwrite")
        assert ended.exit_code == 1
        assert "checksum" in ended.errors
        assert not (tmp_path / "copy").exists()
