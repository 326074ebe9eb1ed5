"""A store that kills the process in which a chunk is written, for workers of a cluster."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.storage import WrapperStore

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer


class KillingStore(WrapperStore[Store]):
    """A store whose process is killed as it writes chosen chunks, each once.

    Parameters
    ----------
    store
        The store.
    folder
        A folder that all processes share, where each kill leaves a file.
    moments
        By key of a chunk, whether to be killed after it was written, and not before.
    """

    def __init__(self, store: Store, folder: Path, moments: dict[str, bool]) -> None:
        super().__init__(store)
        self._folder = folder
        self._moments = moments

    def _with_store(self, store: Store) -> KillingStore:
        return type(self)(store, self._folder, self._moments)

    def __reduce__(self) -> Any:
        return type(self), (self._store, self._folder, self._moments)

    async def set(self, key: str, value: Buffer) -> None:
        mark = self._folder / key.replace("/", "_")
        if key not in self._moments or mark.exists():
            await super().set(key, value)
            return
        if self._moments[key]:
            await super().set(key, value)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def moments(keys: Iterable[str], count: int, seed: int) -> dict[str, bool]:
    """Return ``count`` of the chunks, and when to be killed."""
    rng = random.Random(seed)
    return {key: rng.random() < 0.5 for key in rng.sample(sorted(keys), count)}
