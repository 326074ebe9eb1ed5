"""Which stores still work in a process that was forked, and what to do with the others."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, WrapperStore

from aioxarray._runtime.threads.forks import after_fork, before_fork
from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import ForkError

if TYPE_CHECKING:
    from zarr.abc.store import Store

# Libraries whose clients live in threads of a Rust runtime (tokio). A child has the runtime's
# memory but not its threads, and waits for them for ever, even through a new client.
_RUST_CLIENTS = ("obstore", "icechunk")

# The ones whose runtime had started in a process that this one was forked from.
_lost: frozenset[str] = frozenset()


@before_fork
def _remember_runtimes() -> None:
    global _at_fork
    imported = [name for name in _RUST_CLIENTS if name in sys.modules]
    _at_fork = frozenset(imported if imported and _tokio_runs() else ())


_at_fork: frozenset[str] = frozenset()


def _tokio_runs() -> bool:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        # Not Linux: an imported client has most likely been used.
        return True
    for task in tasks.iterdir():
        # A thread may end while we look.
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("tokio"):
                return True
    return False


@after_fork
def _lose_runtimes() -> None:
    global _lost
    _lost |= _at_fork


def usable_here(store: Store) -> Store:
    """Return ``store``, or one with the same data that works in this process.

    Raises
    ------
    ForkError
        If the store's client hangs in this process because of a fork.
    """
    if isinstance(store, WrapperStore):
        inner = usable_here(store._store)
        return store if inner is store._store else store._with_store(inner)
    library = _library(store)
    if library in _lost:
        raise ForkError(
            f"{printable(store)!r} cannot be read in this process: it was forked after {library} "
            f"had started its threads, and {library} hangs in such a process. Start workers with "
            "multiprocessing's 'spawn' or 'forkserver' method and open the data there, or fork "
            "before the first read."
        )
    if isinstance(store, FsspecStore) and getattr(store.fs, "_pid", os.getpid()) != os.getpid():
        # Bound to a loop of the parent; a filesystem knows how to make itself anew.
        return FsspecStore(
            pickle.loads(pickle.dumps(store.fs)),
            read_only=store.read_only,
            path=store.path,
            allowed_exceptions=store.allowed_exceptions,
        )
    return store


def is_transaction(store: Any) -> bool:
    """Say whether what is written to ``store`` is seen by nobody until it is committed."""
    while isinstance(store, WrapperStore):
        store = store._store
    return _library(store) == "icechunk"


def _library(store: Any) -> str:
    # zarr's ObjectStore holds an obstore client; icechunk brings a store class of its own.
    client = getattr(store, "store", store)
    name: str = type(client).__module__.partition(".")[0]
    return name.removeprefix("_")
