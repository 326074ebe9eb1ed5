"""The settings: where they come from, what they may be, and when a bad one is refused."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._runtime.system.cores import usable_cores
from aioxarray._settings.retry_policy import RetryPolicy
from aioxarray.config import (
    cache_limit,
    config,
    is_hedging,
    memory_limit,
    request_limit,
    retry_policy,
    thread_count,
)
from aioxarray.testing import GatedStore, RecordingStore
from tests import samples
from tests.oracle import lazy
from tests.samples import opened, stored


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> Iterator[None]:
    """Read the settings as a process with these variables in its environment does."""
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    config.refresh()
    try:
        yield
    finally:
        monkeypatch.undo()
        config.refresh()


# --- values --------------------------------------------------------------------------------------


def test_the_defaults() -> None:
    assert request_limit() == 128
    assert memory_limit() == 2**30
    assert thread_count() == usable_cores()
    assert cache_limit() == 0


@pytest.mark.parametrize(
    ("value", "limit"),
    [(1, 1), (128, 128), (np.int32(7), 7), (0, math.inf), (-1, math.inf), (-(10**9), math.inf)],
)
def test_concurrency(value: Any, limit: float) -> None:
    with config.set(concurrency=value):
        assert request_limit() == limit
        # What a call brings goes before the setting.
        assert request_limit(5) == 5
        assert request_limit(0) == math.inf
    assert request_limit(value) == limit
    assert request_limit() == 128


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (1, 1),
        (np.int64(4096), 4096),
        (0, math.inf),
        (-5, math.inf),
        ("0", math.inf),
        ("-1GiB", math.inf),
        ("100", 100),
        ("100B", 100),
        ("2k", 2000),
        ("2kB", 2000),
        ("2 kB", 2000),
        (" 2KB ", 2000),
        ("3MB", 3 * 10**6),
        ("4G", 4 * 10**9),
        ("1KiB", 1024),
        ("512 MiB", 512 * 2**20),
        ("1.5GiB", 3 * 2**29),
        ("2gib", 2**31),
        (f"1{'0' * 400}", 10**400),
    ],
)
def test_memory(value: Any, limit: float) -> None:
    with config.set(memory=value):
        assert memory_limit() == limit
    assert memory_limit() == 2**30


@pytest.mark.parametrize(
    ("value", "limit"),
    [(None, 0), (0, 0), (-1, 0), ("-1GiB", 0), (np.int64(4096), 4096), ("1.5GiB", 3 * 2**29)],
)
def test_cache(value: Any, limit: int) -> None:
    with config.set(cache=value):
        assert cache_limit() == limit
    assert cache_limit() == 0


@pytest.mark.parametrize("value", [1, 3, np.int8(2)])
def test_threads(value: Any) -> None:
    with config.set(threads=value):
        assert thread_count() == value


@pytest.fixture
def plain_retries() -> Iterator[None]:
    """The retries of the profiles, which other tests shorten."""
    with config.set({"retry.backoff_s": None}):
        yield


@pytest.mark.usefixtures("plain_retries")
def test_retries() -> None:
    interactive = RetryPolicy(attempts=10, deadline=30, backoff_s=0.2, longest_s=5)
    batch = RetryPolicy(attempts=40, deadline=600, backoff_s=0.5, longest_s=30)
    assert retry_policy() == interactive
    with config.set(retry="batch"):
        assert retry_policy() == batch
        with config.set({"retry.attempts": 3, "retry.deadline": 1.5}):
            assert retry_policy() == replace(batch, attempts=3, deadline=1.5)
            with config.set(retry="interactive", retry__backoff_s=0):
                expected = replace(interactive, attempts=3, deadline=1.5, backoff_s=0)
                assert retry_policy() == expected
        with config.set(retry={"profile": "interactive", "attempts": 2}):
            assert retry_policy() == replace(interactive, attempts=2)
        assert retry_policy() == batch
    assert retry_policy() == interactive


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        ({"retry": "often"}, ValueError, "retry must be 'interactive' or 'batch', got 'often'"),
        ({"retry": 3}, ValueError, "retry must be 'interactive' or 'batch', got 3"),
        ({"retry.attempts": 0}, ValueError, "retry.attempts must be at least 1, .* got 0"),
        ({"retry.attempts": 1.5}, TypeError, r"retry.attempts must be an integer, got 1.5"),
        ({"retry.deadline": -1}, ValueError, "retry.deadline must not be negative, got -1"),
        ({"retry.deadline": float("nan")}, ValueError, "retry.deadline must not be .*, got nan"),
        ({"retry.backoff_s": "1 s"}, TypeError, r"retry.backoff_s must be a number of seconds"),
        ({"retry.backoff_s": True}, TypeError, r"retry.backoff_s must .* got True \(bool\)"),
        ({"retry.pause": 1}, ValueError, "no setting 'retry.pause'; .* retry.attempts"),
        ({"retry": {"pause": 1}}, ValueError, "no setting 'retry.pause'"),
    ],
)
def test_a_bad_setting_of_retries_is_refused_at_once(
    values: dict[str, Any], kind: type[Exception], words: str
) -> None:
    was = retry_policy()
    with pytest.raises(kind, match=words):
        config.set(values)
    assert retry_policy() == was


@pytest.mark.parametrize(
    "values",
    [
        {"AIOXARRAY_RETRY": "batch"},
        {"AIOXARRAY_RETRY__PROFILE": "batch", "AIOXARRAY_RETRY__ATTEMPTS": "7"},
    ],
)
def test_retries_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    with environment(monkeypatch, values):
        attempts = 7 if len(values) == 2 else 40
        assert (retry_policy().attempts, retry_policy().deadline) == (attempts, 600)
        with config.set({"retry.attempts": 2}):
            assert (retry_policy().attempts, retry_policy().deadline) == (2, 600)


@contextmanager
def as_if_from_a_file(name: str, value: Any) -> Iterator[None]:
    """Give a setting a value that `config.set` does not check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.config, name, value)
        yield


BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("concurrency", "32", TypeError, r"concurrency must be an integer or 'auto', got '32' \(str\)"),
    (
        "concurrency",
        1.0,
        TypeError,
        r"concurrency must be an integer or 'auto', got 1\.0 \(float\)",
    ),
    (
        "concurrency",
        True,
        TypeError,
        r"concurrency must be an integer or 'auto', got True \(bool\)",
    ),
    ("concurrency", None, TypeError, r"concurrency must be an integer or 'auto', got None"),
    (
        "concurrency",
        [4],
        TypeError,
        r"concurrency must be an integer or 'auto', got \[4\] \(list\)",
    ),
    ("memory", 1e9, TypeError, r"number of bytes or a text like '1GiB', got 1000000000\.0 \(float"),
    (
        "memory",
        None,
        TypeError,
        r"memory must be a number of bytes or a text like '1GiB', got None",
    ),
    ("memory", False, TypeError, r"memory must be a number of bytes .*, got False \(bool\)"),
    ("memory", "", ValueError, r"memory must be a number of bytes .*, got ''"),
    ("memory", "much", ValueError, r"memory must be a number of bytes .*, got 'much'"),
    ("memory", "1 TiB", ValueError, r"memory must be .*, got '1 TiB'"),
    ("memory", "1GiB/s", ValueError, r"memory must be .*, got '1GiB/s'"),
    ("memory", "inf", ValueError, r"memory must be .*, got 'inf'"),
    ("threads", 0, ValueError, r"threads must be at least 1, or None for one a core; got 0"),
    ("threads", -2, ValueError, r"threads must be at least 1, .* got -2"),
    ("threads", "2", TypeError, r"threads must be an integer, got '2' \(str\)"),
    ("threads", 1.5, TypeError, r"threads must be an integer, got 1\.5 \(float\)"),
    ("threads", True, TypeError, r"threads must be an integer, got True \(bool\)"),
    ("cache", True, TypeError, r"cache must be a number of bytes or a text .*, got True \(bool\)"),
    ("cache", 1e9, TypeError, r"cache must be a number of bytes or a text .*, got 1000000000\.0"),
    ("cache", "all", ValueError, r"cache must be a number of bytes or a text .*, got 'all'"),
    ("queue", -1, ValueError, r"queue must not be negative, got -1; None means no limit"),
    ("queue", 1.5, TypeError, r"queue must be an integer or None, got 1\.5 \(float\)"),
    ("queue", True, TypeError, r"queue must be an integer or None, got True \(bool\)"),
    ("queue", "", TypeError, r"queue must be an integer or None, got '' \(str\)"),
    ("stall_s", 0, ValueError, r"stall_s must be more than 0, .* got 0"),
    ("stall_s", -1, ValueError, r"stall_s must not be negative, got -1"),
    ("stall_s", math.nan, ValueError, r"stall_s must not be negative, got nan"),
    ("stall_s", True, TypeError, r"stall_s must be a number of seconds, got True \(bool\)"),
    ("stall_s", 10**400, ValueError, r"stall_s must be at most 2e\+308"),
    ("hedge", "no", TypeError, r"hedge must be True or False, got 'no'"),
    ("hedge", 1, TypeError, r"hedge must be True or False, got 1"),
    ("otel", "off", TypeError, r"otel must be True or False, got 'off'"),
    ("tensorstore", "off", TypeError, r"tensorstore must be 'auto', True or False, got 'off'"),
    ("tensorstore", 1, TypeError, r"tensorstore must be 'auto', True or False, got 1"),
]


@pytest.mark.parametrize(("name", "value", "kind", "words"), BAD)
def test_a_bad_setting_is_refused_at_once(
    name: str, value: Any, kind: type[Exception], words: str
) -> None:
    was = repr(config)
    with pytest.raises(kind, match=words):
        config.set({name: value})
    assert repr(config) == was


@pytest.mark.parametrize(("name", "value", "kind", "words"), BAD)
def test_a_bad_setting_of_a_file_is_refused_before_the_first_request(
    name: str, value: Any, kind: type[Exception], words: str
) -> None:
    store = RecordingStore(stored(samples.numbers()))
    objects: list[Any] = [opened(store), samples.numbers(), []]
    store.log.clear()
    was = lazy(objects[0])
    with as_if_from_a_file(name, value):
        for obj in objects:
            for method in (aioxarray.load, aioxarray.compute):
                with pytest.raises(kind, match=words):
                    method(obj)
            with pytest.raises(kind, match=words):
                asyncio.run(aioxarray.load_async(obj))
    assert store.log.requests == ()
    assert lazy(objects[0]) == was
    aioxarray.load(objects[0])
    xr.testing.assert_identical(objects[0], samples.numbers())


def test_a_bad_limit_is_refused_by_opening_too() -> None:
    store = RecordingStore(stored(samples.numbers()))
    with as_if_from_a_file("concurrency", "8"):
        with pytest.raises(TypeError, match="concurrency must be an integer or 'auto', got '8'"):
            aioxarray.open_zarr(store)
    assert store.log.requests == ()


# --- where they come from ------------------------------------------------------------------------


def test_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "AIOXARRAY_CONCURRENCY": "7",
        "AIOXARRAY_MEMORY": "64MiB",
        "AIOXARRAY_THREADS": "3",
        "AIOXARRAY_CACHE": "1MiB",
    }
    with environment(monkeypatch, values):
        assert cache_limit() == 2**20
        assert (request_limit(), memory_limit(), thread_count()) == (7, 64 * 2**20, 3)
        # Code goes before the environment.
        with config.set(concurrency=9, memory=1000, threads=None):
            assert (request_limit(), memory_limit(), thread_count()) == (9, 1000, usable_cores())
        assert request_limit() == 7
    assert request_limit() == 128


def test_limits_of_the_environment_may_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "AIOXARRAY_CONCURRENCY": "0",
        "AIOXARRAY_MEMORY": "-1",
        "AIOXARRAY_THREADS": "None",
    }
    with environment(monkeypatch, values):
        assert (request_limit(), memory_limit()) == (math.inf, math.inf)
        assert thread_count() == usable_cores()


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("CACHE", "much", ValueError),
        ("CONCURRENCY", "many", TypeError),
        ("HEDGE", "no", TypeError),
        ("MEMORY", "1e9", TypeError),
        ("QUEUE", "-1", ValueError),
        ("RETRY", "often", ValueError),
        ("RETRY__ATTEMPTS", "0", ValueError),
        ("RETRY__DEADLINE", "soon", TypeError),
        ("STALL_S", "soon", TypeError),
        ("THREADS", "0", ValueError),
    ],
)
def test_a_bad_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, kind: type[Exception]
) -> None:
    with environment(monkeypatch, {f"AIOXARRAY_{name}": value}):
        setting = name.lower().replace("__", ".")
        with pytest.raises(kind, match=setting) as caught:
            aioxarray.load(samples.numbers())
        assert f"AIOXARRAY_{name}" in " ".join(caught.value.__notes__)
        with pytest.raises(kind, match=setting):
            aioxarray.open_zarr("memory://nothing")
        store = MemoryStore()
        with pytest.raises(kind, match=setting):
            aioxarray.to_zarr(samples.numbers(), store)
        assert not store._store_dict


@pytest.mark.parametrize("value", ["false", "False", "FALSE"])
def test_a_switch_is_off_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    with environment(monkeypatch, {"AIOXARRAY_HEDGE": value, "AIOXARRAY_THREADS": "none"}):
        assert not is_hedging()
        assert thread_count() == usable_cores()


def shown() -> dict[str, list[str]]:
    """Return the lines of the settings by their names: a value, and where it comes from."""
    _, *lines = repr(config).splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_the_settings_show_where_they_come_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("threads: 2\nretry: {deadline: 7}\nmemory: 2GiB\n")
    monkeypatch.setattr(config, "paths", [str(tmp_path)])
    values = {
        "AIOXARRAY_MEMORY": "64MiB",
        "AIOXARRAY_RETRY__ATTEMPTS": "7",
        "AIOXARRAY_MEMROY": "1GiB",
    }
    with environment(monkeypatch, values):
        with config.set(queue=3):
            lines = shown()
            assert lines["queue"] == ["3", "set"]
            assert lines["concurrency"] == ["'default'", "default"]
            assert lines["threads"] == ["2", str(tmp_path)]
            assert lines["memory"] == ["'64MiB'", "AIOXARRAY_MEMORY"]
            assert lines["retry"] == ["'interactive'", "default"]
            assert lines["retry.attempts"] == ["7", "AIOXARRAY_RETRY__ATTEMPTS"]
            assert lines["retry.deadline"] == ["7", str(tmp_path)]
            assert "'memroy' of AIOXARRAY_MEMROY is no setting" in repr(config)
        assert shown()["queue"] == ["None", "default"]
    with environment(monkeypatch, {"AIOXARRAY_RETRY": "batch"}):
        assert shown()["retry"] == ["'batch'", "AIOXARRAY_RETRY"]


SHOW = (
    "import aioxarray as a; c = a.config; print(*map(c.get, ['concurrency', 'memory', 'threads']))"
)


def test_a_new_process_reads_files_and_its_environment(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("concurrency: 5\nmemory: 2GiB\nthreads: 2\n")
    variables = {
        "AIOXARRAY_CONFIG": str(tmp_path),
        "AIOXARRAY_MEMORY": "3GiB",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    shown = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    # The environment goes before the file.
    assert shown.stdout.split() == ["5", "3GiB", "2"]


# --- what they do --------------------------------------------------------------------------------


def chunked(size: int) -> MemoryStore:
    """Sixteen chunks of so many numbers, a variable."""
    ds = xr.Dataset({name: ("x", np.arange(16 * size)) for name in ("a", "b")})
    return stored(ds, encoding={name: {"chunks": (size,)} for name in ds})


def assert_most_at_once(store: MemoryStore, count: int) -> None:
    """Assert that a load has ``count`` requests in flight when it can get no further."""
    gate = GatedStore(store, keys="*/c/*")
    counter = RecordingStore(gate)
    ds = opened(counter)
    counter.log.clear()

    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(aioxarray.load_async(ds))
            await gate.requested("*/c/*", count)
            gate.release_all()

    asyncio.run(main())
    assert counter.log.most_in_flight == count
    assert len(counter.log.requests) == 32


@pytest.mark.parametrize(
    ("memory", "count"), [("1KiB", 2), (5 * 512, 5), (1, 1), ("512B", 1), (0, 32), (-1, 32)]
)
def test_memory_bounds_the_bytes_of_chunks_in_flight(memory: int | str, count: int) -> None:
    # Of a chunk larger than all memory there is one at a time.
    with config.set(memory=memory):
        assert_most_at_once(chunked(64), count)


def test_settings_are_read_when_a_call_begins() -> None:
    with config.set(concurrency=3):
        assert_most_at_once(chunked(4), 3)
        with config.set(concurrency=11):
            assert_most_at_once(chunked(4), 11)
        assert_most_at_once(chunked(4), 3)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_with_the_setting(threads: int) -> None:
    with config.set(threads=threads):
        ds = aioxarray.load(opened(chunked(4096)))
    assert ds.a.values.tolist() == list(range(16 * 4096))


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="no setting 'concurency'; it has concurrency, memory"):
        config.set(concurency=3)
    with pytest.raises(ValueError, match="no setting 'requests'"):
        config.set({"requests": 3})
    assert "concurency" not in config
