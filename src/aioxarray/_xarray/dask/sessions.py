"""Icechunk sessions that several processes write to: forks for the workers, merged afterwards.

A writable session cannot be sent to another process, but a fork of it can. The writes of a worker
are in its fork alone, so each task that stores a block returns it. They are merged by the workers
in a tree, as `icechunk.dask` does it, and at last into the caller's session, which the caller
commits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from zarr.storage import WrapperStore

from aioxarray._zarr.stores.identity import unwrapped

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Forks:
    """The forks of an icechunk session for one save that is written by a cluster.

    Parameters
    ----------
    store
        The store of the caller's session, perhaps wrapped.

    Attributes
    ----------
    store
        The store that the process of the caller writes to.

    Raises
    ------
    ValueError
        If icechunk cannot fork the session: before icechunk 2, one with uncommitted changes.
    """

    def __init__(self, store: Store) -> None:
        import icechunk

        self._session = unwrapped(store).session
        # Before icechunk 2, a session with changes cannot be forked: all is written to a fork,
        # metadata too. From icechunk 2 on, merging that would conflict with what it has deleted.
        self._fork_first = int(icechunk.__version__.partition(".")[0]) < 2
        self.store = (
            _with_innermost(store, self._session.fork().store) if self._fork_first else store
        )

    def for_workers(self) -> Store:
        """Return the store to send to workers, with all that was written before."""
        if self._fork_first:
            return self.store
        return _with_innermost(self.store, self._session.fork().store)

    async def merge(self, sessions: Sequence[Any]) -> None:
        """Merge the forks of workers into the session of the caller."""
        await self._session.merge_async(*sessions)


def _with_innermost(store: Store, new: Store) -> Store:
    """Return ``new`` in the wrappers that ``store`` has."""
    if isinstance(store, WrapperStore):
        # Private, as in `usable_after_fork`: what zarr's wrappers build copies with.
        return store._with_store(_with_innermost(store._store, new))
    return new


def merged(targets: Any) -> Any:
    """Return a chunked array of one block: the merged fork of ``targets``, an array of targets."""
    # The array module of the library: expressions of dask-array are no arrays of dask.
    library = type(targets).__module__.partition(".")[0]
    if library == "dask":
        import dask.array as module
    else:
        module = sys.modules[library]
    return module.reduction(
        targets,
        name="merged-sessions",
        chunk=_session,
        aggregate=_merge,
        concatenate=False,
        keepdims=False,
        dtype=object,
        meta=_META,
    )


_META = np.array([object()], dtype=object)


def _session(
    target: Any, axis: Any = None, keepdims: Any = None, computing_meta: bool = False
) -> Any:
    return _META if computing_meta else unwrapped(target.array.store).session


def _merge(
    sessions: Any, axis: Any = None, keepdims: Any = None, computing_meta: bool = False
) -> Any:
    if computing_meta:
        return _META
    # Tasks of one worker may have written to the same one.
    first, *others = {id(each): each for each in _flat(sessions)}.values()
    first.merge(*others)
    return first


def _flat(sessions: Any) -> list[Any]:
    if not isinstance(sessions, list):
        return [sessions]
    return [each for part in sessions for each in _flat(part)]
