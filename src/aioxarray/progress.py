"""Progress reporting for loads and saves: a tqdm bar or a user's callable."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Literal

from aioxarray._runtime.loops import deliver
from aioxarray._runtime.workers import in_worker

Progress = bool | Literal["verdict"] | Callable[[int, int], object] | None
"""None or False: none; True: a tqdm bar in bytes; a callable takes (done, total) in bytes.

"verdict" is a bar, and the verdict of a trace at the end; see `aioxarray.tracing.concluded`.
"""

_logger = logging.getLogger("aioxarray")

# More frequent updates would not be visible.
_INTERVAL_S = 0.05


class Meter:
    """Count of the bytes that have been loaded or saved, reported to a callable.

    Attributes
    ----------
    total, done
        Bytes of the arrays, decoded.
    """

    def __init__(self, show: Callable[[int, int], object] | None, total: int) -> None:
        self.total = total
        self.done = 0
        self._show = show
        self._shown_at = -_INTERVAL_S

    def part(self, nbytes: int) -> Callable[[int, int], None]:
        """Return a callback that takes the (done, total) of a part of ``nbytes`` bytes."""
        return _Part(self, nbytes)

    def state(self) -> str:
        """Say how many bytes have arrived."""
        return f"{self.done} of {self.total} bytes had arrived"

    def add(self, nbytes: int) -> None:
        """Count ``nbytes`` more."""
        if nbytes == 0:
            return
        self.done += nbytes
        if self._show is None:
            return
        now = time.monotonic()
        if self.done >= self.total or now - self._shown_at >= _INTERVAL_S:
            self._shown_at = now
            done = self.done
            deliver(lambda: self._tell(done))

    def _tell(self, done: int) -> None:
        if self._show is None:
            return
        try:
            self._show(done, self.total)
        except Exception:
            # Log it once: it would probably fail at every chunk.
            self._show = None
            _logger.exception("the progress callback failed; the load goes on without it")


class _Part:
    """Counts a part of what a meter counts."""

    __slots__ = ("_done", "_meter", "_nbytes")

    def __init__(self, meter: Meter, nbytes: int) -> None:
        self._meter = meter
        self._nbytes = nbytes
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        now = self._nbytes * done // total
        self._meter.add(now - self._done)
        self._done = now


def check_progress(progress: Progress) -> None:
    """Raise if ``progress`` is not a `Progress`, or if no bar can be shown."""
    if progress is True or progress == "verdict":
        # Importing it here would stall the caller's event loop.
        if importlib.util.find_spec("tqdm") is None:
            raise ImportError(
                "progress=True shows its bar with tqdm, which is not installed: "
                "pip install 'aioxarray[progress]', or pass a callable"
            )
    elif not (progress is None or progress is False or callable(progress)):
        raise TypeError(
            'progress must be True, "verdict", False, None or a callable that takes (done, total) '
            "in bytes; "
            f"got {progress!r}"
        )


def meter(progress: Progress, total: int, what: str = "load") -> AbstractAsyncContextManager[Meter]:
    """Return a context with a `Meter` for ``total`` bytes that reports as ``progress`` says.

    ``what`` labels the bar.
    """
    if progress is True or progress == "verdict":
        return _with_bar(total, what)
    return nullcontext(Meter(progress or None, total))


@asynccontextmanager
async def _with_bar(total: int, what: str) -> AsyncIterator[Meter]:
    bar = (await in_worker(_tqdm))(
        total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=what
    )
    try:
        yield Meter(lambda done, _: bar.update(done - bar.n), total)
    finally:
        # Delivered, so that it comes after the updates still on their way to the caller.
        deliver(bar.close)


def _tqdm() -> Any:
    from tqdm.auto import tqdm

    return tqdm
