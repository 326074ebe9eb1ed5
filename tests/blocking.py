"""Finds calls of aioxarray that would block its caller's event loop."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from blockbuster import BlockBuster, BlockBusterFunction

import aioxarray

PACKAGE = str(Path(aioxarray.__file__).parent)
# Fakes and servers of tests may wait: they are not what is tested.
TEST_KIT = str(Path(PACKAGE, "testing"))
# The demo calls aioxarray as a user does, and plain xarray to show how that blocks its loop.
DEMO = str(Path(PACKAGE, "_demo"))

# A test that runs a caller's loop in another thread gives the thread a name with this prefix.
CALLER = "caller"


@contextmanager
def blocking_calls() -> Iterator[list[str]]:
    """Collect, while the context is open, where aioxarray blocked a caller's asyncio loop.

    A caller's loop is one that runs in the main thread, or in one whose name begins with
    `CALLER`. The I/O loop is not one; and what a test itself does on its loop, and what it does
    through a blocking function of aioxarray, is its own affair. Trio's loops are not watched
    (blockbuster knows none), but what runs on them is the same code.

    The calls (sleeping, waiting for a lock, files, blocking sockets: blockbuster's list) are
    carried out, not refused: an error could be swallowed, and would change what is tested.
    """
    found: list[str] = []
    detector = BlockBuster()
    for function in detector.functions.values():
        function.can_block_predicate = _noting(function, found)
    detector.activate()
    try:
        yield found
    finally:
        detector.deactivate()


def _noting(function: BlockBusterFunction, found: list[str]) -> Callable[..., bool]:
    """Return a predicate that allows every call and notes those that should not be."""
    harmless = function.can_block_predicate

    def predicate(*args: Any, **kwargs: Any) -> bool:
        if _is_caller() and not harmless(*args, **kwargs):
            stack = traceback.extract_stack(sys._getframe(2))
            if _is_ours(stack) and not _is_allowed(stack, function):
                calls = "".join(traceback.format_list(stack))
                found.append(f"{function.full_name} was called on the caller's loop:\n{calls}")
        return True

    return predicate


def _is_caller() -> bool:
    thread = threading.current_thread()
    return thread is threading.main_thread() or thread.name.startswith(CALLER)


def _is_ours(stack: traceback.StackSummary) -> bool:
    """Say whether the innermost coroutine or callback of the loop went through aioxarray."""
    for frame in reversed(stack):
        name = frame.filename
        if name.startswith(PACKAGE) and not name.startswith(TEST_KIT):
            return frame.name != "run_blocking" and not name.startswith(DEMO)
        if frame.name == "__del__":
            # The garbage collector ends others' objects wherever it happens to run.
            return False
        if name.startswith(str(Path(asyncio.__file__).parent)) and frame.name == "_run_once":
            break
    return False


def _is_allowed(stack: traceback.StackSummary, function: BlockBusterFunction) -> bool:
    """Apply blockbuster's own list of exceptions (imports, starting a thread)."""
    return any(
        frame.filename.replace("\\", "/").endswith(file) and frame.name in names
        for frame in stack
        for file, names in function.can_block_functions
    )
