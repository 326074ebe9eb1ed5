"""``aioxarray copy``: what it copies is what xarray selects, whatever interrupts it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from aioxarray._copying import journal
from aioxarray.testing import ObjectServer
from tests.cli.helpers import Commands, environment, grid, process
from tests.concurrency import clients

# The chunks of the large source are as large as the blocks of a save: each is a block.
BLOCKS = 20
SHAPE = (4, 512, 1024)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same grid in several formats, and a large one."""
    folder = tmp_path_factory.mktemp("data")
    ds = grid()
    encoding = {"t2m": {"chunks": (5, 10, 18), "shards": (10, 20, 36)}}
    ds.to_zarr(folder / "grid3.zarr", encoding=encoding, zarr_format=3)
    ds.to_zarr(folder / "grid2.zarr", encoding={"t2m": {"chunks": (3, 10, 18)}}, zarr_format=2)
    packed = {
        "t2m": {
            "dtype": "i2",
            "scale_factor": 0.001,
            "_FillValue": -32768,
            "chunksizes": (2, 19, 9),
        }
    }
    ds.to_netcdf(folder / "grid.nc", encoding=packed)
    steps = np.arange(BLOCKS * SHAPE[0])
    large = xr.Dataset(
        {
            "a": (
                ("t", "y", "x"),
                np.broadcast_to(steps.astype("f4").reshape(-1, 1, 1), (80, *SHAPE[1:])),
            )
        },
        {"t": steps, "x": np.arange(SHAPE[2])},
    )
    large.to_zarr(folder / "large.zarr", encoding={"a": {"chunks": SHAPE}})
    return folder


@pytest.fixture
def server(data: Path) -> Iterator[ObjectServer]:
    """Serves that folder."""
    with ObjectServer(root=data) as server:
        yield server


def opened(path: Path) -> xr.Dataset:
    """Open a copy as plain xarray does."""
    engine = "netcdf4" if path.suffix == ".nc" else "zarr"
    with xr.open_dataset(path, engine=engine) as ds:
        return ds.load()


def left(folder: Path) -> list[str]:
    """Return the names in a folder, also hidden ones."""
    return sorted(each.name for each in folder.iterdir())


@pytest.mark.matrix(together=1)
@pytest.mark.parametrize("source", ["grid2.zarr", "grid3.zarr", "grid.nc"])
@pytest.mark.parametrize("form", ["zarr2", "zarr3", "netcdf4"])
@pytest.mark.parametrize("compress", [None, "none", "gzip:3"])
def test_a_copy_is_what_xarray_selects(
    data: Path, tmp_path: Path, run: Commands, source: str, form: str, compress: str | None
) -> None:
    name = "copy.nc" if form == "netcdf4" else "copy"
    options = [] if compress is None else ["--compress", compress]
    run.succeed(
        "copy", data / source, tmp_path / name, "--format", form, *options,
        "--sel", "time=2024-01-30:2024-02", "--sel", "lat=-40:60", "--isel", "lon=3:30",
    )  # fmt: skip
    with xr.open_dataset(data / source) as ds:
        part = ds.sel(time=slice("2024-01-30", "2024-02"), lat=slice(60, -40))
        expected = part.isel(lon=slice(3, 30)).load()
    xr.testing.assert_identical(opened(tmp_path / name), expected)
    assert left(tmp_path) == [name]


def test_the_layout_is_that_of_the_source_or_as_asked(
    data: Path, tmp_path: Path, run: Commands
) -> None:
    run.succeed("copy", data / "grid3.zarr", tmp_path / "same")
    same, source = (opened(path).t2m.encoding for path in (tmp_path / "same", data / "grid3.zarr"))
    for name in ("chunks", "shards", "compressors", "serializer", "filters", "dtype"):
        assert same[name] == source[name]
    chunks = ("--chunks", "time=2,lon=7", "--compress", "zstd:5")
    run.succeed("copy", data / "grid3.zarr", tmp_path / "other", *chunks, "--var", "t2m")
    (other,) = opened(tmp_path / "other").data_vars.values()
    assert other.encoding["chunks"] == (2, 10, 7)
    assert other.encoding["shards"] is None
    assert other.encoding["compressors"][0].level == 5
    run.succeed("copy", data / "grid.nc", tmp_path / "packed", "--compress", "none")
    packed = opened(tmp_path / "packed").t2m.encoding
    assert (packed["dtype"], packed["chunks"], packed["compressors"]) == ("i2", (2, 19, 9), ())


def test_the_encoding_is_as_asked(data: Path, tmp_path: Path, run: Commands) -> None:
    packed = {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -32768, "chunks": [4, 19, 36]}
    asked = ("--encoding", json.dumps({"t2m": packed}))
    run.succeed("copy", data / "grid3.zarr", tmp_path / "packed", *asked)
    source, copy = opened(data / "grid3.zarr"), opened(tmp_path / "packed")
    source.to_zarr(tmp_path / "expected", encoding={"t2m": {**packed, "shards": None}})
    xr.testing.assert_identical(copy, opened(tmp_path / "expected"))
    found = copy.t2m.encoding
    assert (found["dtype"], found["scale_factor"], found["chunks"]) == ("i2", 0.01, (4, 19, 36))
    # None leaves a part of the source's encoding out.
    plain = {"t2m": {"dtype": "f4", "scale_factor": None, "_FillValue": None}}
    run.succeed("copy", tmp_path / "packed", tmp_path / "f4", "--encoding", json.dumps(plain))
    found = opened(tmp_path / "f4").t2m.encoding
    assert found["dtype"] == "f4"
    assert "scale_factor" not in found


def test_a_box_across_the_seam(data: Path, tmp_path: Path, run: Commands) -> None:
    run.succeed("copy", data / "grid3.zarr", tmp_path / "box", "--bbox=-20,-10,20,10")
    copy, source = opened(tmp_path / "box"), opened(data / "grid3.zarr")
    np.testing.assert_array_equal(copy.lon, [-20, -10, 0, 10, 20])
    np.testing.assert_array_equal(
        copy.t2m, source.t2m.sel(lat=slice(10, -10), lon=[340, 350, 0, 10, 20])
    )


class Bucket:
    """A bucket of a server of its own, and the arguments of a copy to it."""

    def __init__(self, server: ObjectServer) -> None:
        self.server = server
        client = {"endpoint_url": server.url}
        self._options: dict[str, Any] = {"key": "any", "secret": "any", "client_kwargs": client}
        self.arguments = ("s3://bucket/copy", "--dest-options", json.dumps(self._options))

    def opened(self) -> xr.Dataset:
        """Open the copy in it."""
        url = "s3://bucket/copy"
        with xr.open_dataset(url, engine="zarr", storage_options=self._options) as ds:
            return ds.load()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Bucket]:
    """An empty bucket. Journals of copies to it are in ``tmp_path``."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with ObjectServer() as server:
        yield Bucket(server)


def test_from_a_server_to_a_bucket(
    data: Path, server: ObjectServer, bucket: Bucket, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/grid3.zarr", *bucket.arguments, "--var", "t2m,rain")
    run.succeed(*copy)
    written = [each.key for each in bucket.server.log.requests if each.method == "PUT"]
    # The metadata of the group comes last: before it, nothing opens.
    assert written[-1] == "bucket/copy/zarr.json"
    expected = opened(data / "grid3.zarr")[["t2m", "rain"]]
    xr.testing.assert_identical(bucket.opened(), expected)
    assert not any((tmp_path / "state").rglob("*.journal"))
    assert "is there already" in run.refuse(*copy)
    run.succeed("copy", data / "grid2.zarr", *bucket.arguments, "--overwrite")
    xr.testing.assert_identical(bucket.opened(), opened(data / "grid2.zarr"))


def test_a_copy_to_a_bucket_goes_on(
    data: Path, server: ObjectServer, bucket: Bucket, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", *bucket.arguments)
    bucket.server.fail("bucket/copy/a/c/15/*", 403, method="PUT")
    assert run(*copy).exit_code == 1
    with pytest.raises(FileNotFoundError):
        bucket.opened()
    bucket.server.mend()
    read = server.log.count("GET", "large.zarr/a/c/*")
    blocks = run.succeed(*copy, "--json").json["resumed_blocks"]
    assert blocks >= 5
    # Fewer if what this process read before is still in the cache.
    assert server.log.count("GET", "large.zarr/a/c/*") - read <= BLOCKS - blocks
    xr.testing.assert_identical(bucket.opened(), opened(data / "large.zarr"))


def test_chunks_of_another_copy_are_not_left_in_a_bucket(
    bucket: Bucket, tmp_path: Path, run: Commands
) -> None:
    # Chunks of nothing but the fill value are not written.
    empty = xr.Dataset({"a": (("x", "y"), np.full((300, 300), np.nan))})
    empty.to_zarr(tmp_path / "empty.zarr")
    for key in ("a/c/0/0", "a/c/1/1"):
        bucket.server.put(f"bucket/copy/{key}", b"of another copy")
    run.succeed("copy", tmp_path / "empty.zarr", *bucket.arguments)
    xr.testing.assert_identical(bucket.opened(), empty)


def test_a_dry_run_writes_nothing(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy", "--isel", "t=0:8")
    told = run.succeed(*copy, "--dry-run", "--json").json
    assert told["requests"] == 2
    assert told["bytes"] == 8 * 512 * 1024 * 4 + 8 * 8 + 1024 * 8
    assert "to be read: 2 requests, at most 16" in run.succeed(*copy, "--dry-run").output
    assert left(tmp_path) == []
    assert server.log.count("GET", "large.zarr/a/c/*") == 0


@pytest.fixture
def commits(tmp_path: Path) -> tuple[Path, list[xr.Dataset]]:
    """Return an icechunk repository with two commits and a tag of the first, and their values."""
    icechunk = pytest.importorskip("icechunk")
    place = tmp_path / "repository"
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(place)))
    values = [xr.Dataset({"a": ("x", np.arange(100.0) + n)}) for n in range(2)]
    for n, each in enumerate(values):
        session = repository.writable_session("main")
        each.to_zarr(session.store, mode="w", consolidated=False, encoding={"a": {"chunks": (10,)}})
        snapshot = session.commit(str(n))
        if n == 0:
            repository.create_tag("first", snapshot)
    return place, values


def test_an_icechunk_repository_is_read(
    commits: tuple[Path, list[xr.Dataset]], tmp_path: Path, run: Commands
) -> None:
    place, (first, last) = commits
    run.succeed("copy", place, tmp_path / "last.zarr")
    run.succeed("copy", place, tmp_path / "first.zarr", "--ref", "first", "--isel", "x=10:20")
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "last.zarr").load(), last)
    part = xr.open_zarr(tmp_path / "first.zarr").load()
    xr.testing.assert_identical(part, first.isel(x=slice(10, 20)))
    told = run.succeed("info", place, "--ref", "main")
    assert "chunks 10;" in told.output
    assert "stored)" not in told.output


def test_a_copy_of_a_repository_in_a_bucket_goes_on_from_the_same_commit(
    server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(clients.icechunk_storage(server.url))
    # Each chunk is a block of the copy, and larger than what icechunk stores in its manifests.
    steps = np.arange(32, dtype="f4").reshape(-1, 1, 1) + np.arange(SHAPE[2]) % 251
    ds = xr.Dataset({"a": (("t", "y", "x"), np.broadcast_to(steps, (32, *SHAPE[1:])))})
    saved = partial(ds.to_zarr, mode="w", consolidated=False, encoding={"a": {"chunks": SHAPE}})
    session = repository.writable_session("main")
    saved(session.store)
    first = session.commit("first")
    options = {
        "endpoint_url": server.url,
        "allow_http": True,
        "force_path_style": True,
        "region": "us-east-1",
        "access_key_id": "test",
        "secret_access_key": "test",
    }
    copy: tuple[object, ...] = ("copy", "s3://bucket/repo", tmp_path / "copy.zarr")
    copy += ("--engine", "icechunk", "--storage-options", json.dumps(options))
    server.fail("*repo/chunks/*", 403, after=4)
    assert run(*copy).exit_code == 1
    server.mend()
    session = repository.writable_session("main")
    saved(session.store)
    session.commit("second")
    assert "the unfinished copy there has another" in run.refuse(*copy)
    run.succeed(*copy, "--ref", first)
    xr.testing.assert_identical(xr.open_zarr(tmp_path / "copy.zarr").load(), ds)


def test_a_commit_that_does_not_exist_is_refused(
    commits: tuple[Path, list[xr.Dataset]], data: Path, tmp_path: Path, run: Commands
) -> None:
    place, _ = commits
    line = run.refuse("copy", place, tmp_path / "copy.zarr", "--ref", "nope")
    assert "'nope' is no branch, tag or snapshot of the repository; there are first, main" in line
    line = run.refuse("info", data / "large.zarr", "--ref", "main")
    assert "--ref names a commit of an icechunk repository" in line
    line = run.refuse("info", tmp_path / "nowhere", "--engine", "icechunk")
    assert "does not exist" in line
    assert not (tmp_path / "nowhere").exists()


def encoding(**variables: Any) -> tuple[str, str]:
    # Braces are doubled for `str.format`.
    text = json.dumps(variables).replace("{", "{{").replace("}", "}}")
    return ("--encoding", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}/none.zarr", "{out}/copy"], "none.zarr does not exist"),
        (["{data}/grid3.zarr", "{out}/no/copy"], "there is no folder {out}/no to copy to"),
        (["{data}/grid3.zarr", "{data}/grid3.zarr"], "would be copied to itself"),
        (["{data}/grid3.zarr", "{data}/grid2.zarr"], "is there already (--overwrite replaces it)"),
        (["{data}/grid3.zarr", "s3://bucket/a.nc"], "netCDF is written to local files"),
        (["{data}/grid3.zarr", "{out}/a.nc", "--compress", "zstd"], "with gzip, not zstd"),
        (["{data}/grid3.zarr", "{out}/a", "--compress", "gzip:99"], "the level of gzip is from 1"),
        (["{data}/grid3.zarr", "{out}/a", "--compress", "lz5"], "must be one of none, zstd, gzip"),
        (["{data}/grid3.zarr", "{out}/a", "--chunks", "time"], "must be DIM=N, such as"),
        (["{data}/grid3.zarr", "{out}/a", "--chunks", "x=2"], "--chunks: 'x' is no dimension"),
        (
            ["{data}/grid3.zarr", "{out}/a", "--encoding", "t2m"],
            "--encoding: must be a JSON object",
        ),
        (["{data}/grid3.zarr", "{out}/a", *encoding(u=1)], "'u' is no variable of the copy"),
        (["{data}/grid3.zarr", "{out}/a", *encoding(t2m=1)], "'t2m' takes a JSON object, not 1"),
        (["{data}/grid3.zarr", "{out}/a", *encoding(t2m={"zlib": True})], "must be one of dtype, "),
        (["{data}/grid3.zarr", "{out}/a", *encoding(t2m={"dtype": "i3x"})], "is no data type"),
        (
            ["{data}/grid3.zarr", "{out}/a", *encoding(t2m={"chunks": [1]})],
            "takes 3 lengths from 1",
        ),
        (["{data}/grid3.zarr", "{out}/a", *encoding(t2m={"add_offset": "x"})], "must be a number"),
        (["{data}/grid3.zarr", "{out}/a", "--sel", "time=2030"], "selects nothing"),
        (["{data}/grid3.zarr", "{out}/a", "--format", "csv"], "invalid choice: 'csv'"),
        (["{data}/grid3.zarr"], "the following arguments are required: DEST"),
    ],
)
def test_bad_input_is_told_in_one_line(
    data: Path, tmp_path: Path, run: Commands, arguments: list[str], message: str
) -> None:
    places = {"data": data, "out": tmp_path}
    line = run.refuse("copy", *(each.format(**places) for each in arguments))
    assert message.format(**places) in line
    assert left(tmp_path) == []


# --- interrupted copies --------------------------------------------------------------------------


def written(folder: Path) -> int:
    """Return the number of blocks in the journal."""
    return len((folder / ".copy.journal").read_bytes().splitlines()) - 1


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["KILL", "INT", "TERM"],
)
def test_a_copy_that_was_ended_goes_on_where_it_was(
    data: Path,
    server: ObjectServer,
    tmp_path: Path,
    run: Commands,
    number: int,
    exit_code: int,
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy")
    server.hold("large.zarr/a/c/1?/*")
    with process(*copy) as command:
        server.wait_requested("large.zarr/a/c/1?/*", timeout_s=60)
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    assert command.returncode == exit_code
    assert number == signal.SIGKILL or "the same command resumes the copy" in errors
    assert left(tmp_path) == [".copy.journal", ".copy.part"]
    blocks = written(tmp_path)
    # Few blocks are in flight at once.
    assert blocks >= 5

    server.release()
    before = server.log.count("GET", "large.zarr/a/c/*")
    other = run.refuse(*copy, "--isel", "t=0:70")
    assert "the unfinished copy there has another fingerprint, selection: give" in other
    assert run.succeed(*copy, "--dry-run", "--json").json["resumed_blocks"] == blocks
    assert run.succeed(*copy, "--json").json["resumed_blocks"] == blocks
    assert server.log.count("GET", "large.zarr/a/c/*") - before == BLOCKS - blocks
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))
    assert left(tmp_path) == ["copy"]


def test_a_copy_that_failed_goes_on(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy")
    server.fail("large.zarr/a/c/15/*", 403)
    ended = run(*copy)
    assert ended.exit_code == 1
    (line,) = ended.errors.splitlines()
    assert "HTTP 403" in line
    assert line.endswith("(what is written stays: the same command resumes the copy)")
    server.mend()
    assert run.succeed(*copy, "--json").json["resumed_blocks"] >= 5
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))


def test_overwrite_keeps_the_old_data_until_the_new_is_whole(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    run.succeed("copy", data / "grid3.zarr", tmp_path / "copy")
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy", "--overwrite")
    server.fail("large.zarr/a/c/15/*", 403)
    assert run(*copy).exit_code == 1
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "grid3.zarr"))
    server.mend()
    # A dry run of another copy discards nothing.
    other = ("copy", data / "grid2.zarr", tmp_path / "copy", "--overwrite", "--dry-run", "--json")
    assert run.succeed(*other).json["resumed_blocks"] == 0
    assert run.succeed(*copy, "--json").json["resumed_blocks"] >= 5
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))
    assert left(tmp_path) == ["copy"]


def test_overwrite_discards_an_unfinished_copy_of_something_else(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    server.fail("large.zarr/a/c/15/*", 403)
    assert run("copy", f"{server.url}/large.zarr", tmp_path / "copy").exit_code == 1
    line = run.refuse("copy", data / "grid3.zarr", tmp_path / "copy")
    assert "or --overwrite to discard it" in line
    run.succeed("copy", data / "grid3.zarr", tmp_path / "copy", "--overwrite")
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "grid3.zarr"))


def test_a_copy_whose_part_was_deleted_begins_anew(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy")
    server.fail("large.zarr/a/c/15/*", 403)
    assert run(*copy).exit_code == 1
    (tmp_path / ".copy.part").rename(tmp_path / "elsewhere")
    server.mend()
    assert run.succeed(*copy, "--json").json["resumed_blocks"] == 0
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))


def test_a_copy_is_made_by_one_process(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy")
    server.hold("large.zarr/a/c/1?/*")
    with process(*copy) as command:
        server.wait_requested("large.zarr/a/c/1?/*", timeout_s=60)
        assert "another process is making this copy" in run.refuse(*copy)
        server.release()
        command.communicate(timeout=60)
    assert command.returncode == 0
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))


@pytest.mark.slow
def test_a_copy_killed_at_random_is_whole_in_the_end(
    data: Path, server: ObjectServer, tmp_path: Path, run: Commands
) -> None:
    copy = ("copy", f"{server.url}/large.zarr", tmp_path / "copy")
    rng = random.Random(7)
    # Arrivals are counted once something is held.
    server.hold("nothing")
    arrived = 0
    for _ in range(4):
        arrived += rng.randint(1, 4)
        with process(*copy) as command:
            server.wait_requested("large.zarr/a/c/*", 60.0, arrived)
            command.kill()
            command.communicate(timeout=60)
        assert command.returncode == -signal.SIGKILL
        arrived = server.log.count("GET", "large.zarr/a/c/*")
    run.succeed(*copy)
    xr.testing.assert_identical(opened(tmp_path / "copy"), opened(data / "large.zarr"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak")
def test_memory_is_bounded(tmp_path: Path) -> None:
    # 336 MB that do not compress.
    values = np.random.default_rng(5).integers(0, 2**31, (160, 512, 1024), "i4")
    wide = xr.Dataset({"a": (("t", "y", "x"), values)})
    wide.to_zarr(tmp_path / "wide.zarr", encoding={"a": {"chunks": (1, 512, 1024)}})
    # The peak of the process itself: that of `resource` is at least that of its parent.
    code = (
        "import sys; from aioxarray.cli import main; main(sys.argv[1:])\n"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    with ObjectServer(root=tmp_path / "wide.zarr", process=True) as server:
        done = subprocess.run(
            [sys.executable, "-c", code, "copy", server.url, tmp_path / "copy"],
            capture_output=True,
            text=True,
            check=True,
            env=environment(),
            timeout=110,
        )
    xr.testing.assert_identical(opened(tmp_path / "copy"), wide)
    assert int(done.stdout.splitlines()[-1]) * 1024 < 400e6


def test_a_journal_that_was_cut_off_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path, block = tmp_path / "journal", (slice(0, 4), slice(0, 8))
    with journal.Journal(path, {"source": "a"}) as begun:
        begun.add("t2m", block)
    with open(path, "ab") as file:
        file.write(b'["t2m", [4, 8')
    with journal.Journal(path, {"source": "a"}) as resumed:
        assert resumed.blocks == 1
        assert resumed.has("t2m", block)
        resumed.add("t2m", (slice(4, 8), slice(0, 8)))
    with journal.Journal(path, {"source": "a"}) as resumed:
        assert resumed.blocks == 2
    assert journal.Journal(path, {"source": "a"}).recorded() == 2
    with pytest.raises(journal.JournalError, match="another source"):
        journal.Journal(path, {"source": "b"}).__enter__()
    with journal.Journal(path, {"source": "b"}, replaces=True) as other:
        assert other.blocks == 0
    # Without blocks it is as good as none.
    with journal.Journal(path, {"source": "c"}) as other:
        other.add("t2m", block)
        other.clear()
        assert other.blocks == 0
    path.write_text("something\nelse\n")
    with pytest.raises(journal.JournalError, match="another source, version"):
        journal.Journal(path, {"source": "a"}).__enter__()
