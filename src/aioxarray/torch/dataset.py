"""A dataset for DataLoaders, whose pieces their workers and the ranks of a training share."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from aioxarray.config import byte_bound
from aioxarray.dividing import Blocks
from aioxarray.streaming import Stream, stream
from aioxarray.torch.conversion import as_tensors

__all__ = ["IterableBlocks"]

# The places in the memory that all processes share.
_EPOCH, _BY_WORKERS = 0, 1
_UNSET = -1


# Its base class is Any for mypy, which must not need torch.
class IterableBlocks(IterableDataset):  # type: ignore[misc]
    """The pieces of `aioxarray.blocks` as a dataset of torch, each loaded before it is asked for.

    Every piece comes once in each epoch, however many workers and ranks there are::

        pieces = aioxarray.blocks(ds, {"time": 24}).shuffle(seed=0)
        dataset = aioxarray.torch.IterableBlocks(pieces)
        loader = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=4)
        for epoch in range(10):
            dataset.set_epoch(epoch)
            for piece in loader:
                train(piece["t2m"])

    Parameters
    ----------
    pieces
        The pieces, shuffled if they should be. Each rank gets the part that ``pieces.shard(rank,
        world)`` is, and each worker a part of that.
    transform
        A function of one loaded piece, which is an object of xarray; called in worker threads.
    ahead
        The most bytes that are held for pieces that are loaded ahead, as in `aioxarray.stream`: in
        each worker.
    rank, world
        The number of this process among those that train, and how many these are. By default those
        of ``torch.distributed``, if that is initialized when iteration begins or the dataset is
        pickled, and otherwise 0 and 1.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    *Items:* what `as_tensors` makes of a piece, or of the result of ``transform``: a tensor for a
    DataArray, a dict of tensors by name for a Dataset. With ``batch_size=None`` the loader yields
    pieces, and with a number it stacks pieces of equal shape.

    *Requests, order, memory, errors:* those of `aioxarray.stream`, in each worker. Limits such as
    ``concurrency`` hold in each process.

    *Processes:* workers may be forked, spawned or started by a fork server. A process forked after
    a client of obstore or icechunk was used raises `aioxarray.ForkError`; start workers by
    ``multiprocessing_context="forkserver"`` then. Settings made by ``config.set`` reach forked
    workers only; the environment reaches all.

    *Cancelling:* when the iterator is dropped or closed, the requests are cancelled and awaited.

    *Lengths:* those of two ranks differ by one piece at most. If each rank must take as many
    steps, slice the pieces to a multiple of ``world`` first.
    """

    def __init__(
        self,
        pieces: Blocks[Any],
        *,
        transform: Callable[[Any], Any] | None = None,
        ahead: int | str = "512MiB",
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(pieces, Blocks):
            raise TypeError(
                f"pieces must be those of aioxarray.blocks(…), got {type(pieces).__name__}"
            )
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of one piece, got {transform!r}")
        byte_bound("ahead", ahead)
        if (rank is None) != (world is None):
            raise ValueError("rank and world belong together: give both, or neither")
        if rank is not None and world is not None:
            # It raises for numbers that are none.
            pieces.shard(rank, world)
        self._pieces = pieces
        self._transform = transform
        self._ahead = ahead
        self._rank = rank
        self._world = world
        # In memory that workers share, so that `set_epoch` reaches those that live on.
        self._shared = torch.tensor([_UNSET, 0], dtype=torch.int64).share_memory_()
        self._stream: Stream[Any] | None = None
        # The state to begin with, and the part of which `_stream` has the pieces.
        self._resume: dict[str, Any] | None = None
        self._part: list[int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker knows nothing of torch.distributed.
        rank, world = self._ranks()
        return {**self.__dict__, "_rank": rank, "_world": world, "_stream": None, "_part": None}

    def __len__(self) -> int:
        """Return the number of pieces of this rank."""
        return len(self._pieces.shard(*self._ranks()))

    def set_epoch(self, epoch: int) -> None:
        """Give the shuffles of the pieces another order, from the next iteration on.

        It also reaches workers that were started before. Without a shuffle, nothing changes.

        Parameters
        ----------
        epoch
            The number of the epoch, as in ``pieces.shuffle(seed, epoch=…)``.

        Raises
        ------
        TypeError, ValueError
            If it is no number, or negative.
        """
        self._pieces.at_epoch(epoch)
        if operator.index(epoch) != int(self._shared[_EPOCH]):
            self._resume = self._stream = self._part = None
        self._shared[_EPOCH] = operator.index(epoch)

    def __iter__(self) -> Iterator[Any]:
        part, pieces = self._own_part()
        loaded = stream(pieces, ahead=self._ahead, transform=self._converted)
        resume, self._resume = self._resume, None
        if resume is not None:
            if resume["part"] != part:
                raise ValueError(
                    f"the state is that of part {resume['part']} (rank, world, worker, workers), "
                    f"and this is part {part}: resume with as many ranks and workers"
                )
            loaded.load_state_dict(resume["stream"])
        self._stream, self._part = loaded, part
        return self._loading(loaded)

    def _loading(self, loaded: Stream[Any]) -> Iterator[Any]:
        with loaded:
            yield from loaded

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch, ready for JSON: the pieces that were handed out.

        In the process that iterates: this one without workers (``num_workers=0``), and otherwise
        each worker, as torchdata's ``StatefulDataLoader`` asks them.

        Raises
        ------
        RuntimeError
            If workers have the pieces, and this is not one of them.
        """
        if get_worker_info() is None and int(self._shared[_BY_WORKERS]):
            raise RuntimeError(
                "the workers of a DataLoader know the position, and this process does not: use "
                "num_workers=0, or torchdata's StatefulDataLoader"
            )
        epoch = int(self._shared[_EPOCH])
        if self._stream is not None:
            return {"epoch": epoch, "part": self._part, "stream": self._stream.state_dict()}
        if self._resume is not None:
            return self._resume
        part, pieces = self._own_part()
        return {"epoch": epoch, "part": part, "stream": stream(pieces).state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Have the next iteration begin at the position of ``state``, from `state_dict`.

        The epoch is that of the state, too; `set_epoch` with the same one keeps the position. If
        all pieces had been handed out, the next iteration has none.

        Raises
        ------
        ValueError
            If ``state`` is not from `state_dict`; also when the iteration begins, if it is from
            another number of ranks or workers.
        """
        try:
            epoch, part, position = state["epoch"], state["part"], state["stream"]
            valid = len(part) == 4 and isinstance(epoch, int) and epoch >= _UNSET
            stream([]).load_state_dict(position)
        except (KeyError, TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError(
                "state must be a dict that state_dict() of an IterableBlocks has returned, got "
                f"{state!r}"
            )
        self._shared[_EPOCH] = epoch
        self._resume = {"epoch": epoch, "part": list(part), "stream": position}
        self._stream = self._part = None

    def _converted(self, piece: Any) -> Any:
        return as_tensors(piece if self._transform is None else self._transform(piece))

    def _own_part(self) -> tuple[list[int], Blocks[Any]]:
        """Return the part of this process (rank, world, worker, workers), and its pieces."""
        rank, world = self._ranks()
        epoch = int(self._shared[_EPOCH])
        pieces = self._pieces if epoch == _UNSET else self._pieces.at_epoch(epoch)
        worker, workers = 0, 1
        info = get_worker_info()
        if info is not None:
            worker, workers = info.id, info.num_workers
            self._shared[_BY_WORKERS] = 1
        part = pieces.shard(rank, world).shard(worker, workers)
        return [rank, world, worker, workers], part

    def _ranks(self) -> tuple[int, int]:
        if self._rank is not None and self._world is not None:
            return self._rank, self._world
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1
