"""Spans of OpenTelemetry: one for each call, below the caller's, and one for each request."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
import xarray as xr
from opentelemetry import trace as otel
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from zarr.storage import MemoryStore, ObjectStore

import aioxarray
from aioxarray._zarr import tuning
from aioxarray.errors import TimedOutError
from aioxarray.testing import FaultyStore, GatedStore, ObjectServer, RecordingStore
from tests.samples import contents, stored
from tests.without import raised_without

CHUNKS = 40

# A process has one provider, which can be set only once.
_exporter = InMemorySpanExporter()
_processor = SimpleSpanProcessor(_exporter)
_application = otel.get_tracer("application")


@pytest.fixture(scope="module", autouse=True)
def _provider() -> None:
    provider = TracerProvider()
    provider.add_span_processor(_processor)
    otel.set_tracer_provider(provider)


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    _exporter.clear()
    with aioxarray.config.set({"otel": True, "retry.backoff_s": 0.0}):
        yield


def many() -> xr.Dataset:
    """Return a dataset of more chunks than spans that are made at once."""
    ds = xr.Dataset({"v": ("x", np.arange(4.0 * CHUNKS))})
    ds.v.encoding["chunks"] = (4,)
    return ds


def lazy(store: Any) -> xr.Dataset:
    """Open the dataset in ``store`` without a span."""
    with aioxarray.config.set(otel=False):
        ds: xr.Dataset = aioxarray.open_zarr(store, consolidated=False)
    return ds


def spans() -> dict[str, list[ReadableSpan]]:
    """Return the spans that have ended, by name."""
    found: dict[str, list[ReadableSpan]] = {}
    for span in _exporter.get_finished_spans():
        found.setdefault(span.name, []).append(span)
    return found


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    return span.attributes or {}


def assert_below(span: ReadableSpan, parent: ReadableSpan) -> None:
    """Assert that ``span`` is a child of ``parent``, and lasted no longer."""
    assert span.parent is not None
    assert span.parent.span_id == parent.context.span_id
    assert span.context.trace_id == parent.context.trace_id
    times = [parent.start_time, span.start_time, span.end_time, parent.end_time]
    assert times == sorted(filter(None, times))


def test_calls_are_spans_below_the_callers_and_requests_below_these() -> None:
    store = RecordingStore(MemoryStore())
    with _application.start_as_current_span("handler"):
        aioxarray.to_zarr(many(), store, consolidated=False)
        written = Counter(request.key for request in store.log.requests)
        store.log.clear()
        ds = aioxarray.open_zarr(store, consolidated=False)
        opened = Counter(request.key for request in store.log.requests)
        store.log.clear()
        aioxarray.load(ds)
        loaded = Counter(request.key for request in store.log.requests)
    found = spans()
    (handler,) = found.pop("handler")
    calls = [found.pop(f"aioxarray {name}") for name in ("save", "open", "load")]
    requests = [each for group in found.values() for each in group]
    for (call,), counted in zip(calls, (written, opened, loaded), strict=True):
        assert_below(call, handler)
        ours = [each for each in requests if each.parent == call.context]
        assert Counter(attributes(each)["aioxarray.key"] for each in ours) == counted
        for each in ours:
            assert_below(each, call)
        assert attributes(call)["aioxarray.requests"] == len(ours)
        assert attributes(call)["aioxarray.requests_without_span"] == 0
    of_data = [each for each in requests if attributes(each)["aioxarray.phase"] == "data"]
    assert len(of_data) == CHUNKS
    assert {attributes(each)["aioxarray.variable"] for each in of_data} == {"v"}
    assert {each.kind for each in requests} == {otel.SpanKind.CLIENT}


def test_tasks_and_threads_belong_to_their_callers() -> None:
    ds = lazy(stored(many()))

    async def in_task(name: str) -> None:
        with _application.start_as_current_span(name):
            await aioxarray.compute_async(ds)

    async def tasks() -> None:
        await asyncio.gather(in_task("task 0"), in_task("task 1"))

    def in_thread() -> None:
        with _application.start_as_current_span("thread"):
            aioxarray.compute(ds)

    asyncio.run(tasks())
    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    found = spans()
    callers = [found[name][0] for name in ("task 0", "task 1", "thread")]
    by_parent = {load.parent.span_id: load for load in found["aioxarray load"] if load.parent}
    for caller in callers:
        assert_below(by_parent[caller.context.span_id], caller)
    # Two of the loads at once may share chunks.
    assert CHUNKS < len(found["aioxarray get"]) <= 3 * CHUNKS


def test_the_span_of_a_call_is_current_during_it() -> None:
    class Instrumented(MemoryStore):
        async def get(self, *args: Any, **kwargs: Any) -> Any:
            with _application.start_as_current_span("instrumented client"):
                return await super().get(*args, **kwargs)

    ds = lazy(Instrumented(stored(many())._store_dict))
    _exporter.clear()
    aioxarray.load(ds)
    found = spans()
    (load,) = found["aioxarray load"]
    assert load.parent is None
    assert len(found["instrumented client"]) == CHUNKS
    for each in found["instrumented client"]:
        assert_below(each, load)


def test_each_attempt_is_a_span() -> None:
    faulty = FaultyStore.kth(stored(many()), 0, ConnectionError("cut"), keys="v/c/3")
    aioxarray.load(lazy(faulty))
    of_chunk = [
        each for each in spans()["aioxarray get"] if attributes(each)["aioxarray.key"] == "v/c/3"
    ]
    failed, done = sorted(of_chunk, key=lambda each: attributes(each)["aioxarray.attempt"])
    assert failed.status.status_code is otel.StatusCode.ERROR
    assert failed.status.description == "ConnectionError"
    assert attributes(failed)["error.type"] == "ConnectionError"
    assert attributes(done)["aioxarray.reason"] == "retry"
    assert done.status.status_code is otel.StatusCode.UNSET


def test_an_error_of_a_call_is_that_of_its_span() -> None:
    ds = lazy(FaultyStore(stored(many()), lambda *_: PermissionError("no"), keys="v/c/7"))
    with pytest.raises(PermissionError):
        aioxarray.load(ds)
    (load,) = spans()["aioxarray load"]
    assert load.status.status_code is otel.StatusCode.ERROR
    (event,) = load.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "AccessDeniedError"


def test_timeouts_and_cancellation() -> None:
    inner = stored(many())
    with pytest.raises(TimedOutError):
        aioxarray.load(lazy(GatedStore(inner, keys="v/c/*")), timeout=0.01)
    gate = GatedStore(inner, keys="v/c/*")
    held = lazy(gate)

    async def cancelled() -> None:
        task = asyncio.ensure_future(aioxarray.load_async(held))
        await gate.requested("v/c/0")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    late, given_up = spans()["aioxarray load"]
    assert attributes(late)["error.type"] == "TimedOutError"
    assert attributes(given_up)["aioxarray.outcome"] == "cancelled"
    assert given_up.status.status_code is otel.StatusCode.UNSET
    assert {attributes(each)["aioxarray.outcome"] for each in spans()["aioxarray get"]} == {
        "cancelled"
    }


def test_the_spans_of_a_call_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "REQUEST_SPANS", 5)
    aioxarray.load(lazy(stored(many())))
    found = spans()
    (load,) = found["aioxarray load"]
    assert len(found["aioxarray get"]) == 5
    assert attributes(load)["aioxarray.requests"] == CHUNKS
    assert attributes(load)["aioxarray.requests_without_span"] == CHUNKS - 5


@pytest.mark.parametrize("place", ["memory", "files", "elsewhere"])
def test_the_bytes_of_a_call_are_those_of_all_its_requests(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = aioxarray.statistics().records.dropped
    inner = stored(many(), consolidated=False)
    store: Any = RecordingStore(inner) if place == "elsewhere" else inner
    if place == "files":
        # Small chunks of files are read, and told to observers, many in a row.
        many().to_zarr(tmp_path, consolidated=False)
        store = tmp_path
    monkeypatch.setattr(tuning, "REQUEST_SPANS", 5)
    aioxarray.load(lazy(store))
    (load,) = spans()["aioxarray load"]
    chunks = [value for key, value in contents(inner).items() if key.startswith("v/c/")]
    assert attributes(load)["aioxarray.bytes"] == sum(map(len, chunks))
    # The process counts those of traces only.
    assert aioxarray.statistics().records.dropped == before


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
@pytest.mark.parametrize("is_refused", [False, True])
def test_an_error_of_a_processor_is_logged_and_ends_no_call(
    moment: str,
    is_refused: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = stored(many())
    ds = lazy(FaultyStore(store, lambda *_: PermissionError("no"), keys="v/c/7"))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room for spans")

    monkeypatch.setattr(_processor, moment, fail)
    if is_refused:
        with pytest.raises(PermissionError):
            aioxarray.load(ds)
    else:
        xr.testing.assert_identical(aioxarray.load(lazy(store)), many())
    assert "no room for spans" in caplog.text


def test_no_secret_is_in_a_span() -> None:
    secret = "hunter2"
    with ObjectServer() as server:
        signed = server.url.replace("://", f"://user:{secret}@")
        client = obstore.store.HTTPStore(signed, client_options={"allow_http": True})
        store = ObjectStore(client)
        with pytest.raises(Exception, match=r"."):
            aioxarray.open_zarr(f"{signed}/missing.zarr?token={secret}")
        with pytest.raises(Exception, match=r"."):
            aioxarray.open_zarr(store, consolidated=False)
    texts = [each.to_json() for each in _exporter.get_finished_spans()]
    assert len(texts) > 4
    assert not [text for text in texts if secret in text]
    gets = spans()["aioxarray get"]
    assert {attributes(each)["server.address"] for each in gets} == {"127.0.0.1"}


def test_there_are_none_unless_asked_for_or_sampled() -> None:
    ds = lazy(stored(many()))
    with aioxarray.config.set(otel=False):
        aioxarray.load(ds.copy())
    with otel.use_span(otel.INVALID_SPAN), aioxarray.trace() as t:
        aioxarray.load(ds)
    assert len(t.requests) == CHUNKS
    assert [each.name for each in _exporter.get_finished_spans()].count("aioxarray load") == 1


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_values_other_than_true_and_false_are_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=f"otel must be True or False, got {value!r}"):
        aioxarray.config.set(otel=value)


def test_without_opentelemetry_the_setting_is_refused(tmp_path: Path) -> None:
    call = "aioxarray.config.set(otel=True)"
    (error,) = raised_without(["opentelemetry"], {"set": call}, tmp_path).values()
    assert error.kinds[0] == "ImportError"
    assert "pip install 'aioxarray[otel]'" in error.text
