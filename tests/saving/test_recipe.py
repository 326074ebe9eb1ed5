"""One store written by many processes, each its own regions, as pools and array jobs do it."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import aioxarray
from tests.saving import recipe

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata")

VALUES = np.random.default_rng(0).random((80, 40))


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, str]:
    """The source, and a target that has its template."""
    source, target = str(tmp_path / "source.zarr"), str(tmp_path / "target.zarr")
    ds = xr.Dataset({"v": (("y", "x"), VALUES)}, {"y": np.arange(80)})
    aioxarray.to_zarr(ds, source, encoding={"v": {"chunks": (20, 20)}})
    recipe.template(source, target)
    return source, target


def shards(target: str) -> set[Path]:
    return {path for path in Path(target, "v", "c").rglob("*") if path.is_file()}


def assert_filled(target: str) -> None:
    found = xr.open_zarr(target, chunks=None)
    np.testing.assert_array_equal(found.v, VALUES * 2)
    np.testing.assert_array_equal(found.y, np.arange(80))
    assert len(shards(target)) == 16


def test_a_pool_of_processes(places: tuple[str, str]) -> None:
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        jobs = [pool.submit(recipe.fill, *places, rank, 3) for rank in range(3)]
        assert sum(job.result() for job in jobs) == 16
    assert_filled(places[1])


def run(places: tuple[str, str], **environment: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.saving.recipe", *places]
    subprocess.run(command, check=True, env={**os.environ, **environment}, timeout=100)


def test_an_array_job_of_which_a_part_is_repeated(places: tuple[str, str]) -> None:
    # Rank 0 was killed, and left the first of its regions.
    part = xr.Dataset({"v": (("y", "x"), VALUES[:10, :20] * 2)})
    first = {"y": slice(0, 10), "x": slice(0, 20)}
    aioxarray.to_zarr(part, places[1], region=first)
    (written,) = shards(places[1])
    before = written.stat().st_mtime_ns
    run(places, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_TASK_COUNT="2")
    assert len(shards(places[1])) == 8
    assert written.stat().st_mtime_ns == before
    run(places, RANK="1", SIZE="2")
    # The template again: it finds itself, and changes nothing.
    recipe.template(*places)
    assert_filled(places[1])
