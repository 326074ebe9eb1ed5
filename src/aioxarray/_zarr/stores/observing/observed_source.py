"""A local source whose reads observers are told of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from aioxarray._zarr.stores.calls import current_call
from aioxarray._zarr.stores.observing.observers import Observer, Origin, Part
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.request import current_variable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from zarr.abc.store import Store

    from aioxarray._zarr.stores.sources import LocalSource, ReadPart, ReadSmall


class ObservedSource:
    """A wrapper that tells observers of the reads of a local source.

    It makes no `Request`, which would cost as much as reading a small chunk from memory.
    """

    remote = False

    def __init__(self, source: LocalSource, store: Store, observers: tuple[Observer, ...]) -> None:
        self.instant = source.instant
        self._source = source
        self._observers = observers
        call = current_call()
        aim = None if call is None else call.aim
        self._origin = Origin(printable(store), aim, current_variable())

    def read(self, key: str) -> Any | None:
        begun = perf_counter()
        try:
            data = self._source.read(key)
        except BaseException as error:
            self._tell(key, None, 0, begun, error)
            raise
        self._tell(key, None, 0 if data is None else len(data), begun)
        return data

    @contextmanager
    def small_reads(self, most: int) -> Iterator[ReadSmall]:
        # Notifying the observers of each read would take as long as reading from memory.
        keys: list[str] = []
        sizes: list[int] = []
        with self._source.small_reads(most) as read_small:
            # Each read begins when the one before has ended.
            times = [perf_counter()]

            def read(key: str) -> Any | None:
                try:
                    data = read_small(key)
                except BaseException as error:
                    self._tell(key, None, 0, times[-1], error)
                    raise
                times.append(perf_counter())
                keys.append(key)
                sizes.append(0 if data is None else len(data))
                return data

            try:
                yield read
            finally:
                for observer in self._observers:
                    observer.read_in_a_row(self._origin, keys, sizes, times)

    def read_into(self, key: str, dest: NDArray[np.uint8]) -> int | None:
        begun = perf_counter()
        try:
            count = self._source.read_into(key, dest)
        except BaseException as error:
            self._tell(key, None, 0, begun, error)
            raise
        self._tell(key, None, count or 0, begun)
        return count

    @contextmanager
    def opened(self, key: str) -> Iterator[ReadPart]:
        with self._source.opened(key) as read_part:

            def read(start: int, stop: int | None) -> Any | None:
                begun = perf_counter()
                try:
                    data = read_part(start, stop)
                except BaseException as error:
                    self._tell(key, (start, stop), 0, begun, error)
                    raise
                self._tell(key, (start, stop), 0 if data is None else len(data), begun)
                return data

            yield read

    def _tell(
        self,
        key: str,
        part: Part | None,
        nbytes: int,
        begun: float,
        error: BaseException | None = None,
    ) -> None:
        ended = perf_counter()
        for observer in self._observers:
            observer.read(self._origin, key, part, nbytes, begun, ended, error)
