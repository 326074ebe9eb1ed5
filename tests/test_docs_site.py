"""The site of the documentation: built strictly and without network, and looked at in a browser."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

import aioxarray
import aioxarray.testing
from aioxarray import errors
from aioxarray.accessors import AioAccessor
from tests.browser import CHROMIUM, Page, browser
from tests.documents import ROOT

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")


class Html(HTMLParser):
    """The anchors of a page, its links, and what it requests by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.requests: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.requests += [values["src"]] if "src" in values else []
        self.requests += [values["href"]] if tag == "link" and "href" in values else []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; a proxy that nothing listens at stands for no network."""
    folder = tmp_path_factory.mktemp("site") / "site"
    nowhere = "http://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
            "HTTP_PROXY": nowhere,
            "HTTPS_PROXY": nowhere,
        },
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path: Html(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def public_names() -> set[str]:
    names = {f"aioxarray.{name}" for name in aioxarray.__all__ if not hasattr(errors, name)}
    names |= {f"aioxarray.testing.{name}" for name in aioxarray.testing.__all__}
    names |= {
        f"aioxarray.errors.{name}"
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AioxarrayError)
    }
    methods = [name for name in vars(AioAccessor) if not name.startswith("_")]
    return names | {f"aioxarray.accessors.AioAccessor.{name}" for name in methods}


def test_every_public_name_is_on_a_page(pages: dict[Path, Html]) -> None:
    anchors = set().union(
        *(html.anchors for path, html in pages.items() if path.parent.name == "reference")
    )
    assert public_names() - anchors == set()


def test_the_reference_has_no_restructuredtext(site: Path) -> None:
    for path in (site / "reference").glob("*.html"):
        text = path.read_text("utf-8")
        assert re.findall(r"=====|::\s*</p>|<p>&gt;&gt;&gt;", text) == [], path.name


def test_no_link_is_broken(site: Path, pages: dict[Path, Html]) -> None:
    broken = []
    for path, html in pages.items():
        if path.name == "404.html":
            continue  # its links are those of a server's root
        for link in html.links:
            parts = urlsplit(urljoin(path.as_uri(), link))
            if parts.scheme != "file":
                assert parts.scheme in ("http", "https"), link
                continue
            target = Path(unquote(parts.path))
            anchors = pages[target].anchors if target in pages else set()
            if not target.is_file() or unquote(parts.fragment) not in {"", *anchors}:
                broken.append((path.relative_to(site).as_posix(), link))
    assert broken == []


def test_no_page_requests_anything_from_elsewhere(pages: dict[Path, Html]) -> None:
    for path, html in pages.items():
        for address in html.requests:
            assert urlsplit(address).scheme in ("", "data"), (path.name, address)
            assert not address.startswith("//"), (path.name, address)


# --- in a browser --------------------------------------------------------------------------------

# The start, a guide with wide code, a page of wide tables, the reference, a notebook.
SOME = [
    "index.html",
    "guides/server.html",
    "benchmarks.html",
    "reference/testing.html",
    "notebooks/bottleneck.html",
]
FORMS = [(width, scheme) for width in (1280, 400) for scheme in ("light", "dark")]
SEARCH = """new Promise((done, failed) => {
  const input = document.querySelector("[data-md-component=search-query]");
  const found = () => [...document.querySelectorAll(".md-search-result__link")]
    .map(link => [link.textContent, link.href]);
  new MutationObserver(() => found().length && done(found()))
    .observe(document.querySelector("[data-md-component=search-result]"),
             {childList: true, subtree: true});
  setTimeout(() => failed("nothing was found"), 20000);
  document.querySelector("#__search").click();
  input.focus();
  input.value = "load_async";
  input.dispatchEvent(new Event("keyup"));
  input.dispatchEvent(new Event("input"));
})"""


def complaints(page: Page) -> list[str]:
    """Return what went wrong in the pages so far, and what they requested from elsewhere."""
    found = [each["entry"]["text"] for each in page.named("Log.entryAdded")]
    found += [str(each["exceptionDetails"]) for each in page.named("Runtime.exceptionThrown")]
    calls = page.named("Runtime.consoleAPICalled")
    found += [str(each["args"]) for each in calls if each["type"] in ("error", "warning")]
    found += [str(each) for each in page.named("Network.loadingFailed")]
    urls = [each["request"]["url"] for each in page.named("Network.requestWillBeSent")]
    return found + [url for url in urls if urlsplit(url).scheme not in ("file", "data", "blob")]


async def look(page: Page, path: Path, width: int, scheme: str) -> None:
    """Open a page in a form, and check that it fits and is in the colours of the scheme."""
    await page.show_as(width, scheme)
    await page.open(path)
    assert await page.value("document.documentElement.scrollWidth") <= width, path
    shown = await page.value("document.body.getAttribute('data-md-color-scheme')")
    assert shown == {"light": "default", "dark": "slate"}[scheme]


@in_browser
def test_the_search_works_from_a_disk(site: Path, pages: dict[Path, Html], tmp_path: Path) -> None:
    async def main() -> None:
        async with browser(tmp_path / "profile") as page:
            await look(page, site / "index.html", 1280, "light")
            found = await page.value(SEARCH)
            assert any("load_async" in text for text, _ in found)
            names = {unquote(urlsplit(href).path).partition("/site/")[2] for _, href in found}
            assert "reference/loading.html" in names
            assert names <= {path.relative_to(site).as_posix() for path in pages}
            assert complaints(page) == []

    asyncio.run(main())


@in_browser
def test_pages_fit_in_light_and_dark(site: Path, tmp_path: Path) -> None:
    async def main() -> None:
        async with browser(tmp_path / "profile") as page:
            for name in SOME:
                for width, scheme in (FORMS[0], FORMS[-1]):
                    await look(page, site / name, width, scheme)
            assert complaints(page) == []

    asyncio.run(main())


@in_browser
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_pages_fit_in_light_and_dark(
    site: Path, pages: dict[Path, Html], tmp_path: Path
) -> None:
    async def main() -> None:
        async with browser(tmp_path / "profile") as page:
            for path in pages:
                if path.name != "404.html":
                    for width, scheme in FORMS:
                        await look(page, path, width, scheme)
            assert complaints(page) == []

    asyncio.run(main())
