"""Reads small chunks of which the codec can decode many by one call.

A chunk of some KB is mostly work for the interpreter, whose lock two threads that read chunks one
by one pass to and fro. Here some are fetched, decoded by one call, for which nobody needs that
lock, and put in their places. Of threads that do not wait for a server one at a time has a turn at
what does need the lock, while another one decodes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr.chunks.placing import Placer
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sharing import Lead, Sharing, failing
from aioxarray._zarr.stores.sources import Source

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.selection import Chunk

# Of larger ones decoding is most of the work.
SMALL_BYTES = 8 << 10
# So many decoded bytes at once: they, and what they are made of, stay in a processor's cache.
_TOGETHER_BYTES = 256 << 10
# What does not shrink gets a little longer.
_LONGER_BY = 64

# Held by the one thread of the process that works on small chunks in Python.
_turn = threading.Lock()
_NOTHING = nullcontext()


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
    sharing
        Gives them to others, too.
    size
        Bytes of a chunk, decoded.
    decoding
        Held by those who decode in threads that are not for decoding.

    Attributes
    ----------
    held
        Bytes that are held while chunks are read, encoded and decoded.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        placer: Placer,
        sharing: Sharing[Chunk, bool],
        size: int,
        decoding: AbstractContextManager[Any],
    ) -> None:
        self._store = store
        self._source = source
        self._placer = placer
        self._sharing = sharing
        self._decoding = decoding
        self._most = size + _LONGER_BY
        self._count = max(1, _TOGETHER_BYTES // size)
        self.held = 2 * self._count * size

    @classmethod
    def can_read(cls, placer: Placer, sharing: Sharing[Chunk, bool], size: int) -> bool:
        """Say whether chunks of ``size`` bytes should, and can, be read together."""
        prepared = placer.prepared
        # What is kept is decoded into memory of its own.
        if prepared is None or sharing.keeps:
            return False
        return prepared.decodes_many and 0 < size <= SMALL_BYTES

    def read(self, leads: Sequence[Lead[Chunk]], stop: threading.Event) -> list[bool]:
        """Read chunks, and put them in their places; return which of them were there.

        In a thread. It ends early once ``stop`` is set.
        """
        there: list[bool] = []
        for start in range(0, len(leads), self._count):
            if stop.is_set():
                break
            there += self._read(leads[start : start + self._count])
        return there

    def _read(self, leads: Sequence[Lead[Chunk]]) -> list[bool]:
        # Who waits for a server shall not keep others from working.
        turn = _NOTHING if self._source.remote else _turn
        with turn:
            fetched = [self._fetch(lead) for lead in leads]
        with self._decoding:
            decoder = self._placer.decoder(leads[0][0][1].shape)
            found = [data for data in fetched if data is not None]
            alike = all(chunk[1].shape == decoder.shape for chunk, _ in leads)
            decoded = decoder.many(found) if found and alike else None
            with turn:
                parts = None if decoded is None else iter(decoded)
                for data, lead in zip(fetched, leads, strict=True):
                    part = None if parts is None or data is None else next(parts)
                    if part is not None and self._sharing.is_alone(lead):
                        self._placer.put_bytes(part, decoder, lead[0])
                    else:
                        with chunk_noted(lead[0][0], self._store):
                            self._sharing.put(data, lead)
        return [data is not None for data in fetched]

    def _fetch(self, lead: Lead[Chunk]) -> Any | None:
        chunk, _ = lead
        try:
            return self._source.read_small(chunk[0], self._most)
        except Exception:
            with chunk_noted(chunk[0], self._store), failing([lead]):
                raise


@after_fork
def _reset_after_fork() -> None:
    # A thread of the parent may have had it.
    global _turn
    _turn = threading.Lock()
