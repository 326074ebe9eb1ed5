"""Explaining opens: the requests are those that the server counts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import OpenPlan, explain_open, explain_open_async
from aioxarray.testing import ObjectServer
from tests.samples import contents, stored

# Long beside the time in which the loop makes the requests of one wave.
LATENCY_S = 0.02


def sample() -> xr.Dataset:
    days = np.arange("2000-01-01", "2000-02-10", dtype="M8[D]").astype("M8[ns]")
    coordinates = {"time": days, "x": np.arange(30.0)}
    ds = xr.Dataset({"v": (("time", "x"), np.zeros((40, 30)))}, coordinates)
    ds["v"].encoding = {"chunks": (4, 30), "compressors": None}
    return ds


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer(LATENCY_S) as server:
        yield server


def put(server: ObjectServer, obj: xr.Dataset | xr.DataTree, **options: Any) -> str:
    for key, value in contents(stored(obj, **options)).items():
        server.put(f"data.zarr/{key}", value)
    server.log.clear()
    return f"{server.url}/data.zarr"


def counted(server: ObjectServer, plan: OpenPlan) -> None:
    """Compare the counts of ``plan`` with those of the server."""
    assert plan.requests == plan.total.requests == len(server.log.requests)
    assert plan.bytes_fetched == sum(each.bytes_fetched for each in plan.phases)
    assert plan.requests == sum(each.requests for each in plan.phases)
    assert plan.total.missing == sum(each.missing for each in plan.phases)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("consolidated", "round_trips"), [(True, 2), (False, 4)])
def test_the_requests_are_those_of_the_server(
    server: ObjectServer, zarr_format: int, consolidated: bool, round_trips: int
) -> None:
    url = put(server, sample(), zarr_format=zarr_format, consolidated=consolidated)
    plan = explain_open(url, opener="open_zarr", consolidated=consolidated)
    counted(server, plan)
    assert [each.name for each in plan.phases] == ["metadata", "index"]
    # The metadata is in one round trip, or in three that list it, and indexes are in one.
    assert plan.round_trips == round_trips
    assert plan.phases[1].round_trips == 1
    # The result is closed, and was not loaded: `v` has ten chunks.
    assert [each.name for each in plan.load.variables if each.requests] == ["v"]
    assert plan.load.requests == 10


def test_trees_and_coroutines(server: ObjectServer) -> None:
    tree = xr.DataTree.from_dict({"/": sample(), "/child": sample()})
    url = put(server, tree, consolidated=False)
    how: dict[str, Any] = {"opener": "open_datatree", "engine": "zarr", "consolidated": False}
    plan = asyncio.run(explain_open_async(url, **how))
    counted(server, plan)
    assert plan.load.requests == 20


def test_the_forms_agree(server: ObjectServer) -> None:
    plan = explain_open(put(server, sample(), consolidated=True), engine="zarr")
    table = plan.table()
    assert list(table.index) == ["metadata", "index"]
    assert table["requests"].sum() == plan.requests
    back = json.loads(json.dumps(plan.to_dict()))
    assert back["requests"] == plan.requests
    assert back["load"]["requests"] == plan.load.requests
    for shown in (str(plan), plan._repr_html_()):
        assert f"{plan.requests} requests, 2 round trips" in shown
        assert "A load of everything" in shown


def test_libraries_that_do_not_tell_are_opaque(tmp_path: Path) -> None:
    path = tmp_path / "a.nc"
    sample().to_netcdf(path, engine="h5netcdf")
    plan = explain_open(path)
    assert (plan.requests, plan.round_trips, plan.bytes_fetched) == (None, None, None)
    assert "opaque requests" in str(plan)
    assert plan.load.requests is None


def test_another_trace_sees_the_open_too(server: ObjectServer) -> None:
    url = put(server, sample(), consolidated=True)
    with aioxarray.trace(scope="block") as t:
        plan = explain_open(url, engine="zarr")
    assert len(t.requests) == plan.requests


def test_secrets_are_not_shown(server: ObjectServer) -> None:
    url = put(server, sample(), consolidated=True)
    plan = explain_open(url.replace("http://", "http://user:secret@"), engine="zarr")
    assert "secret" not in str(plan) + repr(plan) + json.dumps(plan.to_dict())


def test_an_unknown_function_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one of 'open_dataset', .*; got 'open_rasterio'"):
        explain_open(MemoryStore(), opener="open_rasterio")
