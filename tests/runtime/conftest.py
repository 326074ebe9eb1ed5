"""Fixtures of the runtime's tests: an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from aioxarray._runtime.loops import use_io_loop


@pytest.fixture
def remote_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in another thread and serves as the I/O loop."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="remote-loop", daemon=True)
    thread.start()
    with use_io_loop(loop):
        yield loop

    async def others() -> set[asyncio.Task[object]]:
        return asyncio.all_tasks() - {asyncio.current_task()}

    left = asyncio.run_coroutine_threadsafe(others(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert not left
