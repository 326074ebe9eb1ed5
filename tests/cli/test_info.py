"""``aioxarray info``: what it shows, and how it fails; the parts that all commands share."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from tests.cli.helpers import Commands, grid, process


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same grid in several formats."""
    folder = tmp_path_factory.mktemp("data")
    ds = grid()
    encoding = {"t2m": {"chunks": (5, 19, 18), "shards": (10, 19, 36)}}
    ds.to_zarr(folder / "grid.zarr", encoding=encoding, zarr_format=3)
    packed = {"t2m": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -1, "zlib": True}}
    ds.to_netcdf(folder / "grid.nc", engine="h5netcdf", encoding=packed)
    tree = {"/": xr.Dataset(attrs={"title": "tree"}), "/a": ds, "/b": ds.isel(lat=slice(3))}
    xr.DataTree.from_dict(tree).to_zarr(folder / "tree.zarr")
    for part in range(2):
        ds.isel(time=slice(part * 5, part * 5 + 5)).to_netcdf(folder / f"part{part}.nc")
    return folder


@pytest.fixture(scope="module")
def served(data: Path) -> Iterator[ObjectServer]:
    """Serves that folder."""
    with ObjectServer(root=data) as server:
        yield server


def test_the_text_has_what_ncdump_shows_and_how_it_is_stored(
    served: ObjectServer, run: Commands
) -> None:
    lines = run.succeed("info", f"{served.url}/grid.zarr").output.splitlines()
    assert lines[0].startswith(f"{served.url}/grid.zarr: ")
    for line in (
        "  time = 10",
        "  float32 t2m(time, lat, lon)",
        '    t2m:units = "K"',
        "  float64 lat(lat)  // 90 … -90",
        "  datetime64[ns] time(time)  // 2024-01-28 … 2024-02-06",
        '    time:calendar = "proleptic_gregorian"',
        '  title = "grid"',
    ):
        assert line in lines
    (storage,) = [line for line in lines if "shards" in line]
    assert storage.startswith("    // shards 10 × 19 × 36; chunks 5 × 19 × 18; bytes(")
    assert storage.endswith("; 26.72 KiB")


def test_only_the_groups_that_match_are_opened(
    data: Path, served: ObjectServer, run: Commands
) -> None:
    before = served.log.count()
    url = f"{served.url}/tree.zarr"
    shown = run.succeed("info", url, "--group-filter", "/b*", "--json").json
    assert list(shown["groups"]) == ["/", "/b"]
    assert not [r for r in served.log.requests[before:] if "tree.zarr/a/" in r.key]
    assert "no group matches" in run.refuse("info", url, "--group-filter", "/c")
    files = str(data / "part*.nc")
    assert "stands for many files" in run.refuse("info", files, "--group-filter", "/b")
    netcdf = str(data / "grid.nc")
    assert "groups of Zarr stores" in run.refuse("info", netcdf, "--group-filter", "/b")


def test_requests_are_those_that_the_server_counts(served: ObjectServer, run: Commands) -> None:
    before = served.log.count()
    opened = run.succeed("info", f"{served.url}/grid.zarr", "--json").json["open"]
    # Guessing the engine, too, asks for metadata.
    assert 0 < opened["requests"] <= served.log.count() - before
    assert opened["bytes_fetched"] > 0


def test_json_describes_every_variable(data: Path, run: Commands) -> None:
    described = run.succeed("info", data / "grid.zarr", "--json").json
    group = described["groups"]["/"]
    assert group["dimensions"] == {"time": 10, "lat": 19, "lon": 36}
    t2m = group["variables"]["t2m"]
    assert (t2m["shape"], t2m["chunks"], t2m["shards"]) == (
        [10, 19, 36],
        [5, 19, 18],
        [10, 19, 36],
    )
    assert t2m["bytes"] == 10 * 19 * 36 * 4
    files = (data / "grid.zarr" / "t2m" / "c").rglob("*")
    assert t2m["bytes_stored"] == sum(each.stat().st_size for each in files if each.is_file())
    assert group["variables"]["time"]["first_and_last"] == ["2024-01-28", "2024-02-06"]


def test_of_a_netcdf_file(data: Path, served: ObjectServer, run: Commands) -> None:
    for location in (data / "grid.nc", f"{served.url}/grid.nc"):
        described = run.succeed("info", location, "--json").json
        t2m = described["groups"]["/"]["variables"]["t2m"]
        assert t2m["stored_dtype"] == "int16"
        assert t2m["codecs"] == ["zlib(level=4)"]
        assert t2m["attributes"]["scale_factor"] == 0.01
    assert "// stored as int16; " in run.succeed("info", data / "grid.nc").output


def test_of_a_tree_and_of_one_of_its_groups(data: Path, run: Commands) -> None:
    tree = run.succeed("info", data / "tree.zarr").output
    assert [line for line in tree.splitlines() if line.startswith("group: ")] == [
        "group: /",
        "group: /a",
        "group: /b",
    ]
    groups = run.succeed("info", data / "tree.zarr", "--group", "b", "--json").json["groups"]
    assert [group["dimensions"]["lat"] for group in groups.values()] == [3]


def test_of_many_files(data: Path, run: Commands) -> None:
    described = run.succeed("info", data / "part*.nc", "--json").json
    assert described["groups"]["/"]["dimensions"]["time"] == 10


def test_the_plan_is_that_of_the_selection(served: ObjectServer, run: Commands) -> None:
    url = f"{served.url}/grid.zarr"
    arguments = ("--var", "t2m", "--sel", "time=2024-02", "--isel", "lon=0", "--plan")
    plan = run.succeed("info", url, *arguments, "--json").json["plan"]
    with aioxarray.open_dataset(url) as ds:
        expected = aioxarray.explain(ds[["t2m"]].sel(time="2024-02").isel(lon=0))
    estimate = plan.pop("seconds")
    assert plan == expected.to_dict()
    assert estimate == expected.estimate()
    assert f"\nA load: {expected}\n" in run.succeed("info", url, *arguments).output


def test_odd_attributes_are_json(tmp_path: Path, run: Commands) -> None:
    attributes = {"limit": np.inf, "range": np.array([1.5, np.nan]), "count": np.int8(3)}
    xr.Dataset({"a": ((), 1)}, attrs=attributes).to_netcdf(tmp_path / "odd.nc")
    described = run.succeed("info", tmp_path / "odd.nc", "--json").json
    assert described["groups"]["/"]["attributes"] == {
        "limit": "inf",
        "range": [1.5, "nan"],
        "count": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}/none.zarr"], "none.zarr does not exist (--engine names another reader"),
        (["{data}/none.nc"], "cannot open {data}/none.nc: "),
        (["{data}/none*.nc"], "no file matches "),
        (["{data}/text"], "did not find a match in any of xarray's currently installed"),
        (["{data}/grid.zarr", "--engine", "zar"], "unrecognized engine 'zar'"),
        (["{data}/grid.zarr", "--group", "no"], "cannot open group 'no' of "),
        (["{data}/grid.zarr", "--var", "t3m"], "there is no variable 't3m'; did you mean 't2m'?"),
        (["{data}/grid.zarr", "--sel", "tme=2024"], "'tme' is no dimension"),
        (["{data}/grid.zarr", "--sel", "time=2030"], "time runs from 2024-01-28 to 2024-02-06"),
        (["{data}/grid.zarr", "--storage-options", "x"], "must be a JSON object"),
        (["{data}/tree.zarr", "--var", "t2m"], "choose one with --group; there are /a, /b"),
        (["{data}/grid.zarr", "--bbox", "1,2,3"], "must be four numbers W,S,E,N"),
        (["{data}/grid.zarr", "--plann"], "unrecognized arguments: --plann"),
        (["nonsense://host/data"], "cannot open nonsense://host/data: "),
        ([], "the following arguments are required: URL"),
    ],
)
def test_bad_input_is_told_in_one_line(
    data: Path, run: Commands, arguments: list[str], message: str
) -> None:
    (data / "text").write_text("nothing that xarray opens")
    line = run.refuse("info", *(each.format(data=data) for each in arguments))
    assert message.format(data=data) in line


def test_credentials_are_not_shown(run: Commands) -> None:
    with ObjectServer() as gone:
        place = gone.url.removeprefix("http://")
    url = f"http://user:secret@{place}/grid.zarr?token=secret"
    ended = run("info", url)
    assert f"cannot open http://{place}/grid.zarr" in ended.errors
    assert "secret" not in ended.errors


def test_a_server_that_is_not_there_is_no_bad_input(run: Commands) -> None:
    with ObjectServer() as gone:
        url = gone.url
    ended = run("info", f"{url}/grid.zarr")
    assert ended.exit_code == 1
    (line,) = ended.errors.splitlines()
    assert "the connection to the server failed" in line


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_a_signal_ends_it_though_the_server_is_silent(
    server: ObjectServer, number: int, exit_code: int
) -> None:
    server.hold()
    with process("info", f"{server.url}/grid.zarr") as command:
        server.wait_requested(timeout_s=60)
        command.send_signal(number)
        output, errors = command.communicate(timeout=30)
    assert (command.returncode, output, errors) == (exit_code, "", "")


def test_a_reader_that_has_read_enough_is_no_error(data: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with process("info", data / "grid.zarr", stdout=write) as command:
        os.close(write)
        _, errors = command.communicate(timeout=60)
    assert (command.returncode, errors) == (1, "")


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["in"], ["info"]),
        (["info", "--pl"], ["--plan"]),
        (["demo", "--q"], ["--quick"]),
        (["completion", "f"], ["fish"]),
    ],
)
def test_completion_in_bash(run: Commands, words: list[str], expected: list[str]) -> None:
    script = run.succeed("completion", "bash").output
    typed = " ".join(["aioxarray", *words])
    done = subprocess.run(
        ["bash", "-c", f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words)}\n"
         '_aioxarray; printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )  # fmt: skip
    assert done.stdout.split() == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_completion_names_every_command(run: Commands, shell: str) -> None:
    script = run.succeed("completion", shell).output
    for word in ("info", "demo", "plan", "latency-ms"):
        assert word in script
