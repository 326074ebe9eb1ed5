"""Fetching, decoding, reading and computing happen in other threads than the caller's loop."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import dask.array
import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.backends.common import BackendArray
from xarray.coding.common import lazy_elemwise_func
from xarray.core import indexing
from zarr.abc.codec import BytesBytesCodec
from zarr.registry import register_codec
from zarr.storage import LocalStore, MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore, Request
from tests.blocking import blocking_calls
from tests.concurrency.helpers import PATIENCE_S, io_thread, lazily, same, written
from tests.loops import every_loop
from tests.runtime.helpers import run_script

if TYPE_CHECKING:
    from zarr.abc.store import Store

T = TypeVar("T")

SIZE = 4096  # numbers, so that the values are decoded in a thread


class Held:
    """Some work, in whatever thread: it waits until the caller's loop, being free, lets it end."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.threads: list[threading.Thread] = []

    def __call__(self) -> None:
        self.threads.append(threading.current_thread())
        self.begun.set()
        assert self.may_end.wait(PATIENCE_S)


# --- kinds of work -----------------------------------------------------------------------------


class HeldStore(RecordingStore):
    """A store that holds up the loop on which it is asked for a chunk."""

    def __init__(self, store: Store, held: Held) -> None:
        super().__init__(store)
        self._held = held

    async def _request(self, request: Request, send: Callable[[], Awaitable[T]]) -> T:
        if "/c/" in request.key:
            self._held()
        return await super()._request(request, send)


@dataclass(frozen=True)
class HeldCodec(BytesBytesCodec):
    """A codec that blocks the thread that decodes with it; metadata names it, so one serves all."""

    is_fixed_size = True
    held = Held()

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls()

    def to_dict(self) -> dict[str, Any]:
        return {"name": "aioxarray.test.held", "configuration": {}}

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        type(self).held()
        return chunk_bytes

    async def _encode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return chunk_bytes

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: Any) -> int:
        return input_byte_length


register_codec("aioxarray.test.held", HeldCodec)


class OtherArray(BackendArray):
    """An array of a backend that only knows blocking reads."""

    def __init__(self, held: Held) -> None:
        self.shape = (SIZE,)
        self.dtype = np.dtype("i8")
        self._held = held

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: Any) -> Any:
        self._held()
        return np.arange(SIZE)[key]


class AsyncArray(OtherArray):
    """An array of a backend that brings its own coroutine, which takes its time."""

    async def async_getitem(self, key: indexing.ExplicitIndexer) -> Any:
        return self[key]


def stored(**options: Any) -> MemoryStore:
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=3)
    array = group.create_array(
        "a", shape=(SIZE,), chunks=(SIZE,), dtype="i8", dimension_names=["x"], **options
    )
    array[:] = np.arange(SIZE)
    return store


def from_store(held: Held) -> xr.Dataset:
    return lazily(HeldStore(stored(), held))


def from_codec(held: Held) -> xr.Dataset:
    HeldCodec.held = held
    return lazily(stored(compressors=[HeldCodec()]))


def from_codec_of_files(held: Held) -> xr.Dataset:
    HeldCodec.held = held
    memory = stored(compressors=[HeldCodec()])
    import tempfile

    root = Path(tempfile.mkdtemp())
    for key, value in memory._store_dict.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(value.to_bytes())
    return lazily(LocalStore(root, read_only=True))


def from_codec_in_shards(held: Held) -> xr.Dataset:
    HeldCodec.held = held
    store = MemoryStore()
    group = zarr.create_group(store, zarr_format=3)
    array = group.create_array(
        "a",
        shape=(SIZE,),
        shards=(SIZE,),
        chunks=(SIZE // 4,),
        dtype="i8",
        dimension_names=["x"],
        compressors=[HeldCodec()],
    )
    array[:] = np.arange(SIZE)
    return lazily(store)


def dataset(data: Any) -> xr.Dataset:
    return xr.Dataset({"a": xr.Variable("x", data)})


def from_backend(held: Held) -> xr.Dataset:
    return dataset(indexing.LazilyIndexedArray(OtherArray(held)))


def from_async_backend(held: Held) -> xr.Dataset:
    return dataset(indexing.LazilyIndexedArray(AsyncArray(held)))


def decoded(held: Held, data: Any) -> Any:
    def function(values: Any) -> Any:
        held()
        return values

    return lazy_elemwise_func(data, function, np.dtype("i8"))


def from_decoding(held: Held) -> xr.Dataset:
    free = Held()
    free.may_end.set()
    data = decoded(held, indexing.LazilyIndexedArray(OtherArray(free)))
    return dataset(indexing.LazilyIndexedArray(data))


def from_dask(held: Held) -> xr.Dataset:
    def block(values: Any) -> Any:
        held()
        return values

    array = dask.array.arange(SIZE, chunks=SIZE).map_blocks(block, dtype="i8", meta=np.zeros(0))
    return dataset(array)


@dataclass(frozen=True)
class Work:
    """A kind of work, and the thread that does it."""

    dataset: Callable[[Held], xr.Dataset]
    thread: str


WORK = {
    "fetching": Work(from_store, "zarr_io"),
    "decompressing": Work(from_codec, "aioxarray-decode"),
    "decompressing files": Work(from_codec_of_files, "aioxarray-decode"),
    # zarr's own code, on the I/O loop or in threads of it.
    "decompressing shards": Work(from_codec_in_shards, ""),
    "decoding": Work(from_decoding, "aioxarray-decode"),
    "a blocking backend": Work(from_backend, "aioxarray-blocking"),
    "an asynchronous backend": Work(from_async_backend, "zarr_io"),
    # The pool of dask's threaded scheduler.
    "dask": Work(from_dask, ""),
}


@pytest.mark.parametrize("kind", WORK)
@every_loop
async def test_the_callers_loop_goes_on_while_something_works(kind: str) -> None:
    held, work = Held(), WORK[kind]
    ds = await anyio.to_thread.run_sync(work.dataset, held)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(aioxarray.load_async, ds)
        # Only a loop that is not held up comes to the next lines.
        assert await anyio.to_thread.run_sync(held.begun.wait, PATIENCE_S)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        held.may_end.set()
    assert held.threads
    for thread in held.threads:
        assert thread is not threading.current_thread()
        assert thread.name.startswith(work.thread)
    assert ds.a.values.tolist() == list(range(SIZE))


@pytest.mark.parametrize("kind", WORK)
def test_a_blocking_call_works_in_the_same_threads(kind: str) -> None:
    held, work = Held(), WORK[kind]
    held.may_end.set()
    ds = work.dataset(held)
    aioxarray.load(ds)
    assert held.threads
    for thread in held.threads:
        assert thread is not threading.current_thread()
        assert thread.name.startswith(work.thread)


def test_the_io_loop_goes_on_while_something_decodes() -> None:
    held = Held()
    ds = from_codec(held)
    caller = threading.Thread(target=lambda: aioxarray.load(ds), name="caller")
    caller.start()
    assert held.begun.wait(PATIENCE_S)
    other = lazily(written(3, 4))
    # With one decoding thread more to spare, or none: these are small, and memory is near.
    with aioxarray.config.set(threads=2):
        aioxarray.load(other)
    same(other, 3, 4)
    held.may_end.set()
    caller.join(PATIENCE_S)
    assert not caller.is_alive()


@every_loop
async def test_progress_is_told_on_the_callers_loop() -> None:
    ds = await anyio.to_thread.run_sync(lambda: lazily(written(3, 4)))
    threads: list[int] = []
    await aioxarray.load_async(ds, progress=lambda *_: threads.append(threading.get_ident()))
    assert set(threads) == {threading.get_ident()}


def test_the_io_loop_has_a_thread_of_its_own() -> None:
    assert io_thread() != threading.get_ident()


FIRST_LOAD = """
import asyncio, sys, threading
import xarray as xr
import aioxarray
from tests.concurrency.helpers import lazily, written

class Watch:
    def __init__(self):
        self.found = []

    def find_spec(self, name, path=None, target=None):
        if threading.current_thread() is threading.main_thread():
            self.found.append(name)

async def main(ds):
    sys.meta_path.insert(0, watch)
    await aioxarray.load_async(ds)
    sys.meta_path.remove(watch)

watch = Watch()
asyncio.run(main(lazily(written(2, 2))))
print("imported:", *watch.found)
"""


def test_the_first_load_of_a_process_imports_nothing_on_the_callers_loop() -> None:
    """The detector lets imports pass; the first caller's loop would wait for them all the same."""
    assert run_script(FIRST_LOAD).splitlines()[-1] == "imported:"


# --- the detector --------------------------------------------------------------------------------


def sleeps(*_: Any) -> None:
    time.sleep(0)


def waits(*_: Any) -> None:
    held = threading.Lock()
    held.acquire()
    assert not held.acquire(timeout=1e-6)


def reads(*_: Any) -> None:
    Path(__file__).read_text()


@pytest.mark.parametrize("call", [sleeps, waits, reads])
def test_a_blocking_call_on_the_callers_loop_is_found(call: Callable[..., None]) -> None:
    """A callback that aioxarray calls there stands for its own code, in which there is none."""
    ds = lazily(written(1, 1))
    with blocking_calls() as found:
        asyncio.run(aioxarray.load_async(ds, progress=call))
    assert len(found) >= 1
    assert call.__name__ in found[0]
    assert "progress.py" in found[0]


def test_a_callers_loop_in_another_thread_is_watched_too() -> None:
    ds = lazily(written(1, 1))

    def call() -> None:
        asyncio.run(aioxarray.load_async(ds, progress=sleeps))

    with blocking_calls() as found:
        thread = threading.Thread(target=call, name="caller")
        thread.start()
        thread.join()
    assert len(found) == 1


def test_blocking_of_the_loop_by_a_test_itself_is_ignored() -> None:
    async def main() -> None:
        sleeps()
        reads()
        same(aioxarray.load(lazily(written(1, 1))), 1, 1)

    with blocking_calls() as found:
        asyncio.run(main())
    assert not found


def test_blocking_of_the_io_loop_is_ignored() -> None:
    held = Held()
    held.may_end.set()
    ds = from_store(held)
    with blocking_calls() as found:
        asyncio.run(aioxarray.load_async(ds))
    assert held.threads
    assert not found


SUITE = """
import asyncio, sys, time
from pathlib import Path
import pytest

suite = '''
import asyncio, time
import aioxarray
from tests.conftest import caller_stays_free
from tests.concurrency.helpers import lazily, written

def test_that_blocks():
    ds = lazily(written(1, 1))
    asyncio.run(aioxarray.load_async(ds, progress=lambda *_: time.sleep(0)))

def test_that_does_not():
    ds = lazily(written(1, 1))
    asyncio.run(aioxarray.load_async(ds))
'''
Path(sys.argv[1], "test_it.py").write_text(suite)
options = ["-p", "no:cacheprovider", "-c", "pyproject.toml", "--rootdir", "."]
sys.exit(pytest.main([*options, str(Path(sys.argv[1], "test_it.py"))]) != 1)
"""


@pytest.mark.slow
def test_the_suite_fails_a_test_that_blocks(tmp_path: Path) -> None:
    code = f"import sys; sys.argv[1:] = [{str(tmp_path)!r}]\n{SUITE}"
    output = run_script(code)
    assert "2 passed, 1 error" in output
    assert "blocking calls; the first: time.sleep was called on the caller's loop" in output
