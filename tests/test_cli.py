"""The command line and its demo: what they print, and how they fail."""

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._demo import remote, terrain
from aioxarray._demo.extent import Extent, describe, extents
from aioxarray._demo.measuring import check_same
from aioxarray.cli import main
from aioxarray.testing import ObjectServer
from tests.browser import browser
from tests.test_trace_page import data_of, in_browser

LAST_LINE = "Try the same on your own data: python -m aioxarray demo URL"


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    """Serves what the demo's own server does, of the small sizes."""
    with ObjectServer() as server:
        for name, data in terrain.stored(terrain.TINY).items():
            for key, value in data.items():
                server.put(f"{name}/{key}", value)
        server.put("empty.zarr/zarr.json", b'{"zarr_format": 3, "node_type": "group"}')
        yield server


def _rows(output: str, library: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if line.startswith(f"  {library} ")]


@pytest.mark.slow
def test_demo_prints_every_way_of_loading_every_object_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page, picture = tmp_path / "loads.html", tmp_path / "loads.png"
    written = ["--page", str(page), "--picture", str(picture)]
    assert main(["demo", "--quick", "--latency-ms", "1", *written]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    plain, ours = _rows(output, "xarray"), _rows(output, "aioxarray")
    assert [row[1] for row in plain].count("open_zarr(url,") == 2
    assert [row[1] for row in plain].count("open_datatree(url,") == 1
    assert [row[1] for row in ours] == [
        *["await", "load(ds)", "await"] * 2,
        *["await", "load(tree)", "await"],
    ]
    # Seconds, requests, most in flight, worst stall, ratio; loading takes as many as chunks.
    numbers = [row[-5:] for row in ours]
    counts = [int(requests) for _, requests, *_ in numbers]
    assert [counts[i : i + 3][1:] for i in (0, 3, 6)] == [[16, 16], [32, 32], [8, 8]]
    assert all(1 <= int(in_flight) <= int(n) for _, n, in_flight, *_ in numbers)
    assert all(float(row[0]) >= 0 and row[-1].endswith("x") for row in numbers)
    assert "identical to plain xarray's" in output
    assert output.splitlines()[-1].startswith(LAST_LINE)
    assert max(len(line) for line in output.splitlines() if str(tmp_path) not in line) <= 100
    assert picture.read_bytes().startswith(b"\x89PNG")
    _check_page(data_of(page.read_text("utf-8")))


def _check_page(data: Any) -> None:
    """Check that each load on the page of the demo has the requests that its server logged."""
    stored = terrain.stored(terrain.TINY)
    lanes, requests = data["names"]["variables"], data["requests"]
    of_lane = Counter(lanes[number] for number in requests["variable"])
    data_of_demo = (("fields", "ds", 16), ("day", "ds", 32), ("windows", "tree", 8))
    calls = ("xarray {}.load()", "aioxarray load({})", "aioxarray await load_async({})")
    assert of_lane == {
        f"{name}: {call.format(kind)}": count
        for name, kind, count in data_of_demo
        for call in calls
    }
    for lane, key, nbytes in zip(
        requests["variable"], requests["key"], requests["bytes"], strict=True
    ):
        store, _, rest = key.partition("/")
        assert lanes[lane].startswith(f"{store.removesuffix('.zarr')}:")
        assert nbytes == len(stored[store][rest])
    assert max(requests["start"]) <= data["us"]


@in_browser
@pytest.mark.slow
def test_a_browser_finds_the_requests_of_each_load_that_the_demos_server_counted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "loads.html"
    assert main(["demo", "--quick", "--latency-ms", "1", "--page", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    # A row ends with requests, most in flight, worst stall and ratio. Opens are not on the page.
    rows = [line for line in lines if line and line[-1].endswith("x")]
    counted = [(row[0], int(row[-4])) for row in rows if not any("open_" in each for each in row)]
    lanes = data_of(path.read_text("utf-8"))["names"]["variables"]
    total = sum(requests for _, requests in counted)

    async def search() -> None:
        async with browser(tmp_path / "profile") as shown:
            await shown.open(path)
            assert await shown.value("document.querySelector('dd').textContent") == str(total)
            for lane, (library, requests) in zip(lanes, counted, strict=True):
                assert f": {library} " in lane
                await shown.value(
                    "(() => { const search = document.getElementById('search');"
                    f"search.value = {json.dumps(lane)};"
                    "search.dispatchEvent(new Event('input')); })()"
                )
                found = await shown.value("document.getElementById('matches').textContent")
                assert found == f"{requests} of {total} match"
            assert not shown.named("Runtime.exceptionThrown", "Log.entryAdded")

    asyncio.run(search())


def test_demo_on_a_url_opens_a_dataset(
    server: ObjectServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"{server.url}/fields.zarr", "--quick", "--concurrency", "3"]) == 0
    output = capsys.readouterr().out
    assert "(concurrency=3)" in output
    assert "Dataset: 4 variables, 16 chunks" in output
    ours = [row[1] for row in _rows(output, "aioxarray")]
    assert ours == ["await", "load(ds)", "await"]
    assert output.splitlines()[-1].startswith(LAST_LINE)


def test_demo_on_a_url_opens_a_tree(
    server: ObjectServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", f"{server.url}/windows.zarr", "--quick"]) == 0
    output = capsys.readouterr().out
    assert "DataTree of 3 nodes: 8 variables" in output
    # xarray itself cannot await a tree, and the table says so.
    assert "AttributeError: xarray's DataTree has no load_async" in output


def test_demo_opens_a_path_and_reads_only_a_part_of_much(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A chunk is 20 MB, never written, and so the fill value.
    large = xr.DataArray(np.float64(0)).expand_dims(x=2_500_000, y=50).chunk(x=2_500_000, y=1)
    large.to_dataset(name="large").to_zarr(tmp_path, compute=False)
    assert main(["demo", str(tmp_path), "--quick"]) == 0
    output = capsys.readouterr().out
    assert "Read of it is the beginning of 'large', and nothing else:" in output
    assert "Dataset: 1 variable, 3 chunks, 60.0 MB" in output


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.zarr", "cannot open {url} as a Zarr group: GroupNotFoundError"),
        ("empty.zarr", "there is no data in what"),
    ],
)
def test_a_wrong_url_is_told_in_one_line(
    server: ObjectServer, path: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{server.url}/{path}"
    assert main(["demo", url]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"aioxarray: {message.format(url=url)}")


def test_a_server_that_is_not_there_is_told_in_one_line() -> None:
    with ObjectServer() as gone:
        url = gone.url
    # A process of its own: what an error leaves running is told only when the process ends.
    ended = subprocess.run(
        [sys.executable, "-m", "aioxarray", "demo", f"{url}/a.zarr"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(aioxarray.__file__).parents[1])},
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"aioxarray: cannot open {url}/a.zarr as a Zarr group: ")


def test_a_missing_path_and_an_unknown_scheme_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", str(tmp_path / "none.zarr")]) == 1
    assert "none.zarr as a Zarr group: FileNotFoundError" in capsys.readouterr().err
    assert main(["demo", "nonsense://data"]) == 1
    assert "as a Zarr group: ValueError" in capsys.readouterr().err


def test_missing_packages_are_named_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # So Python marks a module that is not to be found.
    for name in ("matplotlib", "s3fs"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("(matplotlib): pip install 'aioxarray[demo]'")
    assert main(["demo", "s3://bucket/data.zarr"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("needs more packages: pip install s3fs")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["demo", "--latency-ms", "-1"],
        ["demo", "--latency-ms", "x"],
        ["demo", "--page", "no such folder/a.html"],
        ["demo", "--picture", "."],
        ["demo", "https://host/a.zarr", "--page", "a.html"],
    ],
)
def test_wrong_arguments_end_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"aioxarray {aioxarray.__version__}\n"


def test_the_terrain_is_real_and_of_the_promised_size() -> None:
    grid = terrain.elevation()
    assert grid.shape == (344, 403)
    assert (int(grid.min()), int(grid.max())) == (236, 1076)
    # North is up: the latitude falls with the rows.
    assert float(grid["lat"][0]) > float(grid["lat"][-1])
    data = terrain.fields(grid, terrain.Sizes())
    assert len(data.data_vars) == 40
    assert float(data["slope"].min()) >= 0
    assert float(data["slope"].max()) < 90
    tree = terrain.windows(data, terrain.Sizes())
    assert len(list(tree.subtree)) == 13


def test_a_sample_keeps_to_its_bounds_and_to_whole_variables() -> None:
    data = xr.Dataset({f"v{i}": (("y", "x"), np.zeros((10, 10))) for i in range(4)})
    for variable in data.variables.values():
        variable.encoding["chunks"] = (5, 5)
    assert remote.sample(data).obj is data
    two = remote.sample(data, max_bytes=1700)
    assert list(two.obj) == ["v0", "v1"]
    assert two.text == "the first 2 of 4 variables"
    assert list(remote.sample(data, max_chunks=11).obj) == ["v0", "v1"]

    tree = xr.DataTree.from_dict({"/": data[["v0"]], "/a": data[["v1", "v2"]], "/b": data})
    three = remote.sample(tree, max_bytes=2400)
    assert list(extents(three.obj)) == [("/", "v0"), ("/a", "v1"), ("/a", "v2")]
    assert describe(three.obj) == "DataTree of 3 nodes: 3 variables, 12 chunks, 0.0 MB"


def test_a_sample_of_one_large_variable_is_its_first_chunks() -> None:
    data = xr.Dataset({"none": ("z", np.zeros(0)), "large": (("y", "x"), np.zeros((10, 10)))})
    data["large"].encoding["chunks"] = (3, 5)
    part = remote.sample(data, max_bytes=500)
    assert isinstance(part.obj, xr.Dataset)
    assert dict(part.obj["large"].sizes) == {"y": 6, "x": 10}
    assert part.text == "the beginning of 'large'"


def test_an_extent_counts_whole_chunks() -> None:
    variable = xr.Variable(("y", "x"), np.zeros((10, 7), "int16"), encoding={"chunks": (4, 7)})
    extent = Extent.of(variable)
    assert (extent.chunks, extent.nbytes) == (3, 3 * 4 * 7 * 2)
    assert extent.beginning(max_bytes=1, max_chunks=100).chunks == 1
    assert Extent.of(xr.Variable((), 1.0)).chunks == 1
    assert Extent.of(xr.Variable("x", np.zeros(0))).beginning(10, 10).chunks == 0


def test_other_values_and_other_types_are_found() -> None:
    data = xr.Dataset({"a": ("x", [1, 2])})
    tree = xr.DataTree.from_dict({"/n": data})
    check_same(data.copy(), data)
    check_same(tree.copy(), tree)
    for other in (data + 1, data.astype("int16")):
        with pytest.raises(AssertionError):
            check_same(other, data)
        with pytest.raises(AssertionError):
            check_same(xr.DataTree.from_dict({"/n": other}), tree)
