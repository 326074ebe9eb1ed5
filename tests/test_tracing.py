"""Traces: every request and decoding step is a row, with its times, its place and its outcome."""

from __future__ import annotations

import asyncio
import html
import json
import logging
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import obstore.store
import pytest
import xarray as xr
from zarr.storage import LocalStore, MemoryStore, ObjectStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.stores.observing.observers import listeners
from aioxarray._zarr.stores.observing.records import place_of
from aioxarray.testing import FaultyStore, GatedStore, ObjectServer, RecordingStore
from tests.concurrency.clients import fsspec_http, obstore_http
from tests.concurrency.helpers import followed
from tests.concurrency.sessions import close_all, closed_later
from tests.concurrency.test_requests import (
    appends,
    counted,
    loads,
    loads_points,
    opens,
    opens_without_consolidated,
    sample,
    saves_again,
    tree,
)
from tests.samples import contents, stored

if TYPE_CHECKING:
    import pandas as pd

SERVED = 40


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in contents(stored(many(), consolidated=False)).items():
            server.put(key, value)
        yield server


@pytest.fixture(autouse=True)
def no_session_stays() -> Iterator[None]:
    yield
    run_blocking(close_all)


def many() -> xr.Dataset:
    """Return a dataset of so many chunks that threads read them from a server close by."""
    ds = xr.Dataset({"v": ("x", np.arange(SERVED * 4.0))})
    ds.v.encoding["chunks"] = (4,)
    return ds


def rows(table: pd.DataFrame, **wanted: Any) -> pd.DataFrame:
    """Return the rows with these values."""
    for name, value in wanted.items():
        table = table[table[name] == value]
    return table


def keys(table: pd.DataFrame) -> Counter[tuple[str, str]]:
    return Counter(zip(table["kind"], table["key"], strict=True))


# --- every request is a row ------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [opens, opens_without_consolidated, loads, loads_points, saves_again, appends],
    ids=lambda way: way.__name__,
)
def test_rows_are_the_requests_of_the_store(way: Callable[[Any], None]) -> None:
    inner = stored(xr.DataTree.from_dict({"/": sample(), "/child": sample()}))
    store = RecordingStore(inner)
    with aioxarray.trace() as t:
        way(store)
    assert keys(t.requests) == counted(store)
    assert set(t.requests["outcome"]) == {"done"}
    assert t.dropped == 0


def test_rows_of_shards_have_byte_ranges() -> None:
    inner = stored(sample(shards=(4, 8)))
    store: Any = RecordingStore(inner)
    with aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(store).isel(x=slice(0, 2)))
    assert keys(t.requests) == counted(store)
    index, inner_chunk = (rows(t.requests, key="a/c/0/0")["range"]).tolist()
    assert index.startswith("-")
    first, _, last = inner_chunk.partition("-")
    nbytes = rows(t.requests, key="a/c/0/0", range=inner_chunk)["bytes"].item()
    assert int(last) - int(first) + 1 == nbytes


@pytest.mark.parametrize("client", [obstore_http, fsspec_http], ids=lambda client: client.__name__)
def test_rows_are_the_requests_of_the_server(
    server: ObjectServer, client: Callable[[str], Any]
) -> None:
    ds = aioxarray.open_zarr(closed_later(client(server.url)), consolidated=False)
    server.log.clear()
    with aioxarray.trace() as t:
        aioxarray.load(ds)
    table = t.requests
    assert len(table) == server.log.snapshot().completed == SERVED
    assert set(table["key"]) == {f"v/c/{n}" for n in range(SERVED)}
    assert table["bytes"].sum() == sum(len(server.data[key]) for key in table["key"])
    assert set(table["variable"]) == {"v"}
    assert set(table["phase"]) == {"data"}
    assert t.decodes["chunks"].sum() == SERVED
    assert t.decodes["bytes"].sum() == table["bytes"].sum()


@pytest.mark.parametrize("scope", ["process", "block"])
@pytest.mark.parametrize("kind", [LocalStore, MemoryStore])
def test_stores_at_hand_have_rows(kind: Any, scope: Any, tmp_path: Path) -> None:
    store: Any = LocalStore(tmp_path) if kind is LocalStore else MemoryStore()
    with aioxarray.trace(scope=scope) as t:
        aioxarray.to_zarr(many(), store, consolidated=False)
        ds = aioxarray.load(aioxarray.open_zarr(store, consolidated=False))
    xr.testing.assert_identical(ds, many())
    written = rows(t.requests, phase="write")
    read = rows(t.requests, phase="data")
    assert set(written["key"]) == set(contents(store))
    assert Counter(read["key"]) == Counter({f"v/c/{n}": 1 for n in range(SERVED)})
    assert read["bytes"].sum() == t.decodes["bytes"].sum() > 0
    assert t.decodes["chunks"].sum() == SERVED
    assert set(t.decodes["variable"]) == {"v"}


def test_the_row_of_a_file_that_cannot_be_read_has_its_error(tmp_path: Path) -> None:
    aioxarray.to_zarr(many(), tmp_path, consolidated=False)
    lazy = aioxarray.open_zarr(tmp_path, consolidated=False)
    chunk = tmp_path / "v/c/3"
    chunk.unlink()
    chunk.symlink_to(chunk)
    with aioxarray.trace() as t, pytest.raises(OSError, match="symbolic links"):
        aioxarray.load(lazy)
    failed = t.requests[t.requests["outcome"] == "failed"]
    assert list(failed["key"]) == ["v/c/3"]
    assert list(failed["error"]) == ["OSError"]
    done = t.requests[t.requests["outcome"] == "done"]
    assert {"v/c/0", "v/c/1", "v/c/2"} <= set(done["key"]) <= {f"v/c/{n}" for n in range(SERVED)}
    assert (t.requests["start"] <= t.requests["end"]).all()


def test_decoding_by_zarrs_own_codecs_has_rows() -> None:
    delta = {"a": {"chunks": (2, 8), "filters": [numcodecs.Delta("f8")]}}
    inner = stored(sample(), zarr_format=2, encoding=delta)
    with aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(RecordingStore(inner)))
    assert t.decodes.groupby("variable")["chunks"].sum().to_dict() == {"a": 4, "b": 4, "x": 1}


# --- what a row says -------------------------------------------------------------------------


def test_rows_have_phases_and_places() -> None:
    store: Any = RecordingStore(MemoryStore())
    with aioxarray.trace() as t:
        aioxarray.to_zarr(tree(), store)
        aioxarray.load(aioxarray.open_datatree(store, engine="zarr"))
    table = t.requests
    assert set(rows(table, phase="write")["kind"]) == {"set"}
    assert set(rows(table, phase="index")["key"]) == {"x/c/0"}
    data = rows(table, phase="data")
    assert Counter(zip(data["group"], data["variable"], strict=True)) == {
        (group, name): 4 for group in ("/", "/child", "/child/leaf") for name in "ab"
    }
    assert set(rows(table, phase="metadata")["kind"]) <= {"get", "list", "exists"}
    assert (table["queued_s"] >= 0).all()
    assert (table["transfer_s"] > 0).all()
    assert table["start"].is_monotonic_increasing
    assert (table["end"] - table["start"] - table["transfer_s"]).abs().max() < 1e-9


def test_waiting_for_a_place_is_no_transfer() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))
    with aioxarray.trace() as t:
        aioxarray.load(ds, concurrency=1)
    table = t.requests
    assert (table["start"].to_numpy()[1:] >= table["end"].to_numpy()[:-1]).all()
    # The two variables take turns; so nearly all requests have waited for one of the other.
    second = table.iloc[1]
    assert second["queued_s"] > 0
    assert second["start"] - second["queued_s"] < second["start"]


def test_each_attempt_is_a_row() -> None:
    inner = stored(sample())
    ds = aioxarray.open_zarr(FaultyStore.kth(inner, 0, ConnectionError("cut"), keys="a/c/0/0"))
    quick = aioxarray.config.set({"retry.backoff_s": 0.0})
    with quick, aioxarray.trace() as t:
        aioxarray.load(ds)
    attempts = rows(t.requests, key="a/c/0/0")
    assert attempts[["attempt", "reason", "outcome", "error"]].to_numpy().tolist() == [
        [1, "first", "failed", "ConnectionError"],
        [2, "retry", "done", ""],
    ]
    assert attempts["bytes"].iloc[0] == 0
    assert "retries: 1, failed: 1" in t.summary()


def test_cancelled_requests_are_rows() -> None:
    gate = GatedStore(stored(sample()), keys="a/c/*")
    ds = aioxarray.open_zarr(gate)[["a"]]

    async def main() -> None:
        load = asyncio.create_task(aioxarray.load_async(ds))
        await gate.requested("a/c/*", 4)
        load.cancel()
        await asyncio.wait([load])

    with aioxarray.trace() as t:
        asyncio.run(main())
    assert Counter(rows(t.requests, outcome="cancelled")["key"]) == Counter(
        f"a/c/{n}/0" for n in range(4)
    )


def test_shared_chunks_are_counted() -> None:
    gate = GatedStore(stored(sample()), keys="a/c/*")
    ds = aioxarray.open_zarr(gate)[["a"]]

    async def main() -> None:
        first = asyncio.create_task(aioxarray.compute_async(ds))
        await gate.requested("a/c/*", 4)
        second = asyncio.create_task(aioxarray.compute_async(ds.isel(x=slice(2, 6))))
        await followed(2)
        gate.release_all()
        await asyncio.gather(first, second)

    with aioxarray.trace() as t:
        asyncio.run(main())
    assert t.shared == 2
    assert len(t.requests) == 4
    assert "2 shared chunks" in t.summary()


@pytest.mark.parametrize(
    ("key", "label", "place"),
    [
        ("a/c/0/1", None, ("/", "a")),
        ("g/h/a/c/0", None, ("/g/h", "a")),
        ("a/c", None, ("/", "a")),
        ("a/c.0.1", None, ("/", "a")),
        ("a/0.1", None, ("/", "a")),
        ("g/a/0/1", None, ("/g", "a")),
        ("5/c/0", None, ("/", "5")),
        ("c/c/0", None, ("/", "c")),
        ("c/0.0", "variable 'c'", ("/", "c")),
        ("g/a/zarr.json", None, ("/g", "a")),
        ("zarr.json", None, ("/", "")),
        ("", "variable 'v' of group '/g'", ("/g", "v")),
        ("", "variable 'v' in obj[0]", ("/", "v")),
        ("", None, ("", "")),
        ("child", None, ("", "")),
    ],
)
def test_places(key: str, label: str | None, place: tuple[str, str]) -> None:
    assert place_of(key, label) == place


# --- what is recorded ------------------------------------------------------------------------


def test_traces_nest() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))
    with aioxarray.trace() as outer:
        aioxarray.load(ds[["a"]])
        with aioxarray.trace(scope="block") as inner:
            aioxarray.load(ds[["b"]])
    assert set(outer.requests["variable"]) == {"a", "b"}
    assert set(inner.requests["variable"]) == {"b"}


def test_a_block_records_its_own_calls_only() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))

    async def traced(name: str, together: asyncio.Barrier) -> aioxarray.Trace:
        async with aioxarray.trace(scope="block") as t:
            await together.wait()
            await asyncio.create_task(aioxarray.load_async(ds[[name]]))
            await asyncio.to_thread(aioxarray.compute, ds[["x", name]])
            await together.wait()
        return t

    async def main() -> tuple[aioxarray.Trace, aioxarray.Trace]:
        together = asyncio.Barrier(2)
        return await asyncio.gather(traced("a", together), traced("b", together))

    with aioxarray.trace() as everything:
        a, b = asyncio.run(main())
    assert set(a.requests["variable"]) == {"a"}
    assert set(b.requests["variable"]) == {"b"}
    assert keys(everything.requests) == keys(a.requests) + keys(b.requests)
    assert set(a.decodes["variable"]) == {"a"}


def test_a_process_trace_records_all_threads() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))
    with aioxarray.trace() as t:
        thread = threading.Thread(target=lambda: asyncio.run(aioxarray.load_async(ds)))
        thread.start()
        thread.join()
    assert len(t.requests) == 8


def test_threads_that_wait_for_a_server_belong_to_their_block(server: ObjectServer) -> None:
    ds = aioxarray.open_zarr(obstore_http(server.url), consolidated=False)
    with aioxarray.trace(scope="block") as t:
        aioxarray.load(ds)
    assert len(t.requests) == t.decodes["chunks"].sum() == SERVED


def test_the_oldest_go() -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(many(), consolidated=False)), consolidated=False)
    with aioxarray.trace(most=10) as t:
        aioxarray.load(ds)
    assert len(t.requests) == 10
    assert t.dropped == SERVED - 10
    assert f"{SERVED - 10} older requests were dropped" in t.summary()
    assert len(t.decodes) == 10


def test_the_oldest_calls_and_cached_chunks_go() -> None:
    ds = aioxarray.open_zarr(stored(sample()))
    with aioxarray.config.set(cache="1MiB"):
        aioxarray.compute(ds)
        with aioxarray.trace(most=1) as t:
            aioxarray.compute(ds)
            aioxarray.compute(ds)
    recording = t._recording()
    assert len(recording.calls) == len(recording.brought) == 1


def test_nothing_is_observed_after_the_block() -> None:
    ds = aioxarray.open_zarr(stored(sample()))
    with aioxarray.trace() as t, aioxarray.trace(scope="block"):
        assert listeners()
    assert not listeners()
    aioxarray.load(ds)
    assert t.requests.empty
    assert t.decodes.empty
    assert t.summary().startswith("0 requests")
    assert t._repr_html_().startswith("<pre>0 requests")


def test_an_error_of_the_block_ends_the_trace() -> None:
    with pytest.raises(ZeroDivisionError), aioxarray.trace():
        1 / 0  # noqa: B018 - raises
    assert not listeners()


def test_a_trace_records_once() -> None:
    with aioxarray.trace() as t:
        pass
    with pytest.raises(RuntimeError, match="records once"), t:
        pass


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scope": "call"}, ValueError, "scope must be"),
        ({"most": 0}, ValueError, "most must be at least 1"),
        ({"most": 1.5}, TypeError, "most must be a number"),
    ],
)
def test_invalid_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        aioxarray.trace(**arguments)


# --- other ways to see it --------------------------------------------------------------------


def test_perfetto_events_have_the_rows(tmp_path: Path) -> None:
    ds = aioxarray.open_zarr(RecordingStore(stored(sample())))
    with aioxarray.trace() as t:
        aioxarray.load(ds)
    path = tmp_path / "trace.json"
    t.to_perfetto(path)
    events = json.loads(path.read_text("utf-8"))["traceEvents"]
    spans = [each for each in events if each["ph"] == "X"]
    requests = [each for each in spans if each["cat"] != "decode"]
    assert [each["name"] for each in requests] == t.requests["key"].tolist()
    assert [each["args"]["bytes"] for each in requests] == t.requests["bytes"].tolist()
    assert len(spans) - len(requests) == len(t.decodes)
    processes = {
        each["pid"]: each["args"]["name"]
        for each in events
        if each["ph"] == "M" and each["name"] == "process_name"
    }
    assert [processes[each["pid"]] for each in requests] == t.requests["variable"].tolist()
    # What overlaps is not in one thread.
    threads: dict[Any, float] = {}
    for each in spans:
        thread = each["pid"], each["tid"]
        assert threads.get(thread, 0.0) <= each["ts"] + 0.1
        threads[thread] = each["ts"] + each["dur"]


def test_a_plot_has_the_rows() -> None:
    pyplot_was_there = "matplotlib.pyplot" in sys.modules
    with aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(RecordingStore(stored(sample()))))
    figure = t.plot()
    figure.canvas.draw()
    lanes, flights = figure.axes
    assert {each.get_text() for each in lanes.get_yticklabels()} == {"/", "a", "b", "x"}
    assert len(lanes.patches) == len(t.requests) + len(t.decodes)
    bars: Any = lanes.patches
    starts = sorted(each.get_x() for each in bars)
    assert starts == sorted([*t.requests["start"], *t.decodes["start"]])
    top = np.asarray(flights.collections[0].get_paths()[0].vertices)[:, 1].max()
    assert f"at most {top:.0f} in flight" in t.summary()
    assert html.escape(t.summary()) in t._repr_html_()
    assert html.escape(str(t.verdict())) in t._repr_html_()
    assert ("matplotlib.pyplot" in sys.modules) == pyplot_was_there


def test_an_empty_trace_and_many_variables_have_plots() -> None:
    with aioxarray.trace() as t:
        pass
    t.plot().canvas.draw()
    wide = xr.Dataset({f"v{n}": ("x", [n]) for n in range(40)})
    with aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(RecordingStore(stored(wide))))
    assert "variables" in t.plot().axes[0].get_ylabel()


def test_a_plot_without_matplotlib_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with (
        aioxarray.trace() as t,
        pytest.raises(ImportError, match=r"pip install matplotlib.*to_html"),
    ):
        t.plot()


def test_requests_are_logged_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    inner = stored(sample())
    ds = aioxarray.open_zarr(FaultyStore.kth(inner, 0, ConnectionError("cut"), keys="a/c/0/0"))
    quick = aioxarray.config.set({"retry.backoff_s": 0.0})
    with quick, caplog.at_level(logging.DEBUG, "aioxarray.requests"):
        aioxarray.compute(ds)
        aioxarray.compute(aioxarray.open_zarr(inner))
    lines = [each.getMessage() for each in caplog.records if each.name == "aioxarray.requests"]
    of_chunk = [line for line in lines if "'a/c/0/0'" in line]
    assert len(of_chunk) == 3
    assert re.fullmatch(
        r"get 'a/c/0/0' of 'memory://\d+': ConnectionError after \d+\.\d ms, queued for .* ms",
        of_chunk[0],
    )
    assert re.search(r": \d+ bytes in .* ms, queued for .* ms, attempt 2 \(retry\)$", of_chunk[1])
    assert re.search(r": \d+ bytes in \d+\.\d ms$", of_chunk[2])


def test_nothing_is_logged_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "aioxarray.requests"):
        aioxarray.load(aioxarray.open_zarr(stored(sample())))
        assert not listeners()
    assert not [each for each in caplog.records if each.name == "aioxarray.requests"]


def test_no_secret_is_shown(
    server: ObjectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = "hunter2"
    signed = server.url.replace("://", f"://user:{secret}@")
    client = obstore.store.HTTPStore(signed, client_options={"allow_http": True})
    with caplog.at_level(logging.DEBUG, "aioxarray.requests"), aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(ObjectStore(client), consolidated=False))
    t.to_html(tmp_path / "trace.html")
    t.to_perfetto(tmp_path / "trace.json")
    texts = [path.read_text("utf-8") for path in tmp_path.iterdir()]
    texts += [t.summary(), str(t.verdict()), t.requests.to_string(), repr(t), t._repr_html_()]
    texts += [each.getMessage() for each in caplog.records]
    assert len(t.requests) >= SERVED
    assert not [text for text in texts if secret in text]
    assert server.url in texts[0]
