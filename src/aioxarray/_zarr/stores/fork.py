"""Stores in forked processes: recreates those that can be, and rejects those that would hang."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import FsspecStore, WrapperStore

from aioxarray._runtime.threads.forks import after_fork, before_fork
from aioxarray._zarr.stores.identity import libraries, unwrapped
from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import ForkError

if TYPE_CHECKING:
    from zarr.abc.store import Store

# Libraries whose clients run in threads of a Rust runtime (tokio). A forked child has the runtime's
# memory but not its threads, and waits for them forever, even with a new client.
_RUST_CLIENTS = ("obstore", "icechunk")

# The libraries whose runtime had started in a process that this one was forked from.
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
        # Not Linux: assume that an imported client has been used.
        return True
    for task in tasks.iterdir():
        # A thread may end meanwhile.
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("tokio"):
                return True
    return False


@after_fork
def _lose_runtimes() -> None:
    global _lost
    _lost |= _at_fork


def usable_after_fork(store: Store) -> Store:
    """Return ``store``, or a store of the same data that works in this process.

    Raises
    ------
    ForkError
        If the store's client hangs in this process because of a fork.
    """
    if isinstance(store, WrapperStore):
        inner = usable_after_fork(store._store)
        return store if inner is store._store else store._with_store(inner)
    for library in _clients(store) & _lost if _lost else ():
        raise ForkError(
            f"{printable(store)!r} cannot be read in this process: it was forked after {library} "
            f"had started its threads, and {library} hangs in such a process. Start workers with "
            "multiprocessing's 'spawn' or 'forkserver' method and open the data there, or fork "
            "before the first read."
        )
    if isinstance(store, FsspecStore) and getattr(store.fs, "_pid", os.getpid()) != os.getpid():
        # It is bound to a loop of the parent; unpickling makes a new filesystem.
        return FsspecStore(
            pickle.loads(pickle.dumps(store.fs)),
            read_only=store.read_only,
            path=store.path,
            allowed_exceptions=store.allowed_exceptions,
        )
    return store


def is_transaction(store: Any) -> bool:
    """Return whether changes to ``store`` are invisible to readers until they are committed."""
    return "icechunk" in _clients(unwrapped(store))


def _clients(store: Any) -> set[str]:
    # zarr's ObjectStore wraps an obstore store; icechunk has its own store class.
    return libraries(getattr(store, "store", store))
