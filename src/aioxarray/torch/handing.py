"""The single-process form: the pieces of a stream as tensors, uploaded one step ahead."""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from aioxarray._runtime.threads.outcomes import Outcome
from aioxarray.streaming import Stream
from aioxarray.torch.conversion import as_tensors, each_tensor

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Tensors", "tensors"]


def tensors(pieces: Stream[Any], *, device: Any = None, pin: bool | None = None) -> Tensors:
    """Hand out the pieces of a stream as tensors, on a GPU if one is named.

    The result is a context manager and an iterator, and enters the stream::

        pieces = aioxarray.blocks(ds, {"time": 24}).shuffle(seed=0)
        with aioxarray.torch.tensors(aioxarray.stream(pieces), device="cuda") as batches:
            for batch in batches:
                train(batch["t2m"])

    Parameters
    ----------
    pieces
        A stream whose context was not entered. Its ``transform`` gets objects of xarray.
    device
        Where the tensors should be, as for ``torch.device``; None for memory of the CPU.
    pin
        Whether the values are read into page-locked memory, from which uploads run beside other
        work. The default is to do so for a CUDA device.

    Returns
    -------
    Tensors
        For each piece what `as_tensors` makes of it.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or ``pin`` is True without a CUDA device.

    Notes
    -----
    *Requests, order, errors, cancelling:* those of `aioxarray.stream`.

    *Uploads:* to a CUDA device on a stream of their own. When a piece is handed out and the next
    one is loaded, the upload of that begins; CUDA, not this thread, waits until a piece is there.

    *Memory:* tensors of the CPU share the memory of the loaded arrays. If values were in memory
    already, they share it with the objects of the stream. On the device, the piece that the
    consumer has and the next one. Page-locked memory comes from torch, which keeps it for later
    pieces and rounds it up to powers of two, so it may be up to twice the stream's ``ahead``.

    See Also
    --------
    IterableBlocks : for workers of a DataLoader.
    """
    return Tensors(pieces, device=device, pin=pin)


class _Taken(NamedTuple):
    """A piece that was taken from the stream: its tensors, and the position of the stream then."""

    item: Any
    state: dict[str, Any]


class Tensors:
    """An iterator over the pieces of a stream as tensors; `tensors` makes it."""

    def __init__(self, pieces: Stream[Any], *, device: Any, pin: bool | None) -> None:
        if not isinstance(pieces, Stream):
            raise TypeError(
                f"pieces must be a stream, got {type(pieces).__name__}: pass aioxarray.stream(…)"
            )
        self._device = None if device is None else torch.device(device)
        is_cuda = self._device is not None and self._device.type == "cuda"
        if is_cuda and not torch.cuda.is_available():
            raise ValueError(f"device={device!r}, and torch finds no CUDA GPU")
        if pin and not torch.cuda.is_available():
            raise ValueError("pin=True needs a CUDA GPU, and torch finds none")
        self._pins = is_cuda if pin is None else pin
        self._uploads = _Uploads(self._device) if is_cuda and self._device is not None else None
        self._pieces = pieces
        if self._pins:
            pieces._read_into(page_locked)
        self._following: Outcome[_Taken] | None = None
        self._state: dict[str, Any] | None = None

    def __enter__(self) -> Tensors:
        self._pieces.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._following = None
        try:
            self._pieces.__exit__(kind, error, traceback)
        finally:
            if self._uploads is not None:
                self._uploads.finish()

    def __iter__(self) -> Tensors:
        iter(self._pieces)
        return self

    def __next__(self) -> Any:
        following, self._following = self._following, None
        taken = (self._take() if following is None else following).take()
        self._state = taken.state
        if self._uploads is None:
            return taken.item
        item = self._uploads.arrived(taken.item)
        if self._pieces._has_ready():
            self._following = self._take()
        return item

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the stream, as its own ``state_dict``, without uploads ahead."""
        return self._pieces.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin at the position of ``state``; see `aioxarray.Stream.load_state_dict`."""
        self._pieces.load_state_dict(state)

    def _take(self) -> Outcome[_Taken]:
        """Take the next piece from the stream, and begin its upload; or keep the error of that."""
        outcome: Outcome[_Taken] = Outcome()
        outcome.of(self._taken)
        return outcome

    def _taken(self) -> _Taken:
        item = as_tensors(next(self._pieces))
        state = self._pieces.state_dict()
        if self._pins:
            # Only what was in other memory, such as results of a transform, is copied here.
            item = each_tensor(item, _pinned)
        if self._uploads is not None:
            item = self._uploads.begun(item)
        elif self._device is not None:
            item = each_tensor(item, lambda tensor: tensor.to(self._device))
        return _Taken(item, state)


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


class _Uploads:
    """Uploads to a CUDA device on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # Uploads that may be under way: the event at their end, and the memory that they read.
        self._under_way: deque[tuple[Any, Any]] = deque()

    def begun(self, item: Any) -> tuple[Any, Any]:
        """Begin to upload the tensors of ``item``; return them, and the event at the end."""
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        with torch.cuda.stream(self._stream):
            there = each_tensor(item, lambda each: each.to(self._device, non_blocking=True))
        event = self._stream.record_event()
        self._under_way.append((event, item))
        return there, event

    def arrived(self, begun: tuple[Any, Any]) -> Any:
        """Return the tensors, which work on the current stream of CUDA may use from now on."""
        there, event = begun
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)

        def used_here(tensor: torch.Tensor) -> torch.Tensor:
            # Their memory is not used again before this stream is done with them.
            if tensor.is_cuda:
                tensor.record_stream(current)
            return tensor

        return each_tensor(there, used_here)

    def finish(self) -> None:
        """Wait for the uploads that are under way."""
        while self._under_way:
            event, _ = self._under_way.popleft()
            event.synchronize()


def page_locked(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """Return an array in page-locked memory; None for dtypes that torch does not have."""
    return allocated(shape, dtype, pin_memory=True)


def allocated(
    shape: tuple[int, ...], dtype: np.dtype[Any], *, pin_memory: bool
) -> np.ndarray[Any, Any] | None:
    """Return an array in memory of torch; None for dtypes that torch does not have."""
    if dtype.kind not in "biufc" or not dtype.isnative:
        return None
    count = dtype.itemsize
    for length in shape:
        count *= length
    memory: Any = torch.empty(count, dtype=torch.uint8, pin_memory=pin_memory).numpy()
    array: np.ndarray[Any, Any] = memory.view(dtype).reshape(shape)
    return array
