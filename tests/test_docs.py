"""Every block of code in README and the documentation runs, or says why it does not."""

from __future__ import annotations

import copy
import logging
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import zarr

import aioxarray
from aioxarray.testing import ObjectServer
from tests import documents
from tests.documents import PAGES, Block, blocks

# The blocks of these pages have tests of their own.
ELSEWHERE = {
    ("docs/cli.md", "sh"): "tests/cli/test_docs.py",
    ("docs/guides/server.md", "python"): "tests/test_docs_server.py",
    ("docs/guides/many-processes.md", "python"): "tests/test_docs_processes.py",
}
# Output, not code.
SHOWN = {"text"}
WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    documents.make_data(folder)
    return folder


@pytest.fixture
def server(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The server of the examples, for HTTP and S3, and a folder with local files."""
    shutil.copytree(data, tmp_path / "served")
    shutil.copytree(data, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "any",
        "AWS_SECRET_ACCESS_KEY": "any",
        "AWS_DEFAULT_REGION": "any",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    with ObjectServer(root=tmp_path / "served") as server:
        shutil.copytree(data / "radar.zarr", tmp_path / "served" / "bucket" / "radar.zarr")
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        # fsspec keeps filesystems, and with them the server of an earlier page.
        s3fs.S3FileSystem.clear_instance_cache()
        yield server
        s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def process_as_before() -> Iterator[None]:
    """Undo what a page does to loggers and to zarr in this process, for later tests."""
    loggers = [logging.getLogger(), logging.getLogger("aioxarray.requests")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    pipeline = "codec_pipeline.path"
    with zarr.config.set({pipeline: zarr.config.get(pipeline)}):
        yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


def test_the_pages_have_code() -> None:
    assert {"README.md", "docs/start.md", "docs/guides/server.md"} <= set(WITH_CODE)
    assert sum(len(blocks(page)) for page in PAGES) > 40


@pytest.mark.usefixtures("process_as_before")
@pytest.mark.parametrize("page", WITH_CODE)
def test_blocks_run(page: str, server: ObjectServer) -> None:
    space = documents.names(server)
    before = copy.deepcopy(aioxarray.config.config)
    try:
        for block in blocks(page):
            if not is_elsewhere(block):
                run(block, space, server)
    finally:
        aioxarray.config.set(before)


def is_elsewhere(block: Block) -> bool:
    """Return whether a block is output, or has a test elsewhere, or a reason not to run."""
    where = ELSEWHERE.get((block.page, block.language))
    if where is not None:
        assert (documents.ROOT / where).is_file()
    return bool(block.language in SHOWN or where or block.reason)


def run(block: Block, space: dict[str, object], server: ObjectServer) -> None:
    if block.language == "python":
        documents.execute(block, space, server)
    elif block.language == "sh":
        from aioxarray.cli import main

        for line in block.code.splitlines():
            first, *arguments = shlex.split(line.replace(documents.URL, server.url), comments=True)
            assert first == "aioxarray", f"{block.page}:{block.line}: {line} is not run here"
            assert main(arguments) == 0
    else:
        raise AssertionError(f"{block.page}:{block.line}: nothing runs {block.language}")


def test_reasons_are_given_where_they_are_needed() -> None:
    for page in PAGES:
        text = (documents.ROOT / page).read_text("utf-8")
        reasons = [block for block in blocks(page) if block.reason]
        assert text.count("<!-- not run: ") == len(reasons), page
        assert all(len(block.reason.split()) >= 3 for block in reasons), page


def test_no_page_names_a_path_of_a_machine() -> None:
    home = os.path.expanduser("~")
    for page in PAGES:
        text = (documents.ROOT / page).read_text("utf-8")
        assert home == "/" or f"{home}/" not in text, page
