"""The bytes that a stream holds for pieces that its consumer has not taken, and their limit."""

from __future__ import annotations

from aioxarray._runtime.window import Window
from aioxarray._xarray.streaming.pieces import Piece

# Pieces that have begun and are not consumed. With one request each, more than the default limit.
_BEGUN = 256
# So much is loaded at once in the beginning, and more as it comes. If all pieces began together,
# they would share the bandwidth, and the first would come with the last.
_AT_FIRST = 16 << 20
# The most parts of stores of pieces that are loading, more than there are ever requests in flight:
# the plan of a part takes several objects.
_LOADING_PARTS = 1 << 12
# Chunks in flight take at most a quarter of the limit in addition, or this much.
_LEAST_IN_FLIGHT = 32 << 20


class Room:
    """The pieces of a stream that fit into its limit on bytes; on the I/O loop.

    Counted are the values of pieces that have begun and are not consumed, and decoded chunks that
    several known pieces need, each once.

    Parameters
    ----------
    ahead
        The limit in bytes.

    Attributes
    ----------
    window
        The chunks that known pieces need.
    in_flight
        The most bytes of chunks that may be in flight.
    unconsumed
        The pieces that have begun and are not consumed.
    held
        The bytes of their values.
    """

    def __init__(self, ahead: int) -> None:
        self.window = Window()
        self.in_flight = max(ahead // 4, _LEAST_IN_FLIGHT)
        self.unconsumed = 0
        self.held = 0
        # Of the values that are held, the bytes that are loading; and the most there may be.
        self._loading = 0
        self._loading_parts = 0
        self._at_once = _AT_FIRST
        self._limit = ahead
        self._set_limit()

    def fits(self, piece: Piece) -> bool:
        """Return whether ``piece`` may begin; drop chunks that are kept for later ones if need be.

        A piece that does not fit begins if no other is held.
        """
        if self.unconsumed == 0:
            return True
        size = piece.nbytes + piece.beside
        free = self._limit - self.held - size
        if self.unconsumed >= _BEGUN or free < 0:
            return False
        if self._loading_parts and self._loading_parts + len(piece.parts) > _LOADING_PARTS:
            return False
        cost = self.window.cost(piece.parts)
        if self._loading and self._loading + size + cost > self._at_once:
            return False
        missing = self.window.nbytes + cost - free
        if missing > 0:
            before = self.window.nbytes
            self.window.make_room(missing, self._limit // 2, piece.parts)
            missing -= before - self.window.nbytes
        return missing <= 0

    def begin(self, serial: int, piece: Piece) -> int:
        """Count ``piece`` as begun; return the bytes to be held for it."""
        self.window.begin(serial, piece.parts)
        nbytes = piece.nbytes + piece.beside
        self._loading += nbytes
        self._loading_parts += len(piece.parts)
        self.hold(0, nbytes)
        return nbytes

    def end(self, serial: int, piece: Piece) -> None:
        """Count ``piece`` as loaded."""
        self.window.end(serial, piece.parts)
        nbytes = piece.nbytes + piece.beside
        self._loading -= nbytes
        self._loading_parts -= len(piece.parts)
        # As many bytes again as have come: in each round trip twice as many.
        self._at_once = min(self._at_once + nbytes, max(self._limit, _AT_FIRST))

    def hold(self, before: int, now: int) -> None:
        """Count ``now`` bytes as held for a piece in place of those ``before``."""
        self.held += now - before
        self._set_limit()

    def _set_limit(self) -> None:
        self.window.limit = self._limit - self.held
