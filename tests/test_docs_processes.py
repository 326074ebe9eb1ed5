"""The programs of the guide to many processes, each run as a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from aioxarray.testing import ObjectServer
from tests import documents
from tests.documents import Block, blocks

PAGE = "docs/guides/many-processes.md"
POOL, FILES, SHARED, ARRAY_JOB = blocks(PAGE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    documents.make_data(folder)
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=folder) as server:
        yield server


def printed(block: Block, server: ObjectServer, folder: Path, **environment: str) -> list[str]:
    """Run the code as a file, as a user does, and return the lines that it prints."""
    program = folder / f"line_{block.line}.py"
    program.write_text(block.code.replace(documents.URL, server.url), "utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", program],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Not even a warning of a resource tracker.
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_pool(server: ObjectServer, folder: Path) -> None:
    t2m = documents.era5().t2m
    first = float(t2m[:240].mean())
    assert printed(POOL, server, folder) == [f"6 means, the first {first:.2f} K"]


def test_a_pool_of_files(server: ObjectServer, folder: Path) -> None:
    last = float(documents.era5().t2m[48:72, :10].mean())
    assert printed(FILES, server, folder) == [f"3 means, the last {last:.2f} K"]


def test_shared_memory(server: ObjectServer, folder: Path) -> None:
    t2m = documents.era5().t2m
    assert printed(SHARED, server, folder) == [f"{t2m.shape}, mean {t2m.values.mean():.2f} K"]


def test_an_array_job(server: ObjectServer, folder: Path) -> None:
    lines = [
        printed(
            ARRAY_JOB, server, folder, SLURM_ARRAY_TASK_ID=str(rank), SLURM_ARRAY_TASK_COUNT="2"
        )
        for rank in range(2)
    ]
    days = np.datetime64("2024-01-01") + 10 * np.arange(6)
    assert [line[:10] for job in lines for line in job] == [
        *days[0::2].astype(str),
        *days[1::2].astype(str),
    ]
