"""Pieces for torch: tensors that share memory with what was loaded, and datasets for loaders."""

from __future__ import annotations

import gc
import json
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr

import aioxarray
from aioxarray._xarray.streaming.pieces import Piece
from aioxarray.testing import RecordingStore
from tests.runtime.helpers import run_script
from tests.samples import opened, stored

# Of some GB: see the extra in pyproject.toml.
torch: Any = pytest.importorskip("torch")

import aioxarray.torch  # noqa: E402 - without torch, it cannot be imported
from aioxarray.torch.handing import allocated  # noqa: E402

CODE = """
from tests import loaders

if __name__ == "__main__":
    loaders.{name}()
    print("fine")
"""

STEPS = 10


def dataset() -> xr.Dataset:
    values = np.arange(STEPS * 6, dtype="f4").reshape(STEPS, 2, 3)
    times = np.arange(STEPS).astype("M8[h]").astype("M8[ns]")
    return xr.Dataset({"a": (("time", "y", "x"), values)}, {"time": times})


def pieces() -> aioxarray.Blocks[xr.Dataset]:
    return aioxarray.blocks(opened(stored(dataset())), {"time": 3})


def same(items: Any, numbers: Any = range(4)) -> None:
    """Assert that ``items`` are the tensors of the pieces with ``numbers``."""
    items = list(items)
    expected = list(aioxarray.blocks(dataset(), {"time": 3}))
    assert len(items) == len(list(numbers))
    for item, number in zip(items, numbers, strict=True):
        assert item.keys() == {"a"}
        np.testing.assert_array_equal(item["a"].numpy(), expected[number].a)


# --- tensors --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    one: Any
    two: Any


def test_tensors_share_memory() -> None:
    ds = dataset()
    found = aioxarray.torch.as_tensors(ds)
    # Its data variables, and no coordinates.
    assert found.keys() == {"a"}
    assert found["a"].data_ptr() == ds.a.values.ctypes.data
    assert aioxarray.torch.as_tensors(ds.a).data_ptr() == ds.a.values.ctypes.data
    assert aioxarray.torch.as_tensors(ds.a.variable).data_ptr() == ds.a.values.ctypes.data
    part = aioxarray.torch.as_tensors(ds.a.isel(x=slice(None, None, 2)))
    assert part.data_ptr() == ds.a.values.ctypes.data
    assert part.stride() == (6, 3, 2)
    tree = aioxarray.torch.as_tensors(xr.DataTree.from_dict({"/deep": ds}))
    assert tree["deep"]["a"].data_ptr() == ds.a.values.ctypes.data
    tensor = torch.zeros(2)
    nest = {"pair": Pair(ds.a, [ds.a.values]), "label": "cat", "number": 3, "tensor": tensor}
    nested = aioxarray.torch.as_tensors(nest)
    assert isinstance(nested["pair"], Pair)
    assert nested["pair"].two[0].data_ptr() == ds.a.values.ctypes.data
    assert nested["label"] == "cat"
    assert nested["number"] == 3
    assert nested["tensor"] is tensor


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i2", "u2", "i8", "f2", "f4", "f8", "c8"])
def test_dtypes(dtype: str) -> None:
    array = np.arange(4).astype(dtype)
    tensor = aioxarray.torch.as_tensors(array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == array.dtype
    assert tensor.data_ptr() == array.ctypes.data
    # A scalar has no memory of its own.
    assert aioxarray.torch.as_tensors(array[1]).item() == array[1]


def test_bfloat16() -> None:
    types = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -2.0, 3.0]).astype(types.bfloat16)
    tensor = aioxarray.torch.as_tensors(array)
    assert tensor.dtype == torch.bfloat16
    assert tensor.tolist() == [1.5, -2.0, 3.0]
    assert tensor.data_ptr() == array.ctypes.data


def test_arrays_that_cannot_be_shared_are_copied() -> None:
    array = np.arange(4.0)
    read_only = np.broadcast_to(array, (2, 4))
    records = np.zeros(3, [("flag", "u1"), ("value", "f4")])
    for each in (array[::-1], array.astype(">f8"), read_only, records["value"]):
        tensor = aioxarray.torch.as_tensors(each)
        np.testing.assert_array_equal(tensor.numpy(), each)
        tensor.zero_()
    np.testing.assert_array_equal(array, np.arange(4.0))


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (
            np.zeros(2, "M8[ns]"),
            r"no dtype for variable 'bad', datetime64\[ns\].*astype\('int64'\)",
        ),
        (np.zeros(2, "m8[s]"), "timedelta64.*convert it to numbers"),
        (np.array(["a", "b"]), "drop it"),
        (np.array([None, {}], object), "variable 'bad', object"),
        (np.zeros(2, "V3"), "variable 'bad'"),
        (np.zeros(2, "g"), "variable 'bad', float128"),
    ],
)
def test_dtypes_that_torch_lacks(array: Any, match: str) -> None:
    with pytest.raises(TypeError, match=match):
        aioxarray.torch.as_tensors(xr.Dataset({"bad": ("x", array)}))


def test_other_libraries_take_loaded_values_by_dlpack() -> None:
    piece = aioxarray.load(opened(stored(dataset())))
    array = np.from_dlpack(piece.a.data)
    assert np.shares_memory(array, piece.a.values)
    assert np.shares_memory(np.asarray(piece.a), piece.a.values)


def test_loading_into_tensors() -> None:
    ds = dataset()
    tensor = torch.zeros((2, STEPS, 2, 3))[1].share_memory_()
    array = aioxarray.load(opened(stored(ds)).a, out=tensor)
    np.testing.assert_array_equal(tensor.numpy(), ds.a)
    assert array.values.ctypes.data == tensor.data_ptr()
    lazily = opened(stored(ds)).a
    for wrong, match in (
        (torch.zeros(ds.a.shape, dtype=torch.bfloat16), "numpy has no view of out, a Tensor"),
        (torch.zeros(ds.a.shape, requires_grad=True), "numpy has no view of out, a Tensor"),
        (torch.zeros(ds.a.shape, device="meta"), "out"),
    ):
        with pytest.raises(TypeError, match=match):
            aioxarray.load(lazily, out=wrong)


# --- the single-process form ----------------------------------------------------------------------


def test_a_stream_of_tensors() -> None:
    with aioxarray.torch.tensors(aioxarray.stream(pieces())) as found:
        same(found)
    with aioxarray.torch.tensors(aioxarray.stream(pieces()), device="cpu") as found:
        same(found)


def test_a_transform_gets_xarray() -> None:
    def scaled(piece: xr.Dataset) -> Any:
        return {"a": piece.a - 1, "hour": piece.time.dt.hour}

    loaded = aioxarray.stream(pieces(), transform=scaled)
    with aioxarray.torch.tensors(loaded) as found:
        first = next(found)
    np.testing.assert_array_equal(first["a"].numpy(), dataset().a[:3] - 1)
    assert first["hour"].tolist() == [0, 1, 2]


def test_values_are_read_into_memory_of_torch() -> None:
    made: list[Any] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Any:
        # As for page-locked memory, which needs a GPU.
        array = allocated(shape, dtype, pin_memory=False)
        made.append(array)
        return array

    loaded = aioxarray.stream(pieces())
    loaded._read_into(allocate)
    with aioxarray.torch.tensors(loaded) as found:
        items = list(found)
    same(items)
    places = {array.ctypes.data for array in made}
    assert len(places) == 4
    assert places == {item["a"].data_ptr() for item in items}


def test_copies_into_memory_of_torch_count_as_held(tmp_path: Path) -> None:
    def beside(ds: Any) -> list[int]:
        return [Piece(ds, allocates=allocates).beside for allocates in (False, True)]

    ds = dataset().drop_vars("time")
    # Read straight into it.
    assert beside(opened(stored(ds))) == [0, 0]
    ds.to_netcdf(tmp_path / "a.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "a.nc", engine="scipy") as file:
        assert beside(file.drop_encoding()) == [0, ds.nbytes]
    assert beside(ds.chunk()) == [0, ds.nbytes]
    packed = stored(ds, encoding={"a": {"dtype": "i2", "scale_factor": 1.0, "_FillValue": -1}})
    lazily = opened(packed)
    assert beside(lazily) == [lazily.nbytes] * 2


@pytest.mark.parametrize("dtype", ["f4", "?", "c16", "i8"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 5)])
def test_memory_of_torch(shape: tuple[int, ...], dtype: str) -> None:
    array = allocated(shape, np.dtype(dtype), pin_memory=False)
    assert array is not None
    assert array.shape == shape
    assert array.dtype == dtype
    assert array.flags.writeable
    assert array.flags.c_contiguous


def test_no_memory_of_torch_for_its_missing_dtypes() -> None:
    for dtype in ("M8[ns]", "O", "U3", ">f4"):
        assert allocated((2,), np.dtype(dtype), pin_memory=False) is None


class Uploads:
    """Stands in for uploads to a GPU, and records when each begins and arrives."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.begun_count = 0

    def begun(self, item: Any) -> Any:
        self.log.append(f"begin {self.begun_count}")
        self.begun_count += 1
        return item, self.begun_count - 1

    def arrived(self, begun: Any) -> Any:
        item, number = begun
        self.log.append(f"arrive {number}")
        return item

    def finish(self) -> None:
        self.log.append("finish")


class Prompt(aioxarray.Stream[Any]):
    """A stream whose next piece is always there."""

    def _has_ready(self) -> bool:
        return True


def test_one_upload_ahead() -> None:
    steps = [dataset().isel(time=[n]) for n in range(3)]
    prompt = Prompt(steps, ahead="1MiB", ordered=True, transform=None, epochs=1)
    found = aioxarray.torch.tensors(prompt)
    uploads: Any = Uploads()
    found._uploads = uploads
    states = []
    with found:
        for item in found:
            uploads.log.append(f"step {item['a'][0, 0, 0].item() / 6:.0f}")
            states.append(found.state_dict()["index"])
    assert uploads.log == [
        *("begin 0", "arrive 0", "begin 1", "step 0"),
        *("arrive 1", "begin 2", "step 1"),
        *("arrive 2", "step 2", "finish"),
    ]
    # The position is that of the consumer, not that of the uploads.
    assert states == [1, 2, 3]


def test_an_error_comes_in_its_turn() -> None:
    def fail(piece: xr.Dataset) -> xr.Dataset:
        if piece.a[0, 0, 0] == 18:
            raise LookupError("no")
        return piece

    found = aioxarray.torch.tensors(aioxarray.stream(pieces(), transform=fail))
    uploads: Any = Uploads()
    found._uploads = uploads
    with found:
        next(found)
        with pytest.raises(LookupError, match="no"):
            next(found)
        with pytest.raises(StopIteration):
            next(found)


def test_bad_arguments() -> None:
    loaded = aioxarray.stream(pieces())
    with pytest.raises(TypeError, match=r"pass aioxarray\.stream"):
        aioxarray.torch.tensors(pieces())  # type: ignore[arg-type]
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no CUDA GPU"):
            aioxarray.torch.tensors(loaded, device="cuda")
        with pytest.raises(ValueError, match="pin=True needs a CUDA GPU"):
            aioxarray.torch.tensors(loaded, pin=True)
    make = aioxarray.torch.IterableBlocks
    with pytest.raises(TypeError, match=r"those of aioxarray.blocks"):
        make([dataset()])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="transform must be a function"):
        make(pieces(), transform=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ahead"):
        make(pieces(), ahead="-1MiB")
    with pytest.raises(ValueError, match="give both"):
        make(pieces(), rank=0)
    with pytest.raises(ValueError, match="rank must be less than world"):
        make(pieces(), rank=2, world=2)
    source = make(pieces())
    with pytest.raises(ValueError, match="at least 0"):
        source.set_epoch(-1)
    for state in ({}, None, {"epoch": 0, "part": [0, 1], "stream": {}}):
        with pytest.raises(ValueError, match="state_dict"):
            source.load_state_dict(state)  # type: ignore[arg-type]


def test_resuming_a_stream_of_tensors() -> None:
    with aioxarray.torch.tensors(aioxarray.stream(pieces())) as found:
        next(found)
        state = json.loads(json.dumps(found.state_dict()))
    found = aioxarray.torch.tensors(aioxarray.stream(pieces()))
    found.load_state_dict(state)
    assert found.state_dict() == state
    with found:
        same(found, range(1, 4))


# --- datasets -------------------------------------------------------------------------------------


def test_a_dataset_without_workers() -> None:
    source = aioxarray.torch.IterableBlocks(pieces())
    same(source)
    same(source)
    same(torch.utils.data.DataLoader(source, batch_size=None))
    assert len(source) == 4
    # Batches of pieces of equal shape.
    batches = torch.utils.data.DataLoader(
        aioxarray.torch.IterableBlocks(pieces()[:2]), batch_size=2
    )
    (batch,) = batches
    assert batch["a"].shape == (2, 3, 2, 3)
    array = aioxarray.torch.IterableBlocks(
        aioxarray.blocks(opened(stored(dataset())).a, {"time": 3}), transform=lambda a: a + 1
    )
    np.testing.assert_array_equal(next(iter(array)).numpy(), dataset().a[:3] + 1)


def test_the_requests_are_those_of_a_stream() -> None:
    encoding = {"a": {"chunks": (3, 2, 3)}}
    store = RecordingStore(stored(dataset(), encoding=encoding))
    parts = aioxarray.blocks(opened(store), "chunks")
    store.log.clear()
    same(aioxarray.torch.IterableBlocks(parts))
    assert len(store.log.requests) == len(parts) == 4


def test_ranks_share_the_pieces() -> None:
    parts = pieces().shuffle(seed=2)
    found = []
    for rank in range(3):
        source = aioxarray.torch.IterableBlocks(parts, rank=rank, world=3)
        items = list(source)
        assert len(items) == len(source)
        found += [int(item["a"][0, 0, 0]) // 18 for item in items]
    assert sorted(found) == [0, 1, 2, 3]


def order(source: Any) -> list[int]:
    return [int(item["a"][0, 0, 0]) // 6 for item in source]


def test_epochs() -> None:
    parts = aioxarray.blocks(opened(stored(dataset())), {"time": 1}).shuffle(seed=5)
    source = aioxarray.torch.IterableBlocks(parts)
    for epoch in (None, 0, 3):
        if epoch is not None:
            source.set_epoch(epoch)
        expected = [int(piece.a[0, 0, 0]) // 6 for piece in parts.at_epoch(epoch or 0)]
        assert order(source) == expected
    assert order(pickle.loads(pickle.dumps(source))) == order(source)
    unshuffled = aioxarray.torch.IterableBlocks(pieces())
    unshuffled.set_epoch(3)
    same(unshuffled)


def test_resuming_a_dataset() -> None:
    parts = aioxarray.blocks(opened(stored(dataset())), {"time": 1}).shuffle(seed=5)
    expected = {}
    source = aioxarray.torch.IterableBlocks(parts)
    for epoch in range(2):
        source.set_epoch(epoch)
        expected[epoch] = order(source)
    for taken in (0, 1, 7, STEPS):
        source = aioxarray.torch.IterableBlocks(parts)
        source.set_epoch(1)
        items = iter(torch.utils.data.DataLoader(source, batch_size=None))
        first = order(next(items) for _ in range(taken))
        state = json.loads(json.dumps(source.state_dict()))
        del items
        resumed = aioxarray.torch.IterableBlocks(parts)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        # The same epoch: the position stays.
        resumed.set_epoch(1)
        assert first + order(resumed) == expected[1]
        # From the beginning, once more; and another epoch.
        assert order(resumed) == expected[1]
        resumed.load_state_dict(state)
        resumed.set_epoch(0)
        assert order(resumed) == expected[0]
    other = aioxarray.torch.IterableBlocks(parts, rank=0, world=2)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match="as many ranks and workers"):
        iter(other)


def test_an_iterator_that_is_dropped_ends_its_stream() -> None:
    items = iter(aioxarray.torch.IterableBlocks(pieces()))
    next(items)
    source: Any = items
    loaded = source.gi_frame.f_locals["loaded"]
    del items, source
    gc.collect()
    with pytest.raises(RuntimeError, match="context was left"):
        next(loaded)


@pytest.mark.parametrize(
    "method", ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_workers_share_the_pieces(method: str) -> None:
    run(method)


@pytest.mark.slow
def test_workers_that_are_left_early() -> None:
    run("left_early")


@pytest.mark.slow
def test_a_forked_worker_refuses_what_would_hang() -> None:
    run("fork_error")


@pytest.mark.slow
def test_ranks_of_torch_share_the_pieces() -> None:
    run("ranks")


@pytest.mark.slow
def test_torchdata_resumes_workers() -> None:
    pytest.importorskip("torchdata")
    run("stateful")


def run(name: str) -> None:
    assert run_script(CODE.format(name=name)).splitlines()[-1] == "fine"
