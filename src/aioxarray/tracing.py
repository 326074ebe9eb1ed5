"""Tracing of requests and of decoding: `trace`."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from aioxarray._runtime.loops import deliver
from aioxarray._tracing.comparison import Comparison, compare
from aioxarray._tracing.page import page
from aioxarray._tracing.perfetto import trace_events
from aioxarray._tracing.plotting import plot
from aioxarray._tracing.recording import Recording
from aioxarray._tracing.summary import summarize
from aioxarray._tracing.verdicts import Verdict, judge
from aioxarray._xarray.explaining.load_plan import LoadPlan
from aioxarray._zarr.stores.observing.observers import observed, observed_here
from aioxarray._zarr.stores.observing.records import Recorder, now
from aioxarray.config import thread_count
from aioxarray.progress import Progress

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Trace", "trace"]

Scope = Literal["process", "block"]


def trace(*, scope: Scope = "process", most: int = 100_000) -> Trace:
    """Record the requests that opens, loads and saves make, and the decoding of chunks.

    The result is a context manager, for ``with`` and ``async with``. Traces can be nested, and
    open in several threads and tasks at once; each records by itself::

        with aioxarray.trace() as t:
            aioxarray.load(ds)
        print(t.summary())

    Parameters
    ----------
    scope
        "process" for the requests of all threads and event loops of the process, or "block" for
        those of the block: of the calls in it, and in tasks that it starts. A chunk that a call
        elsewhere is fetching already is requested by that call.
    most
        The number of requests, and of decoding steps, that are kept; the oldest go.

    Returns
    -------
    Trace
        The trace, which is empty before its context is entered.

    Raises
    ------
    TypeError, ValueError
        If ``scope`` or ``most`` is invalid.

    Notes
    -----
    *Requests:* none of its own. One row is one request to a store; some clients send several to
    the server for one (s3fs sends HEAD and GET for the size of an object), or repeat it
    themselves. Reads of the libraries netCDF4 and h5py from local files, and those of dask workers
    in other processes, are not seen.

    *Memory:* about 0.5 kB for each request that is kept.
    """
    return Trace(scope, most)


class Trace:
    """The requests and decoding steps that were recorded while the context was open.

    Everything can be read at any time, also while the context is open. A request is recorded when
    it ends. `trace` makes the object.
    """

    def __init__(self, scope: Scope, most: int) -> None:
        if scope not in ("process", "block"):
            raise ValueError(f'scope must be "process" or "block", got {scope!r}')
        if isinstance(most, bool) or not isinstance(most, int):
            raise TypeError(f"most must be a number of requests, got {most!r}")
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most!r}")
        self._recorder = Recorder(most)
        observing = observed if scope == "process" else observed_here
        self._context: AbstractContextManager[None] | None = observing(self._recorder)
        self._begun = self._ended = self._wall_begun = 0.0
        self._is_open = False

    def __enter__(self) -> Trace:
        context, self._context = self._context, None
        if context is None:
            raise RuntimeError("a trace records once: call aioxarray.trace() again")
        context.__enter__()
        self._observing = context
        self._is_open = True
        self._begun, self._wall_begun = now(), time.time()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended = now()
        self._is_open = False
        self._observing.__exit__(None, None, None)

    async def __aenter__(self) -> Trace:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        recording = self._recording()
        state = "open" if self._is_open else "ended"
        return f"<Trace, {state}: {len(recording.requests)} requests>"

    def _repr_html_(self) -> str:
        text = f"{self.summary()}\n\n{self.verdict()}"
        return f"<pre>{html.escape(text)}</pre>"

    def _recording(self) -> Recording:
        requests, decodes = self._recorder.requests, self._recorder.decodes
        return Recording(
            begun=self._begun,
            ended=now() if self._is_open else self._ended,
            wall_begun=self._wall_begun,
            requests=sorted(requests, key=lambda each: each.begun),
            decodes=sorted(decodes, key=lambda each: each.begun),
            calls=self._recorder.calls,
            shared_count=self._recorder.shared_count,
            brought=self._recorder.brought,
            dropped=max((each.number + 1 for each in requests), default=0) - len(requests),
        )

    @property
    def requests(self) -> pd.DataFrame:
        """The requests, a row each, in the order in which they began.

        Every attempt is a row. The columns:

        ========== ==========================================================================
        start, end seconds since the trace began
        queued_s   seconds that it waited for its place in the limits
        transfer_s seconds from its start to its end
        bytes      bytes read or written
        kind       "get", "exists", "list", "set" or "delete"
        phase      "metadata", "index" (values read by an open), "data" or "write"
        group,     of what the request is for; "" if unknown
        variable
        key        the key in the store; "" for a file
        range      bytes as "0-1023" or "-512" (the last 512); "" for the whole value
        attempt    the number of the attempt
        reason     "first"; "retry" after a failure; "silence" or "hedge" beside, or in place of,
                   a request that is silent or slow
        outcome    "done", "failed" or "cancelled"
        error      why it failed: "HTTP 503"
        store      the store, without credentials
        ========== ==========================================================================
        """
        return self._recording().request_table()

    @property
    def decodes(self) -> pd.DataFrame:
        """The steps in which chunks were decoded, a row each, in the order in which they began.

        The columns are ``start``, ``end`` and ``decode_s`` in seconds, the number of ``chunks``
        (small ones are decoded together), their ``bytes`` before decoding, ``group``,
        ``variable``, and the ``key`` of the first; for inner chunks, that of the shard. Data that
        zarr's own code, HDF5 or another library decodes as it reads it is not there.
        """
        return self._recording().decode_table()

    @property
    def shared(self) -> int:
        """How many reads have waited for a part that another read was fetching."""
        return self._recorder.shared_count

    @property
    def dropped(self) -> int:
        """How many older requests were dropped, as there were more than ``most``."""
        return self._recording().dropped

    def summary(self) -> str:
        """Return the number of requests, bytes and seconds, in total, by phase and by variable.

        The seconds are sums over requests, which overlap. Those of decoding are sums over threads.
        """
        return summarize(self._recording())

    def verdict(self) -> Verdict:
        """Return the bottleneck of the work in the block, with the number that shows it.

        It is "unclear" unless one thing took most of the time. The time is that of the whole
        block, so it should contain little else than the calls in question. Whether requests wait
        for the answer or for its bytes is judged by how long small answers took, such as those
        with metadata: have the open in the block, too.

        Returns
        -------
        Verdict
            Its ``bottleneck``, ``evidence`` and ``advice``; ``str`` is all of it.
        """
        return judge(self._recording(), thread_count())

    def plot(self) -> Figure:
        """Draw the requests of each variable over time, and how many were in flight.

        Returns
        -------
        matplotlib.figure.Figure
            The figure, which pyplot does not know: save it with ``savefig``, or show it as the
            result of a notebook cell. ``axes`` has the timeline and the number in flight.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        return plot(self._recording())

    def compare(self, plan: LoadPlan) -> Comparison:
        """Return ``plan`` beside the requests that were recorded, and why they differ.

        Make the plan before the load::

            plan = aioxarray.explain(ds)
            with aioxarray.trace(scope="block") as t:
                aioxarray.load(ds)
            print(t.compare(plan))

        The reasons are chunks that were in the cache or that another read was fetching, requests
        that were made again, and those that other calls made for the same variables, which a trace
        with ``scope="block"`` leaves out.

        Parameters
        ----------
        plan
            The plan of a load in the block, from `explain`.

        Returns
        -------
        Comparison
            The counts for each variable, and their sums: ``table()``, ``to_dict()``, and as text.

        Raises
        ------
        TypeError
            If ``plan`` is not a plan.
        """
        if not isinstance(plan, LoadPlan):
            raise TypeError(f"plan must be a LoadPlan, from explain(); got {type(plan).__name__}")
        return compare(plan, self._recording())

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that shows the trace to the file ``path``.

        The page has the requests of each variable on a timeline, their concurrency and throughput
        over time, the slowest, and all that were repeated or failed; it can be zoomed and
        searched. It is one file that makes no request. It names stores without credentials, and
        contains the keys.

        Parameters
        ----------
        path
            The file, which is replaced if it exists.
        """
        recording = self._recording()
        verdict = judge(recording, thread_count())
        Path(path).write_text(page(recording, str(verdict)), "utf-8")

    def to_perfetto(self, path: str | os.PathLike[str]) -> None:
        """Write the trace events to the file ``path``, for Perfetto (ui.perfetto.dev).

        The format is the JSON of Chrome's trace events, which other viewers read, too. Each
        variable is a process, and what overlaps in it is in several threads.

        Parameters
        ----------
        path
            The file, which is replaced if it exists.
        """
        Path(path).write_text(trace_events(self._recording()), "utf-8")


@contextmanager
def concluded(progress: Progress) -> Iterator[None]:
    """Print the verdict on the calls in the body after them, if ``progress`` is "verdict".

    It is printed to standard error, below the bar, and in the caller's thread.
    """
    if progress != "verdict":
        yield
        return
    with trace(scope="block") as t:
        yield
    deliver(lambda: _tell(t.verdict()))


def _tell(verdict: Verdict) -> None:
    sys.stderr.write(f"{verdict}\n")
