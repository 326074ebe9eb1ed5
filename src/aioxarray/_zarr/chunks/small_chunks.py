"""Reading many small chunks at a time, decoded with one call of the codec.

Reading a chunk of a few KB mostly runs Python code, so threads that read such chunks one by one
pass the GIL back and forth. Here a thread fetches several chunks, decodes them with one call that
releases the GIL, and copies them into the result. For local stores, only one thread at a time does
the steps that need the GIL, while another one decodes.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from aioxarray._runtime.flights import Flight
from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr import tuning
from aioxarray._zarr.chunks.result import Result
from aioxarray._zarr.stores.request import chunk_noted
from aioxarray._zarr.stores.sharing import Sharing
from aioxarray._zarr.stores.sources import ReadSmall, Source

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from aioxarray._zarr.codecs.decoders import Prepared
    from aioxarray._zarr.selection import Chunk

# Data that does not compress becomes a little longer.
_LONGER_BY = 64

# Held by the thread that runs Python code for small chunks.
_turn = threading.Lock()
_NOTHING = nullcontext()


class SmallChunks:
    """Reads chunks of at most `tuning.SMALL_CHUNK_BYTES` of an array.

    Parameters
    ----------
    store
        The store, named in errors.
    source
        The source that reads it.
    result
        The result.
    sharing
        Shares the chunks with other reads.
    nbytes
        The decoded bytes of a chunk.
    decoding
        A context for decoding, which limits it in threads that are not decoding threads.

    Attributes
    ----------
    held
        The bytes held during a read: encoded and decoded chunks.
    """

    def __init__(
        self,
        store: Store,
        source: Source,
        result: Result,
        sharing: Sharing,
        nbytes: int,
        decoding: AbstractContextManager[Any],
    ) -> None:
        self._store = store
        self._source = source
        self._result = result
        self._sharing = sharing
        self._decoding = decoding
        self._most = nbytes + _LONGER_BY
        self._count = self._together(nbytes)
        self.held = self.held_for(nbytes)

    @staticmethod
    def can_read(prepared: Prepared | None, nbytes: int, *, keeps: bool) -> bool:
        """Return whether chunks of ``nbytes`` bytes should, and can, be read together.

        ``keeps`` tells whether decoded chunks are kept in the cache.
        """
        # For the cache, each chunk is decoded into a separate array.
        if prepared is None or keeps:
            return False
        return prepared.decodes_many and 0 < nbytes <= tuning.SMALL_CHUNK_BYTES

    @staticmethod
    def _together(nbytes: int) -> int:
        return max(1, tuning.TOGETHER_BYTES // nbytes)

    @classmethod
    def held_for(cls, nbytes: int) -> int:
        """Return the bytes held while a thread reads chunks of ``nbytes`` bytes."""
        return 2 * cls._together(nbytes) * nbytes

    def read(self, led: Sequence[Flight[Chunk]], found: list[bool], stop: threading.Event) -> None:
        """Read chunks into the result, in a worker thread.

        Appends to ``found``, for each chunk that is done, whether it exists. Ends early once
        ``stop`` is set.
        """
        for start in range(0, len(led), self._count):
            if stop.is_set():
                break
            found += self._read(led[start : start + self._count])

    def read_unshared(self, chunks: Sequence[Chunk], stop: threading.Event) -> list[bool]:
        """Read chunks that no other read needs, from a store at hand, as `read` does.

        Returns, for each chunk that is done, whether it exists.
        """
        there: list[bool] = []
        for start in range(0, len(chunks), self._count):
            if stop.is_set():
                break
            there += self._read_unshared(chunks[start : start + self._count])
        return there

    def _read_unshared(self, chunks: Sequence[Chunk]) -> list[bool]:
        result = self._result
        assert result.prepared is not None
        decoder = result.prepared.decoder(chunks[0].spec.shape)
        fetched: list[Any] = []
        with _turn, self._source.small_reads(self._most) as read:
            try:
                fetched += map(read, (chunk.key for chunk in chunks))
            except Exception:
                with chunk_noted(chunks[len(fetched)].key, self._store):
                    raise
        found = [data for data in fetched if data is not None]
        have_one_shape = all(chunk.spec.shape == decoder.shape for chunk in chunks)
        begun = perf_counter()
        decoded = decoder.many(found) if found and have_one_shape else None
        if decoded is not None:
            result.tell_decoded(chunks[0], len(found), sum(map(len, found)), begun)
        with _turn:
            all_there = decoded is not None and len(found) == len(chunks)
            if all_there and result.put_together(decoded, decoder, chunks):
                return [True] * len(chunks)
            each = None if decoded is None else iter(decoded)
            for data, chunk in zip(fetched, chunks, strict=True):
                if each is not None and data is not None:
                    result.put_bytes(next(each), decoder, chunk)
                    continue
                with chunk_noted(chunk.key, self._store):
                    # Once more, and to its end: one read of a small file might have been cut short.
                    result.put(data if data is None else self._source.read(chunk.key), chunk)
        return [data is not None for data in fetched]

    def _read(self, led: Sequence[Flight[Chunk]]) -> list[bool]:
        # A thread that waits for a server must not hold up the others.
        turn = _NOTHING if self._source.remote else _turn
        with turn, self._source.small_reads(self._most) as read:
            fetched = [self._fetch(read, flight) for flight in led]
        with self._decoding:
            assert self._result.prepared is not None
            decoder = self._result.prepared.decoder(led[0].part.spec.shape)
            found = [data for data in fetched if data is not None]
            have_one_shape = all(flight.part.spec.shape == decoder.shape for flight in led)
            begun = perf_counter()
            decoded = decoder.many(found) if found and have_one_shape else None
            if decoded is not None:
                nbytes = sum(map(len, found))
                self._result.tell_decoded(led[0].part, len(found), nbytes, begun)
            with turn:
                each = None if decoded is None else iter(decoded)
                for data, flight in zip(fetched, led, strict=True):
                    values = None if each is None or data is None else next(each)
                    if values is not None and self._sharing.is_unshared(flight):
                        self._result.put_bytes(values, decoder, flight.part)
                    elif values is not None:
                        # The memory of ``values`` may hold all chunks.
                        array = decoder.shaped(np.frombuffer(bytes(values), np.uint8))
                        self._sharing.put_array(self._result, array, flight)
                    else:
                        with chunk_noted(flight.part.key, self._store):
                            if data is not None and not self._source.remote:
                                # As in `_read_unshared`.
                                data = self._source.read(flight.part.key)
                            self._sharing.put(self._result, data, flight)
        return [data is not None for data in fetched]

    def _fetch(self, read: ReadSmall, flight: Flight[Chunk]) -> Any | None:
        key = flight.part.key
        try:
            return read(key)
        except Exception:
            with chunk_noted(key, self._store), flight:
                raise


@after_fork
def _reset_after_fork() -> None:
    # A thread of the parent may have held the lock.
    global _turn
    _turn = threading.Lock()
