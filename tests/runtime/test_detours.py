"""A thread that waits for a call in another thread is let go when its task is cancelled."""

from __future__ import annotations

import asyncio
import threading

import pytest

from aioxarray._runtime.detours import detour
from aioxarray._runtime.leash import Leash
from aioxarray._runtime.threads import Pool
from tests.runtime.helpers import PATIENCE_S, run_script, until


def test_a_detour_returns_and_raises_what_the_call_does() -> None:
    pool = Pool("own", 1)
    name = detour(pool, lambda: threading.current_thread().name)
    assert name.startswith("own")
    with pytest.raises(ZeroDivisionError):
        detour(pool, lambda: 1 / 0)


def test_pulling_the_leash_ends_the_wait_and_frees_the_threads() -> None:
    async def main() -> None:
        outer, inner = Pool("outer", 1), Pool("inner", 1)
        leash = Leash()
        begun, may_end = threading.Event(), threading.Event()

        def hang() -> None:
            begun.set()
            assert may_end.wait(PATIENCE_S)

        waiting = asyncio.create_task(outer.run(lambda: leash.run(lambda: detour(inner, hang))))
        await until(begun)
        leash.pull()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        # Both pools have but one thread, of which the inner one's hangs.
        assert await outer.run(lambda: detour(inner, lambda: "free")) == "free"
        may_end.set()

    asyncio.run(main())


EXIT = """
import asyncio, threading
from aioxarray._runtime.crew import uncut
from aioxarray._runtime.detours import detour
from aioxarray._runtime.threads import Pool

outer, inner, never = Pool("outer", 1), Pool("inner", 1), threading.Event()
begun = threading.Event()

def hang():
    begun.set()
    never.wait()

def library():
    with uncut():
        try:
            detour(inner, hang)
        except asyncio.CancelledError:
            print("let go of its locks", flush=True)

outer.submit(library)
begun.wait()
"""


def test_the_end_of_the_process_ends_the_wait() -> None:
    assert run_script(EXIT, timeout_s=PATIENCE_S) == "let go of its locks\n"
