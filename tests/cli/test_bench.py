"""``aioxarray bench``: what it requests, what it measures and what it recommends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from aioxarray.cli.bench import LEVELS, Measured, recommendation, shares
from aioxarray.testing import ObjectServer
from tests.cli.helpers import Commands

CHUNKS = 300


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """Serves a variable of many chunks, beside one of few."""
    folder = tmp_path_factory.mktemp("data")
    values = np.random.default_rng(1).normal(size=(CHUNKS, 10))
    ds = xr.Dataset({"few": ("x", np.arange(10)), "many": (("t", "x"), values)})
    encoding = {"many": {"chunks": (1, 10)}}
    ds.to_zarr(folder / "data.zarr", encoding=encoding)
    sharded = {"many": {"chunks": (1, 10), "shards": (10, 10)}}
    ds.to_zarr(folder / "shards.zarr", encoding=sharded)
    ds.to_netcdf(folder / "data.nc")
    with ObjectServer(root=folder) as server:
        yield server


def test_it_stays_within_its_requests(served: ObjectServer, run: Commands) -> None:
    before = served.log.count("GET", "*/c/*")
    bench = run.succeed("bench", f"{served.url}/data.zarr", "--requests", "200", "--json").json
    assert bench["variable"] == "many"
    assert [level["in_flight"] for level in bench["levels"]] == [1, 2, 4, 8, 16, 32, 64]
    requests = sum(level["requests"] for level in bench["levels"])
    assert 150 < requests <= 200
    assert served.log.count("GET", "*/c/*") - before == requests
    assert bench["concurrency"] in LEVELS
    assert bench["ended"] == ""


def test_shards_are_requested_as_a_whole(served: ObjectServer, run: Commands) -> None:
    arguments = ("--var", "many", "--requests", "20", "--json")
    levels = run.succeed("bench", f"{served.url}/shards.zarr", *arguments).json["levels"]
    assert sum(level["requests"] for level in levels) <= 20
    assert all(level["bytes"] > level["requests"] * 100 * 8 * 0.5 for level in levels)


def test_the_table_and_the_picture(served: ObjectServer, run: Commands, tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    arguments = ("--requests", "50", "--plot", picture)
    lines = run.succeed("bench", f"{served.url}/data.zarr", *arguments).output.splitlines()
    assert lines[2].split() == ["in", "flight", "requests", "requests/s", "bytes/s", "median"]
    assert lines[-1].startswith("concurrency=")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_ends_when_its_time_is_over(run: Commands, served: ObjectServer) -> None:
    with ObjectServer() as silent:
        for key, value in served.data.items():
            silent.put(key, value)
        silent.hold("data.zarr/many/c/2?/0")
        arguments = ("--seconds", "0.5", "--json")
        bench = run("bench", f"{silent.url}/data.zarr", *arguments)
    # A slow machine may have measured nothing by then.
    assert bench.exit_code in (0, 1)
    assert "0.5 seconds have passed" in bench.output + bench.errors


def test_a_server_that_refuses_ends_it(run: Commands, served: ObjectServer) -> None:
    with ObjectServer() as refusing:
        for key, value in served.data.items():
            refusing.put(key, value)
        refusing.fail("data.zarr/many/c/2?/0", 403)
        ended = run.succeed("bench", f"{refusing.url}/data.zarr", "--json").json["ended"]
    assert ended.startswith("with 4 in flight, could not read ")
    assert "HTTP 403" in ended


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{url}/none.zarr"], "cannot open {url}/none.zarr"),
        (["{url}/data.nc"], "bench reads Zarr"),
        (["{url}/data.zarr", "--var", "mny"], "there is no variable 'mny'; did you mean 'many'?"),
        (["{url}/data.zarr", "--requests", "0"], "must be a number from 1 on"),
        (["{url}/data.zarr", "--seconds", "nan"], "must be a positive number of seconds"),
        (["{url}/data.zarr", "--plot", "{out}/no/a.png"], "--plot: there is no folder {out}/no"),
        (["{url}/data.zarr", "--plot", "{out}/a.docx"], "--plot: FILE must end in one of "),
    ],
)
def test_bad_input_is_told_in_one_line(
    served: ObjectServer, tmp_path: Path, run: Commands, arguments: list[str], message: str
) -> None:
    places = {"url": served.url, "out": tmp_path}
    line = run.refuse("bench", *(each.format(**places) for each in arguments))
    assert message.format(**places) in line


def test_shares() -> None:
    assert list(shares(600, 1000)) == list(LEVELS)
    assert all(count >= level for level, count in shares(600, 1000).items())
    for most in (1, 7, 10, 100, 600, 5000):
        assert 0 < sum(shares(most, 1000).values()) <= most
    # Large chunks: no more at once than memory holds.
    assert list(shares(600, 64 << 20)) == [1, 2, 4]
    assert shares(600, 1 << 40) == {1: 1}


def measured(*rates: float) -> list[Measured]:
    return [
        Measured(level, 100, int(rate * 1e6), 1.0, 0.01)
        for level, rate in zip(LEVELS, rates, strict=False)
    ]


@pytest.mark.parametrize(
    ("rates", "best"),
    [
        ((1, 2, 4, 8, 8.1, 8.2), 8),
        ((1, 2, 4, 8, 16, 32, 64, 128, 256), 256),
        ((10, 5, 3), 1),
        ((1, 2, 4, 8, 16, 12, 8, 4), 16),
        ((3,), 1),
    ],
)
def test_the_fewest_in_flight_that_are_fast_enough(rates: tuple[float, ...], best: int) -> None:
    assert recommendation(measured(*rates))[0] == best
    assert ("may bring more" in recommendation(measured(*rates))[1]) == (best == 256)
