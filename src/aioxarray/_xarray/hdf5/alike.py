"""State that the opens of one call for many files share, so that later files reuse earlier ones.

The shared objects have modules of their own, because they need packages that may be missing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

_shared: ContextVar[dict[Any, Any] | None] = ContextVar("aioxarray_shared", default=None)


@contextlib.contextmanager
def sharing() -> Iterator[None]:
    """Let the opens in the body, and in what it awaits, share what they find out."""
    token = _shared.set({})
    try:
        yield
    finally:
        _shared.reset(token)


def shared(make: Callable[[], T]) -> T | None:
    """Return what the opens of this call share, made by the first; None for a single open."""
    found = _shared.get()
    if found is None:
        return None
    # Threads may get here at once: all of them take the same one.
    result: T = found.get(make) or found.setdefault(make, make())
    return result
