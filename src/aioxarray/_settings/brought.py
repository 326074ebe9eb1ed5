"""Settings that the client of a cluster brings to its workers, for the time of a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

# Settings of a cluster's client, in place of this process's own, while one of its tasks is read.
_brought: ContextVar[Mapping[str, Any] | None] = ContextVar("aioxarray_brought", default=None)


def brought(settings: Mapping[str, Any] | None) -> AbstractContextManager[None]:
    """Return a context in which ``settings`` hold in place of those of this process.

    They are of the names "concurrency", "memory" and "retry", and were checked where they are from.
    None changes nothing.
    """
    # For nearly all calls: a generator would be more objects for each of those that wait.
    return nullcontext() if settings is None else _bringing(settings)


@contextmanager
def _bringing(settings: Mapping[str, Any]) -> Iterator[None]:
    token = _brought.set(settings)
    try:
        yield
    finally:
        _brought.reset(token)


def brought_value(name: str) -> Any:
    """Return the value that was brought for a setting; None if there is none."""
    settings = _brought.get()
    return None if settings is None else settings.get(name)
