"""The steps that make this package usable in a process that was forked.

Threads, loops and requests stay with the parent, and its locks may have been held by its threads.
The steps run in the order in which they were registered, that of the imports: the lower layers'
first.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[[], object])

_before: list[Callable[[], object]] = []
_in_child: list[Callable[[], object]] = []


def before_fork(step: F) -> F:
    """Have ``step`` called in the parent, before it forks; to be used as a decorator."""
    _before.append(step)
    return step


def after_fork(step: F) -> F:
    """Have ``step`` called in the child, before anything else runs there."""
    _in_child.append(step)
    return step


def _run(steps: list[Callable[[], object]]) -> None:
    for step in steps:
        step()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: _run(_before), after_in_child=lambda: _run(_in_child))
