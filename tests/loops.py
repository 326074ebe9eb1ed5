"""The event loops on which coroutines are tested."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "trio": ("trio", {}),
}
if sys.platform != "win32":
    LOOPS["uvloop"] = ("asyncio", {"use_uvloop": True})


def every_loop(function: Callable[..., Any]) -> Any:
    """Run a coroutine test once on each of `LOOPS`; a decorator."""
    on_each = pytest.mark.parametrize("anyio_backend", list(LOOPS.values()), ids=list(LOOPS))
    return pytest.mark.anyio(on_each(function))
