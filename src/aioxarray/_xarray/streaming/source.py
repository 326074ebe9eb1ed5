"""The objects of a stream, one after another, and the position of its consumer in them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

_WHOLE = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)


@dataclass(frozen=True, order=True)
class Number:
    """The place of a piece in a stream: its epoch, and its index there; both count from 0."""

    epoch: int
    index: int

    def __str__(self) -> str:
        return f"piece {self.index}" + (f" of epoch {self.epoch}" if self.epoch else "")


@dataclass(frozen=True)
class Position:
    """The pieces of a stream that its consumer has not been handed so far.

    Attributes
    ----------
    next
        The first of them.
    beyond
        Later pieces that the consumer has been handed already, if the order is free.
    """

    next: Number = field(default_factory=lambda: Number(0, 0))
    beyond: frozenset[Number] = field(default_factory=frozenset)

    def to_dict(self) -> dict[str, Any]:
        """Return the position as a dict of numbers and lists, ready for JSON."""
        beyond = [[each.epoch, each.index] for each in sorted(self.beyond)]
        return {"epoch": self.next.epoch, "index": self.next.index, "beyond": beyond}

    @classmethod
    def of_dict(cls, state: Any) -> Position:
        """Return the position that `to_dict` returned as ``state``; raises ValueError if none."""
        try:
            numbers = [(state["epoch"], state["index"]), *state["beyond"]]
            if all(_is_count(epoch) and _is_count(index) for epoch, index in numbers):
                first, *beyond = [Number(epoch, index) for epoch, index in numbers]
                return cls(first, frozenset(beyond))
        except (KeyError, TypeError, ValueError):
            pass
        raise ValueError(
            f"state must be a dict that state_dict() of a stream has returned, got {state!r}"
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class Progress:
    """The position of a consumer, which is handed one piece after another; thread-safe."""

    def __init__(self, start: Position) -> None:
        self._lock = threading.Lock()
        self._start = start
        self._next = start.next
        # How many pieces have been handed out without a gap, and those handed out beyond one.
        self._serial = 0
        self._beyond: dict[int, Number] = {}

    def add(self, serial: int, number: Number) -> None:
        """Count the piece ``number``, which the stream began as the one with ``serial``."""
        with self._lock:
            self._beyond[serial] = number
            while (handed := self._beyond.pop(self._serial, None)) is not None:
                self._serial += 1
                self._next = Number(handed.epoch, handed.index + 1)

    def position(self) -> Position:
        """Return the position now."""
        with self._lock:
            beyond = {each for each in self._start.beyond if each >= self._next}
            return Position(self._next, frozenset(beyond.union(self._beyond.values())))


class Source:
    """The objects of a stream in all of its epochs; used by one thread at a time.

    Parameters
    ----------
    objects
        The objects of an epoch.
    epochs
        The number of epochs; None for no end.

    Attributes
    ----------
    number
        The number of the object that comes next.
    """

    def __init__(self, objects: Iterable[Any], epochs: int | None) -> None:
        _check_objects(objects)
        _check_epochs(objects, epochs)
        self._objects = objects
        self._epochs = epochs
        self.number = Number(0, 0)

    def objects_from(self, position: Position) -> Iterator[tuple[Number, Any]]:
        """Yield the objects that ``position`` has not, with their numbers."""
        start = position.next
        epochs = itertools.count() if self._epochs is None else range(self._epochs)
        for epoch in itertools.islice(epochs, start.epoch, None):
            self.number = Number(epoch, start.index if epoch == start.epoch else 0)
            is_whole, is_empty = self.number.index == 0, True
            for obj in self._epoch_from(self.number.index):
                is_empty = False
                number, self.number = self.number, Number(epoch, self.number.index + 1)
                if number not in position.beyond:
                    yield number, obj
            if is_empty and is_whole:
                # Without an end, the epochs would follow each other forever.
                return

    def known_objects(self) -> list[Any]:
        """Return the objects of an epoch, if they are known without advancing an iterator.

        Raises
        ------
        TypeError
            If they are not, or if some are functions that open objects.
        """
        if not isinstance(self._objects, Sequence):
            raise TypeError(
                f"the objects of the stream are an iterable ({type(self._objects).__name__}), and "
                "unknown before it is advanced: explain a stream of a list or of blocks"
            )
        objects = list(self._objects)
        if any(map(callable, objects)):
            raise TypeError(
                "some objects of the stream are functions that open, and unknown before they are "
                "called: see explain_open for the requests of an open"
            )
        return objects

    def _epoch_from(self, index: int) -> Iterator[Any]:
        objects = self._objects
        if isinstance(objects, Sequence):
            return (objects[each] for each in range(index, len(objects)))
        return itertools.islice(objects, index, None)


def _check_objects(objects: Any) -> None:
    if isinstance(objects, _WHOLE):
        raise TypeError(
            f"objects is one {type(objects).__name__}; a stream takes an iterable of pieces, such "
            "as [ds.isel(time=i) for i in range(ds.sizes['time'])]"
        )
    if isinstance(objects, Mapping):
        raise TypeError(
            "objects is a dict, whose iteration gives its keys: pass list(objects.values()) for "
            "a stream of its values, or [objects] for one piece"
        )
    if hasattr(objects, "__aiter__") and not hasattr(objects, "__iter__"):
        raise TypeError("objects is an asynchronous iterable; a stream takes a plain one")
    if isinstance(objects, str | bytes) or not isinstance(objects, Iterable | Sequence):
        raise TypeError(
            f"objects must be an iterable of xarray objects, got {type(objects).__name__}"
        )


def _check_epochs(objects: Any, epochs: Any) -> None:
    if epochs is not None:
        if isinstance(epochs, bool) or not isinstance(epochs, int):
            raise TypeError(f"epochs must be a number, or None for no end; got {epochs!r}")
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for no end; got {epochs!r}")
    if epochs != 1 and not isinstance(objects, Sequence) and iter(objects) is objects:
        raise TypeError(
            f"epochs={epochs!r} iterates over objects again, but it is an iterator, which ends "
            "for good: pass a list or another iterable that can begin again"
        )
