"""Programs for tests of torch, each for another process that starts workers of DataLoaders.

Each function is run by ``python -c``, under a hard timeout; see `tests.concurrency.forks`.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import obstore.store
import pytest
import torch
import xarray as xr
import zarr.storage
from torch.utils.data import DataLoader

import aioxarray
import aioxarray.torch
from aioxarray.testing import ObjectServer

STEPS = 23


def dataset() -> xr.Dataset:
    values = np.arange(STEPS * 12, dtype="f4").reshape(STEPS, 3, 4)
    return xr.Dataset({"a": (("time", "y", "x"), values), "n": ("time", np.arange(STEPS))})


def pieces(folder: str) -> aioxarray.Blocks[xr.Dataset]:
    """Return pieces of two times each, of which stored chunks have four."""
    path = Path(folder) / "a.zarr"
    if not path.exists():
        dataset().to_zarr(path, encoding={"a": {"chunks": (4, 3, 4)}}, zarr_format=2)
    return aioxarray.blocks(xr.open_zarr(path, chunks=None), {"time": 2})


def numbers(items: Any) -> list[int]:
    """Return the numbers of the times in ``items``, and check the values of each."""
    found: list[int] = []
    for item in items:
        expected = dataset().isel(time=item["n"].numpy())
        np.testing.assert_array_equal(item["a"].numpy(), expected.a)
        found += item["n"].tolist()
    return found


def loader(source: Any, method: str, workers: int = 2, **options: Any) -> Any:
    return DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context=method if workers else None,
        **options,
    )


def _shared_by(method: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = pieces(folder).shuffle(seed=1, buffer=2)
        # The parent has read before its workers start.
        aioxarray.load(parts[0])
        source = aioxarray.torch.IterableBlocks(parts)
        batches = loader(source, method, persistent_workers=True)
        assert len(batches) == len(parts) == 12
        orders = []
        for epoch in range(2):
            source.set_epoch(epoch)
            orders.append(numbers(batches))
            assert sorted(orders[-1]) == list(range(STEPS))
        # The workers of the first epoch have heard of the second.
        assert orders[0] != orders[1]
        with pytest.raises(RuntimeError, match="num_workers=0"):
            source.state_dict()
        # Two ranks, each with two workers.
        found: list[int] = []
        for rank in range(2):
            part = aioxarray.torch.IterableBlocks(parts, rank=rank, world=2)
            found += numbers(loader(part, method))
        assert sorted(found) == list(range(STEPS))


def fork() -> None:
    with warnings.catch_warnings():
        # That there are threads is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        _shared_by("fork")


def spawn() -> None:
    _shared_by("spawn")


def forkserver() -> None:
    _shared_by("forkserver")


def left_early() -> None:
    """An iterator of workers that is dropped ends with all that it has under way."""
    with tempfile.TemporaryDirectory() as folder:
        source = aioxarray.torch.IterableBlocks(pieces(folder))
        batches = iter(loader(source, "spawn"))
        next(batches)
        del batches
        assert not multiprocessing.active_children()


def fork_error() -> None:
    """A client that would hang in a forked worker is an error there, and not when spawned."""
    with ObjectServer(process=True) as server:
        store = zarr.storage.ObjectStore(
            obstore.store.HTTPStore.from_url(
                f"{server.url}/a.zarr", client_options={"allow_http": True}
            ),
            read_only=True,
        )
        memory = zarr.storage.MemoryStore()
        dataset().to_zarr(memory, zarr_format=2, consolidated=True)
        for key, value in memory._store_dict.items():
            server.put(f"a.zarr/{key}", value.to_bytes())
        ds = aioxarray.open_zarr(store)
        parts = aioxarray.blocks(ds, {"time": 2})
        aioxarray.load(parts[0])
        source = aioxarray.torch.IterableBlocks(parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            with pytest.raises(aioxarray.ForkError, match="fork"):
                list(loader(source, "fork"))
        assert sorted(numbers(loader(source, "forkserver"))) == list(range(STEPS))


def _rank(rank: int, folder: str, results: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    try:
        source = aioxarray.torch.IterableBlocks(pieces(folder))
        results.put((rank, len(source), numbers(loader(source, "spawn"))))
    finally:
        torch.distributed.destroy_process_group()


def ranks() -> None:
    """The ranks of torch.distributed share the pieces, as do their workers, which are spawned."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pieces(folder)
        results: Any = context.SimpleQueue()
        children = [context.Process(target=_rank, args=(n, folder, results)) for n in range(2)]
        for child in children:
            child.start()
        found = sorted(results.get() for _ in children)
        for child in children:
            child.join()
        assert [(rank, length) for rank, length, _ in found] == [(0, 6), (1, 6)]
        assert found[0][2] != found[1][2]
        assert sorted([*found[0][2], *found[1][2]]) == list(range(STEPS))


def stateful() -> None:
    """torchdata's loader saves and resumes the position of each worker."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    with tempfile.TemporaryDirectory() as folder:
        for workers in (0, 2):

            def loaded(workers: int = workers) -> Any:
                return StatefulDataLoader(
                    aioxarray.torch.IterableBlocks(pieces(folder).shuffle(seed=1)),
                    batch_size=None,
                    num_workers=workers,
                    multiprocessing_context="spawn" if workers else None,
                )

            expected = numbers(loaded())
            before = loaded()
            items = iter(before)
            first = numbers(next(items) for _ in range(5))
            state = before.state_dict()
            after = loaded()
            after.load_state_dict(state)
            assert first + numbers(after) == expected
