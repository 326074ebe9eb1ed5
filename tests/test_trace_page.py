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
            # The processor time of the page's own work.
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


# Ratios of the contrast with the background: of texts, of the marks in the legend, which have the
# colors of the timeline, and of the texts in the canvases.
CONTRASTS = """(() => {
  const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = new Map();
  const rgb = (color) => {
    if (!known.has(color)) {
      ink.clearRect(0, 0, 1, 1);
      ink.fillStyle = color;
      ink.fillRect(0, 0, 1, 1);
      known.set(color, [...ink.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(color);
  };
  const luminance = (color) => rgb(color).slice(0, 3).map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const ratio = (...colors) => {
    const [dark, light] = colors.map(luminance).sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const behind = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return rgb(color)[3] === 255 ? color : behind(element.parentElement);
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const root = getComputedStyle(document.documentElement);
  const color = (name) => root.getPropertyValue(`--${name}`);
  const search = document.getElementById("search");
  return {
    texts: all("h1, h2, header span, dt, dd, button, output, li, th, td").filter(
      (element) => element.textContent).map((element) =>
        [element.textContent, ratio(getComputedStyle(element).color, behind(element))]),
    hint: ratio(getComputedStyle(search, "::placeholder").color, behind(search)),
    marks: all(".legend i").map((mark) => [mark.parentElement.textContent,
      ratio(getComputedStyle(mark).backgroundColor, behind(mark.parentElement))]),
    drawn: ratio(color("text"), color("band")),
  };
})()"""

# The texts that are wider than their place, and the elements that end beyond the right edge. Tables
# scroll on their own.
OVERFLOWING = """[...document.querySelectorAll("body *:not(script)")].filter((element) =>
  (!element.closest("table") && element.getBoundingClientRect().right > innerWidth) ||
  (element.matches("dd, dt, button, output, td, th") && element.clientWidth
    && element.scrollWidth > element.clientWidth + 1)
).map((element) => element.outerHTML.slice(0, 80))"""


def varied() -> Recording:
    """Return a recording with every phase and outcome, and with long names."""
    long_name = "a_long_name_of_a_group/of_its_group/and_of_a_variable"
    decoded = DecodeRecord(0, "v/c/0", None, 1, 1000, 0.5, 0.6)
    return recording(
        request(0, "zarr.json", aim="opened", seconds=0.05),
        request(1, "time/c/0", aim="opened", begun=0.05, seconds=0.05),
        *(request(2 + n, f"v/c/{n}", begun=0.1, seconds=0.1 + 0.01 * n) for n in range(20)),
        request(22, f"{long_name}/c/0", begun=0.2, seconds=0.2, error="HTTP 503: " + 9 * "slow, "),
        request(23, f"{long_name}/c/0", begun=0.4, seconds=0.2, attempt=2, reason="retry"),
        request(24, "w/c/0", kind="set", begun=0.3, seconds=0.2),
        request(25, "w/c/1", begun=0.4, seconds=0.1, error=None),
        decodes=(decoded,),
    )


@in_browser
@pytest.mark.slow
def test_it_can_be_read_at_any_width_in_light_and_dark(tmp_path: Path) -> None:
    pages = {"varied": varied(), "large": large()}
    for name, each in pages.items():
        (tmp_path / f"{name}.html").write_text(page(each, 4 * "A sentence of some words. "))
    forms = [("varied", width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]

    async def main() -> None:
        async with browser(tmp_path / "profile") as shown:
            for name, width, scheme in (*forms, ("large", 400, "dark")):
                await shown.show_as(width, scheme)
                await shown.open(tmp_path / f"{name}.html")
                assert await shown.value("innerWidth") == width
                assert await shown.value("document.documentElement.scrollWidth") <= width
                assert await shown.value(OVERFLOWING) == []
                contrasts = await shown.value(CONTRASTS)
                # The least ratios of WCAG 2.2, level AA, for texts and for graphics.
                pale = [each for each in contrasts["texts"] if each[1] < 4.5]
                faint = [each for each in contrasts["marks"] if each[1] < 3]
                assert (pale, faint) == ([], [])
                assert contrasts["hint"] >= 4.5
                assert contrasts["drawn"] >= 4.5
                assert len(contrasts["marks"]) == (7 if name == "varied" else 3)

    asyncio.run(main())


@in_browser
@pytest.mark.slow
def test_the_axis_tells_moments_apart_however_near(tmp_path: Path) -> None:
    path = tmp_path / "trace.html"
    path.write_text(page(recording(request(0, begun=9.99999, seconds=1e-5))))
    texts = (
        "const draw = CanvasRenderingContext2D.prototype.fillText; window.drawn = [];"
        "CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {"
        "  if (this.canvas.id === 'axis') drawn.push(text); draw.call(this, text, ...place); }"
    )

    async def main() -> None:
        async with browser(tmp_path / "profile") as shown:
            await shown.open(path)
            await shown.value(f"void (() => {{ {texts} }})()")
            for _ in range(20):
                await shown.value("void (drawn.length = 0, document.getElementById('in').click())")
                labels = await shown.value("drawn")
                assert len(labels) >= 4
                assert len(set(labels)) == len(labels)
            start, _, end = (
                await shown.value("document.getElementById('range').textContent")
            ).partition(" to ")
            assert start != end

    asyncio.run(main())
