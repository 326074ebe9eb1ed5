"""zarr finds `aioxarray.CodecPipeline` by itself, in programs that do not import aioxarray."""

from __future__ import annotations

import pytest

from tests.runtime.helpers import run_script

NAME = "aioxarray.CodecPipeline"

MAKE = """
import sys, tempfile
import numpy as np
import zarr

def stored():
    path = tempfile.mkdtemp()
    array = zarr.create_array(path, shape=(20,), chunks=(5,), dtype="i4")
    array[:] = np.arange(20)
    return path, array
"""

POOLS = """
import multiprocessing
import operator
from concurrent.futures import ProcessPoolExecutor

if __name__ == "__main__":
    path, array = stored()
    context = multiprocessing.get_context({method!r})
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        assert pool.submit(zarr.load, path).result().tolist() == list(range(20))
        assert pool.submit(operator.getitem, array, slice(3, 6)).result().tolist() == [3, 4, 5]
        modules = pool.submit(eval, "sorted(__import__('sys').modules)").result()
    print("aioxarray" in modules)
"""

CLUSTER = """
import operator
from distributed import Client

if __name__ == "__main__":
    path, array = stored()
    with Client(n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        assert client.submit(zarr.load, path).result().tolist() == list(range(20))
        assert client.submit(operator.getitem, array, slice(3, 6)).result().tolist() == [3, 4, 5]
        modules = client.submit(eval, "sorted(__import__('sys').modules)").result()
    print("aioxarray" in modules)
"""


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZARR_CODEC_PIPELINE__PATH", NAME)


def test_a_program_that_does_not_import_aioxarray() -> None:
    code = """
path, array = stored()
assert type(array._async_array.codec_pipeline).__module__ == "aioxarray", array
assert zarr.load(path).tolist() == list(range(20))
from aioxarray import CodecPipeline
from zarr.registry import get_pipeline_class
print(get_pipeline_class() is CodecPipeline is type(array._async_array.codec_pipeline))
"""
    assert run_script(MAKE + code).split() == ["True"]


def test_coroutines_of_a_program_that_does_not_import_aioxarray() -> None:
    # zarr makes the pipeline in a coroutine: aioxarray is imported on an event loop.
    code = """
import asyncio, zarr.api.asynchronous

async def main():
    array = await zarr.api.asynchronous.create_array({}, shape=(3,), dtype="i4")
    await array.setitem(slice(None), 7)
    print(await array.getitem(slice(None)), type(array.codec_pipeline).__module__)

asyncio.run(main())
"""
    assert run_script("import zarr" + code).split() == ["[7", "7", "7]", "aioxarray"]


@pytest.mark.parametrize("method", ["spawn", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_worker_processes(method: str) -> None:
    assert run_script(MAKE + POOLS.format(method=method)).split() == ["True"]


@pytest.mark.slow
def test_dask_workers() -> None:
    # The last line: distributed may log.
    assert run_script(MAKE + CLUSTER).split()[-1] == "True"


def test_a_program_that_names_the_pipeline_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZARR_CODEC_PIPELINE__PATH")
    code = """
path, array = stored()
with zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"}):
    assert zarr.load(path).tolist() == list(range(20))
print("aioxarray" in sys.modules)
"""
    assert run_script(MAKE + code).split() == ["True"]


def test_the_pipeline_itself_is_registered_where_aioxarray_comes_first() -> None:
    code = """
from aioxarray import CodecPipeline
from zarr.registry import get_pipeline_class
print(get_pipeline_class() is CodecPipeline)
"""
    assert run_script(code).split() == ["True"]


def test_programs_with_another_pipeline_pay_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZARR_CODEC_PIPELINE__PATH")
    # Not even if aioxarray could not be imported.
    code = """
sys.modules["aioxarray"] = None
path, array = stored()
assert zarr.load(path).tolist() == list(range(20))
print("xarray" in sys.modules)
"""
    assert run_script(MAKE + code).split() == ["False"]
