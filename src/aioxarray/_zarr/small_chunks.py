"""Reads small chunks of which the codec can decode many by one call.

A chunk of some KB is mostly work for the interpreter, whose lock two threads that read chunks one
by one pass to and fro. Here one of them fetches some, and puts those before in their places, while
another one decodes, for which nobody needs that lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aioxarray._zarr.chunks import noted
from aioxarray._zarr.placing import Placer
from aioxarray._zarr.sources import Source

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.chunks import Chunk

# Of larger ones decoding is most of the work.
SMALL_BYTES = 8 << 10
# So many decoded bytes at once: they, and what they are made of, stay in a processor's cache.
_TOGETHER_BYTES = 256 << 10
# What does not shrink gets a little longer.
_LONGER_BY = 64

# Held by the one thread of the process that works on small chunks in Python.
_turn = threading.Lock()


class SmallChunks:
    """Chunks of at most `SMALL_BYTES` of an array.

    Parameters
    ----------
    store
        The store, for errors to name.
    source
        Reads it.
    placer
        Puts the chunks into the result.
    size
        Bytes of a chunk, decoded.

    Attributes
    ----------
    held
        Bytes that are held while chunks are read, encoded and decoded.
    """

    def __init__(self, store: Store, source: Source, placer: Placer, size: int) -> None:
        self._store = store
        self._source = source
        self._placer = placer
        self._most = size + _LONGER_BY
        self._count = max(1, _TOGETHER_BYTES // size)
        self.held = 2 * self._count * size

    @classmethod
    def of(cls, store: Store, source: Source, placer: Placer, size: int) -> SmallChunks | None:
        """Return what reads the chunks together, or None if it should, or can, not."""
        prepared = placer.prepared
        if prepared is None or not prepared.decodes_many or not 0 < size <= SMALL_BYTES:
            return None
        return cls(store, source, placer, size)

    def read(self, chunks: Sequence[Chunk], stop: threading.Event) -> list[bool]:
        """Read ``chunks``, and put them in their places; return which of them were there.

        In a thread. It ends early once ``stop`` is set.
        """
        there: list[bool] = []
        for start in range(0, len(chunks), self._count):
            if stop.is_set():
                break
            there += self._read(chunks[start : start + self._count])
        return there

    def _read(self, chunks: Sequence[Chunk]) -> list[bool]:
        with _turn:
            fetched = [self._fetch(chunk) for chunk in chunks]
        found = [
            (data, chunk) for data, chunk in zip(fetched, chunks, strict=True) if data is not None
        ]
        decoder = self._placer.decoder(chunks[0][1].shape)
        alike = all(chunk[1].shape == decoder.shape for chunk in chunks)
        decoded = decoder.many([data for data, _ in found]) if found and alike else None
        with _turn:
            if decoded is None:
                for data, chunk in found:
                    with noted(chunk, self._store):
                        self._placer.put(data, chunk)
            else:
                for part, (_, chunk) in zip(decoded, found, strict=True):
                    self._placer.put_bytes(part, decoder, chunk)
        return [data is not None for data in fetched]

    def _fetch(self, chunk: Chunk) -> Any | None:
        with noted(chunk, self._store):
            data = self._source.read_small(chunk[0], self._most)
            if data is None:
                self._placer.put(None, chunk)
            return data


def _reset_after_fork() -> None:
    # A thread of the parent may have had it.
    global _turn
    _turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
