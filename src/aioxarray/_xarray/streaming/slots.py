"""The places of pieces in a stream, which the engine passes through its stages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aioxarray._xarray.streaming.pieces import Piece
from aioxarray._xarray.streaming.source import Number
from aioxarray._xarray.streaming.stages import Stage


class Slot:
    """The place of a piece in a stream, from its arrival until it is handed to the consumer.

    Attributes
    ----------
    serial, number
        How many pieces the stream has begun before it, and its number in the user's objects.
    value
        The loaded piece, or what the transform made of it.
    error
        The error that takes the place of the value.
    is_last
        Whether there is no piece here, since the stream has ended.
    """

    def __init__(self, serial: int, number: Number) -> None:
        self.serial = serial
        self.number = number
        self.value: Any = None
        self.error: BaseException | None = None
        self.is_last = False
        self.piece: Piece | None = None
        # Opens the piece, if the user's object is a function.
        self.function: Callable[[], Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.is_done = False
        # The stage that the piece is in, for `Stages`.
        self.stage: Stage = "opening"
        # The bytes that count as held.
        self.held = 0

    @classmethod
    def last(cls) -> Slot:
        """Return the slot that ends a stream after an error."""
        slot = cls(0, Number(0, 0))
        slot.is_last = True
        return slot

    @property
    def is_known(self) -> bool:
        """Whether the size of the piece, or an error in its place, is known."""
        return self.piece is not None or self.error is not None or self.is_last
