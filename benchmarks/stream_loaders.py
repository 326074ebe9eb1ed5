"""Loaders of samples and windows, one after another: aioxarray's streams and their peers."""

from __future__ import annotations

import asyncio
import importlib
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import aioxarray
from benchmarks import peers
from benchmarks.peers import Source, Unavailable

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

BATCH = 16
# As insitubatch does by default, samples are shuffled among those of so many chunks.
CHUNKS_SHUFFLED = 16
WORKERS = 2
# How many reads TensorStore has ahead, and so many bytes of chunks: a window of 8 x 64 x 64 has
# parts of 12.4 chunks on average, which take 256 KiB each.
TENSORSTORE_AHEAD = 16
WINDOWS_AHEAD = "52MiB"

Pieces = Callable[[], Iterator["NDArray[Any]"]]


@dataclass(frozen=True)
class Samples:
    """Steps in time of the variable "v" of one dataset, and an order to read them in.

    Attributes
    ----------
    path
        The directory of the dataset, a Zarr group of version 2 (for zarr-beluga).
    server
        The URL of a server of the parent of the parent of ``path``, by HTTP and as S3.
    count
        How many samples there are.
    each
        How many samples a chunk holds.
    """

    path: Path
    server: str
    count: int
    each: int

    @property
    def source(self) -> Source:
        """The dataset over HTTP."""
        return Source(self.path, f"{self.server}/{self.path.parent.name}/{self.path.name}")

    def order(self) -> list[int]:
        """Return a random order of the samples that keeps those of a chunk together."""
        chance = np.random.default_rng(0)
        chunks = chance.permutation(-(-self.count // self.each))
        found: list[int] = []
        for first in range(0, len(chunks), CHUNKS_SHUFFLED):
            some = chunks[first : first + CHUNKS_SHUFFLED, None] * self.each + np.arange(self.each)
            found += chance.permutation(some.ravel()).tolist()
        return [each for each in found if each < self.count]


@dataclass(frozen=True)
class Windows:
    """Windows of the variable "v0" of one dataset, in the order in which they are read."""

    source: Source
    windows: Sequence[dict[str, slice]]


@dataclass(frozen=True)
class Loader:
    """A way to load: ``samples`` and ``windows`` open them, and return what reads them again.

    The pieces of samples are batches of `BATCH` of them.
    """

    name: str
    samples: Callable[[Samples], Pieces] | None = None
    windows: Callable[[Windows], Pieces] | None = None


def library(name: str) -> Any:
    """Import a peer; it is untyped, or may be missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed") from error


def batched(samples: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    """Stack `BATCH` samples at a time."""
    some: list[NDArray[Any]] = []
    for each in samples:
        some.append(each)
        if len(some) == BATCH:
            yield np.stack(some)
            some = []
    if some:
        yield np.stack(some)


def _our_samples(samples: Samples) -> Pieces:
    ds = samples.source.opened()
    pieces = aioxarray.blocks(ds, {"time": 1})
    shuffled = pieces.shuffle(0, buffer=CHUNKS_SHUFFLED * samples.each).batch(BATCH)

    def read() -> Iterator[NDArray[Any]]:
        with aioxarray.stream(shuffled) as batches:
            for batch in batches:
                yield batch["v"].values[:, 0]

    return read


def _our_windows(windows: Windows) -> Pieces:
    ds = windows.source.opened()

    def read() -> Iterator[NDArray[Any]]:
        lazy = (ds.isel(each) for each in windows.windows)
        with aioxarray.stream(lazy, ahead=WINDOWS_AHEAD) as pieces:
            for piece in pieces:
                yield piece["v0"].values

    return read


def _plain_windows(windows: Windows) -> Pieces:
    ds = windows.source.opened()
    return lambda: (ds["v0"].isel(each).values for each in windows.windows)


def _tensorstore_windows(windows: Windows) -> Pieces:
    library("tensorstore")
    arrays = peers.tensorstore_arrays(windows.source)

    def read() -> Iterator[NDArray[Any]]:
        reads: deque[Any] = deque()
        for each in windows.windows:
            reads.append(arrays["v0"][tuple(each.values())].read())
            if len(reads) > TENSORSTORE_AHEAD:
                yield reads.popleft().result()
        while reads:
            yield reads.popleft().result()

    return read


def _insitubatch(samples: Samples) -> Pieces:
    insitu = library("insitubatch")
    store = samples.source.store()
    shapes = insitu.open_geometries(store, variables=["v"])
    split = insitu.split_by_chunk(shapes["v"], fractions=(1.0, 0.0, 0.0))

    def read() -> Iterator[NDArray[Any]]:
        # A dataset keeps the chunks of an epoch for the next one; a new one reads them again.
        dataset = insitu.InSituDataset(
            store, split, geometries=shapes, batch_size=BATCH, block_chunks=CHUNKS_SHUFFLED
        )
        for batch in dataset.train:
            yield batch.arrays["v"]

    return read


def _beluga(samples: Samples) -> Pieces:
    beluga = library("beluga")
    # It has no plain HTTP.
    options = {
        "aws_endpoint": samples.server,
        "aws_allow_http": "true",
        "aws_region": "any",
        "aws_access_key_id": "any",
        "aws_secret_access_key": "any",
    }
    bucket = f"s3://{samples.path.parent.name}"
    reader = beluga.open_zarr_group(bucket, samples.path.name, store_options=options)
    order = samples.order()
    return lambda: batched(np.from_dlpack(each)[0, 0] for each in reader.stream(order, frames=1))


def _xbatcher(samples: Samples) -> Pieces:
    xbatcher = library("xbatcher")
    ds = samples.source.opened()
    sizes = {"time": BATCH, "latitude": ds.sizes["latitude"], "longitude": ds.sizes["longitude"]}
    generator = xbatcher.BatchGenerator(ds, sizes, preload_batch=False)
    # In the order in which they are stored: it has no other, and needs each chunk once or twice.
    return lambda: (each["v"].values for each in generator)


class Items:
    """The samples as a "map-style" dataset of torch, opened again in each worker."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._array: xr.DataArray | None = None

    def __len__(self) -> int:
        return self._samples.count

    def __getitem__(self, index: int) -> NDArray[Any]:
        if self._array is None:
            self._array = self._samples.source.opened()["v"]
        values: NDArray[Any] = self._array[index].values
        return values


def _data_loader(samples: Samples) -> Pieces:
    loading = library("torch.utils.data")
    # Workers of the second loader on start within a second, since torch is imported already.
    multiprocessing.set_forkserver_preload(["torch.utils.data", __name__])
    loader = loading.DataLoader(
        Items(samples),
        batch_size=BATCH,
        sampler=samples.order(),
        num_workers=WORKERS,
        # This process has threads, so its forks could hang.
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )
    return lambda: (np.asarray(batch) for batch in loader)


OURS = Loader(peers.OURS.name, _our_samples, _our_windows)
LOAD = Loader(peers.LOAD.name, None, _plain_windows)
TENSORSTORE = Loader(peers.TENSORSTORE.name, None, _tensorstore_windows)
INSITUBATCH = Loader("insitubatch", _insitubatch)
BELUGA = Loader("beluga", _beluga)
XBATCHER = Loader("xbatcher", _xbatcher)
DATA_LOADER = Loader("DataLoader", _data_loader)
# Not a loader of values: the time that obstore takes to get the bytes of the same chunks.
OBSTORE = Loader("obstore")

LOADERS = (OURS, LOAD, XBATCHER, DATA_LOADER, INSITUBATCH, BELUGA, TENSORSTORE, OBSTORE)


async def get_all(url: str, keys: Sequence[str], at_once: int) -> None:
    """Get the bytes of ``keys`` from a server with obstore, ``at_once`` requests at a time."""
    import obstore
    from obstore.store import HTTPStore

    client = HTTPStore.from_url(url, client_options={"allow_http": True})
    left = iter(keys)

    async def worker() -> None:
        for key in left:
            answer = await obstore.get_async(client, key)
            await answer.bytes_async()

    await asyncio.gather(*(worker() for _ in range(at_once)))
