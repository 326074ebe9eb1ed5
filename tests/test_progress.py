"""``progress=``: a bar, or a callable that is told bytes."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.errors import TooLargeError
from tests.samples import stored


def lazily() -> xr.Dataset:
    memory = MemoryStore()
    ds = xr.Dataset({f"v{n}": ("x", list(range(8))) for n in range(3)})
    ds.to_zarr(memory, encoding={name: {"chunks": (2,)} for name in ds}, consolidated=True)
    lazy: xr.Dataset = xr.open_zarr(memory, chunks=None)
    return lazy


TOTAL = 3 * 8 * 8


def check(told: list[tuple[int, int]]) -> None:
    assert [total for _, total in told] == [TOTAL] * len(told)
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert done[-1] == TOTAL


def test_a_callable_is_told_in_the_thread_that_waits() -> None:
    told: list[tuple[int, int]] = []
    threads: set[int] = set()

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        threads.add(threading.get_ident())

    aioxarray.load(lazily(), progress=progress)
    check(told)
    assert threads == {threading.get_ident()}


def test_a_callable_is_told_on_the_callers_loop() -> None:
    told: list[tuple[int, int]] = []

    async def main() -> None:
        here = asyncio.get_running_loop()

        def progress(done: int, total: int) -> None:
            assert asyncio.get_running_loop() is here
            told.append((done, total))

        await aioxarray.load_async(lazily(), progress=progress)
        check(told)

    asyncio.run(main())


def test_a_save_of_lazy_packed_data_ends_at_its_total() -> None:
    source, target = MemoryStore(), MemoryStore()
    coding = {"dtype": "i2", "scale_factor": 0.1, "_FillValue": -1, "chunks": (50_000,)}
    xr.Dataset({"a": ("x", np.arange(200_000.0) % 1000)}).to_zarr(source, encoding={"a": coding})
    told: list[tuple[int, int]] = []
    aioxarray.to_zarr(
        xr.open_zarr(source, chunks=None), target, progress=lambda *state: told.append(state)
    )
    assert told[-1] == (400_000, 400_000)


def test_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    aioxarray.load(lazily(), progress=True)
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert f"{TOTAL}" in shown


def test_a_bar_with_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    ds = lazily()
    store: Any = stored(ds)
    calls: list[Callable[[], object]] = [
        lambda: aioxarray.load(ds, progress="verdict"),
        lambda: asyncio.run(aioxarray.compute_async(lazily(), progress="verdict")),
        lambda: aioxarray.to_zarr(ds, MemoryStore(), progress="verdict"),
        lambda: aioxarray.load_dataset(store, engine="zarr", progress="verdict"),
    ]
    for call in calls:
        call()
        bar, _, verdict = capsys.readouterr().err.rpartition("\nBottleneck: ")
        # It comes once, after the bar.
        assert "100%" in bar
        assert "Bottleneck" not in bar
        assert verdict.count("\n") == 1
    # There is none after an error, and none without requests.
    with pytest.raises(TooLargeError):
        aioxarray.load(lazily(), progress="verdict", max_bytes=1)
    aioxarray.load(ds, progress="verdict")
    assert capsys.readouterr().err == ""


def test_an_error_is_logged_once_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ds = lazily()
    with caplog.at_level(logging.ERROR, "aioxarray"):
        aioxarray.load(ds, progress=lambda done, total: 1 / 0)
    assert [record.message for record in caplog.records] == [
        "the progress callback failed; the load goes on without it"
    ]
    assert all(variable._in_memory for variable in ds.variables.values())


def test_data_in_memory_reports_no_progress() -> None:
    told: list[tuple[int, int]] = []
    ds = lazily().load()
    aioxarray.load(ds, progress=lambda done, total: told.append((done, total)))
    assert told == []


def test_the_bar_is_imported_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "tqdm.auto":
                threads.append(threading.get_ident())

    pytest.importorskip("tqdm")
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    lazy = lazily()
    asyncio.run(aioxarray.load_async(lazy, progress=True))
    assert lazy.v1.values.tolist() == list(range(8))
    assert threads
    assert threading.get_ident() not in threads


def test_a_bar_without_tqdm_is_refused_before_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tqdm", None)
    lazy = lazily()
    with pytest.raises(ImportError, match="pip install 'aioxarray\\[progress\\]'"):
        aioxarray.load(lazy, progress=True)
    assert not lazy.v1.variable._in_memory
