"""The page of a trace: its data, its harmlessness, and how it behaves in a browser."""

from __future__ import annotations

import asyncio
import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import aioxarray
from aioxarray._tracing.page import page
from aioxarray._tracing.recording import Recording
from aioxarray._zarr.stores.observing.records import DecodeRecord, RequestRecord
from aioxarray.testing import RecordingStore
from tests.browser import CHROMIUM, browser
from tests.concurrency.test_requests import sample
from tests.samples import stored


class Scripts(HTMLParser):
    """The tags of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts[-1] += data


def data_of(text: str) -> Any:
    """Return the data in a page."""
    return json.loads(Scripts(text).scripts[0])


def request(number: int, key: str = "v/c/0", **values: Any) -> RequestRecord:
    begun = values.pop("begun", number * 1e-3)
    usual: dict[str, Any] = {
        "asked": begun,
        "begun": begun,
        "ended": begun + values.pop("seconds", 1e-3),
        "kind": "get",
        "attempt": 1,
        "reason": "first",
        "store": "s3://bucket",
        "range": "",
        "nbytes": 1000,
        "error": "",
        "aim": "loaded",
        "label": None,
    }
    return RequestRecord(number, key=key, **{**usual, **values})


def recording(*requests: RequestRecord, decodes: tuple[DecodeRecord, ...] = ()) -> Recording:
    ended = max((each.ended for each in requests), default=1.0)
    return Recording(0.0, ended, 0.0, requests, decodes, (), 0, 0)


def test_the_page_has_the_rows(tmp_path: Path) -> None:
    with aioxarray.trace() as t:
        aioxarray.load(aioxarray.open_zarr(RecordingStore(stored(sample()))))
    path = tmp_path / "trace.html"
    t.to_html(path)
    data = data_of(path.read_text("utf-8"))
    table, columns, names = t.requests, data["requests"], data["names"]
    assert columns["key"] == table["key"].tolist()
    assert columns["bytes"] == table["bytes"].tolist()
    assert columns["us"] == [round(1e6 * each) for each in table["transfer_s"]]
    for column in ("phase", "kind", "reason", "outcome", "error", "store"):
        plural = {"store": "stores", "error": "errors"}.get(column, f"{column}s")
        assert [names[plural][n] for n in columns[column]] == table[column].tolist()
    assert sum(data["decodes"]["chunks"]) == t.decodes["chunks"].sum() > 0
    assert dict(data["totals"])["requests"] == str(len(table))


def test_the_page_refers_to_nothing_outside() -> None:
    scripts = Scripts(page(recording(request(0))))
    assert scripts.addresses == ["data:,"]
    assert {"script", "style", "canvas"} <= set(scripts.tags)
    assert "http" not in page(recording()).replace('http-equiv="Content', "")


@pytest.mark.parametrize(
    "key", ["</script><script>alert(1)</script>", "<!--<script>", '"\\u2028&amp;', "@@DATA@@"]
)
def test_keys_do_no_harm(key: str) -> None:
    text = page(recording(request(0, key, store=key, error=key)), verdict=key)
    plain = Scripts(page(recording(request(0)))).tags
    assert Scripts(text).tags == plain
    data = data_of(text)
    assert data["requests"]["key"] == [key]
    assert data["names"]["stores"] == [key]
    assert data["verdict"] == key


def test_an_empty_trace_has_a_page() -> None:
    assert data_of(page(recording()))["requests"]["key"] == []


# --- in a browser ----------------------------------------------------------------------------

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
COUNT = 100_000


def large() -> Recording:
    """Return a recording of many requests, in 50 lanes, with failures and retries."""
    draw = random.Random(0)
    requests, decodes = [], []
    for number in range(COUNT):
        begun, seconds = number // 50 * 0.01, draw.uniform(0.002, 0.0095)
        failed = number % 1000 == 7
        requests.append(
            request(
                number,
                f"group/v{number * 8 // COUNT}/c/{number}",
                begun=begun,
                seconds=seconds,
                error="HTTP 503" if failed else "",
                nbytes=0 if failed else 4096,
            )
        )
        end = begun + seconds
        decodes.append(DecodeRecord(number, requests[-1].key, None, 1, 4096, end, end + 1e-4))
    return recording(*requests, decodes=tuple(decodes))


@in_browser
@pytest.mark.slow
def test_a_browser_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    path.write_text(page(large(), "Latency"), "utf-8")

    async def main() -> None:
        async with browser(tmp_path / "profile") as shown:
            await shown.open(path)
            metrics = (await shown.send("Performance.getMetrics"))["metrics"]
            (busy_s,) = (each["value"] for each in metrics if each["name"] == "TaskDuration")
            # The time of the page's own work, which depends little on what else runs.
            assert 0 < busy_s < 3
            assert await shown.value("document.querySelector('dd').textContent") == str(COUNT)

            tip = "document.getElementById('tip')"
            assert await shown.value(f"{tip}.hidden")
            box = await shown.value(
                "(({left, top}) => [left, top])"
                "(document.getElementById('timeline').getBoundingClientRect())"
            )
            left, top = box
            await shown.mouse("mouseMoved", left + 30, top + 18)
            text = await shown.value(f"{tip}.textContent")
            assert text.startswith("get group/v0/c/")
            assert "s3://bucket" in text

            in_range = "document.getElementById('range').textContent"
            whole = await shown.value(in_range)
            for kind, x in (("mousePressed", 100), ("mouseMoved", 140), ("mouseReleased", 140)):
                await shown.mouse(kind, left + x, top + 50, button="left", buttons=1, clickCount=1)
            part = await shown.value(in_range)
            assert part != whole
            await shown.value("document.getElementById('in').click()")
            assert await shown.value(in_range) not in (whole, part)
            await shown.value("document.getElementById('all').click()")
            assert await shown.value(in_range) == whole

            await shown.value("document.getElementById('search').focus()")
            slowest = "document.getElementById('slowest')"
            await shown.value(
                "void (window.filled = new Promise(done => new MutationObserver(done)"
                f".observe({slowest}, {{childList: true}})))"
            )
            await shown.send("Input.insertText", text="503")
            assert await shown.value("document.getElementById('matches').textContent") == (
                f"{COUNT // 1000 + _with_503()} of {COUNT} match"
            )
            rows = f"[...{slowest}.tBodies[0].rows].map(row => row.textContent)"
            found = await shown.value(f"window.filled.then(() => {rows})")
            assert len(found) == 20
            assert all("503" in row for row in found)

            assert not shown.named(
                "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"
            )
            requests = shown.named("Network.requestWillBeSent")
            assert {each["request"]["url"] for each in requests} == {path.as_uri()}

    asyncio.run(main())


def _with_503() -> int:
    """Return how many keys of `large`, of requests that did not fail, contain "503"."""
    return sum("503" in str(number) for number in range(COUNT) if number % 1000 != 7)
