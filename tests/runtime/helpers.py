"""What several of the runtime's tests need."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Only a bug waits this long.
PATIENCE_S = 30.0


async def settle() -> None:
    """Let everything that is ready on this loop run."""
    for _ in range(20):
        await asyncio.sleep(0)


async def until(event: threading.Event) -> None:
    """Await an event that another thread sets, without blocking the loop."""
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


def run_script(code: str, timeout_s: float = 90.0) -> str:
    """Run ``code`` in a new Python process and return what it prints.

    The process and its children are killed after ``timeout_s``: a hang is a failure.
    """
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"hung for {timeout_s} s: {output}") from None
    assert process.returncode == 0, output
    return output
