"""Virtual clock that skips waiting, so that latency becomes an exact number."""

from __future__ import annotations

import asyncio
import math
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from types import CoroutineType
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["DeadlockError", "VirtualClock"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class DeadlockError(RuntimeError):
    """Nothing on the loop can make progress. The message lists the tasks and where they wait."""


class VirtualClock:
    """Virtual clock for an event loop: time advances only by waiting, and waiting is instant.

    When nothing is ready to run, no executor job is running, and a timer is due later, time
    jumps to the timer. With 1 s per request, the elapsed time is exactly the number of dependent
    round trips, however busy the machine is.

    Jobs in threads (`loop.run_in_executor`, `asyncio.to_thread`) take no virtual time, and time
    stands still while they run. While a job waits for a coroutine that it submitted to the loop
    (`asyncio.run_coroutine_threadsafe`, or a blocking call of aioxarray), time may jump.

    Use the clock with code that waits on the loop, as `LatencyStore` does. It does not know about
    sockets, or about threads that were not started through the loop (such as those of
    `anyio.to_thread`): a timeout on a real server's answer would expire at once. For such threads
    use `hold`.

    Parameters
    ----------
    patience_s : float, optional
        Real seconds to wait for a call from another thread when nothing else can happen; then
        the run ends with `DeadlockError`.

    Examples
    --------
    >>> async def two_trips():
    ...     await asyncio.sleep(1)  # metadata
    ...     await asyncio.gather(*(asyncio.sleep(1) for chunk in range(100)))
    >>> clock = VirtualClock()
    >>> clock.run(two_trips)
    >>> clock.elapsed_s
    2.0
    """

    def __init__(self, patience_s: float = 5.0) -> None:
        self._patience_s = patience_s
        self._loop: _VirtualLoop | None = None
        self._elapsed_s = 0.0

    def run(self, function: Callable[[*Ts], Coroutine[Any, Any, T]], *args: *Ts) -> T:
        """Run ``function(*args)`` on a new loop, as `asyncio.run` does, from time 0.

        While it runs, the loop is also aioxarray's I/O loop.

        Parameters
        ----------
        function : coroutine function
            The function to run.
        *args
            Its arguments.

        Raises
        ------
        DeadlockError
            If nothing on the loop can make progress any more.
        """
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self._patience_s)) as runner:
            loop = runner.get_loop()
            assert isinstance(loop, _VirtualLoop)
            self._loop = loop
            try:
                with _as_io_loop(loop):
                    return runner.run(function(*args))
            finally:
                # Read before the runner ends the remaining tasks, which is not the function's time.
                self._loop, self._elapsed_s = None, loop.time()

    @property
    def elapsed_s(self) -> float:
        """Virtual seconds since the start of the run, or the length of the last run."""
        loop = self._loop
        return self._elapsed_s if loop is None else loop.time()

    def hold(self) -> AbstractContextManager[None]:
        """Keep time from jumping while the body runs, in any thread."""
        if self._loop is None:
            raise RuntimeError("the clock is not running: hold it within `run`")
        return self._loop.hold()


def _has_threads(executor: Executor) -> bool:
    # Imported late, as below.
    from aioxarray._runtime.threads.pool import Pool

    return isinstance(executor, ThreadPoolExecutor | Pool)


def _as_io_loop(loop: asyncio.AbstractEventLoop) -> AbstractContextManager[None]:
    """Make aioxarray do its I/O on this loop: on its own loop, waiting would take real time."""
    # Imported late: the other test doubles do not need the library's runtime.
    from aioxarray._runtime.loops import use_io_loop

    return use_io_loop(loop)


class _Job:
    """Work in another thread; keeps time from jumping, except while it waits for the loop."""

    def __init__(self) -> None:
        self.awaited = 0  # tasks that it sent to the loop; changed only in the loop's thread


class _VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop with virtual time.

    Only documented methods are overridden. asyncio lets its selector wait until the next timer;
    `_Leaper`, the selector here, advances the time instead.
    """

    _executor: Executor

    def __init__(self, patience_s: float) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()
        self._jobs: set[_Job] = set()
        self._this_thread = threading.local()
        self._sender: _Job | None = None
        super().__init__(_Leaper(self, patience_s))
        # Private to asyncio: a timer within this of now is due. A float that counts months cannot
        # resolve the default of 1 ns: the timer would never be due, and the loop would spin.
        # Can go when asyncio derives it from `time()`; without effect if asyncio does not use it.
        self._clock_resolution = 1e-6
        # Set explicitly, so that every job is submitted by `run_in_executor` below.
        self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="virtual-clock"))

    def time(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        # Rounded to the nanosecond, so that a thousand waits of 0.05 s take 50.0 s and not
        # 50.00000000000044. But always forward, which rounding alone does not guarantee.
        later = round(self._now_s + seconds, 9)
        self._now_s = max(later, math.nextafter(self._now_s, math.inf))

    # --- what keeps time from jumping --------------------------------------------------------

    @property
    def is_held(self) -> bool:
        with self._lock:
            return any(job.awaited == 0 for job in self._jobs)

    def _begin(self) -> _Job:
        job = _Job()
        with self._lock:
            self._jobs.add(job)
        return job

    def _end(self, job: _Job) -> None:
        with self._lock:
            self._jobs.discard(job)
        try:
            # Wake the selector, which may be waiting for this.
            super().call_soon_threadsafe(lambda: None)
        except RuntimeError:  # the job outlived the loop
            pass

    @contextmanager
    def hold(self) -> Iterator[None]:
        job = self._begin()
        try:
            yield
        finally:
            self._end(job)

    # --- jobs in threads -----------------------------------------------------------------------

    def set_default_executor(self, executor: ThreadPoolExecutor) -> None:  # type: ignore[override,unused-ignore]
        super().set_default_executor(executor)
        self._executor = executor

    def run_in_executor(  # type: ignore[override,unused-ignore]
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        executor = self._executor if executor is None else executor
        job = self._begin()

        def work() -> T:
            self._this_thread.job = job
            try:
                return func(*args)
            finally:
                self._this_thread.job = None

        try:
            # A job for another process has to be pickled, and cannot call this loop anyway.
            if _has_threads(executor):
                done: Future[T] = executor.submit(work)
            else:
                done = executor.submit(func, *args)
        except BaseException:
            self._end(job)
            raise
        # The loop gets the result before the job's end, so time cannot jump in between.
        result = asyncio.wrap_future(done, loop=self)
        # Not on `result`, which is done as soon as it is cancelled, while the thread still runs.
        done.add_done_callback(lambda _: self._end(job))
        return result

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # A hold instead of the timeout: the threads end in real time.
        with self.hold():
            await super().shutdown_default_executor()

    # A job that sends a coroutine to the loop waits for it, so time may have to jump for the job
    # to continue. Such a coroutine becomes a task in a call from the job's thread.

    def call_soon_threadsafe(  # type: ignore[override,unused-ignore]
        self, callback: Callable[..., object], *args: Any, context: Any = None
    ) -> asyncio.Handle:
        job: _Job | None = getattr(self._this_thread, "job", None)
        if job is None:
            return super().call_soon_threadsafe(callback, *args, context=context)
        return super().call_soon_threadsafe(self._call_for, job, callback, args, context=context)

    def _call_for(self, job: _Job, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._sender = job
        try:
            callback(*args)
        finally:
            self._sender = None

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        job = self._sender
        if job is not None:

            def answered(_: object) -> None:
                job.awaited -= 1

            job.awaited += 1
            # The task's first callback, so the job counts as running before it can continue.
            task.add_done_callback(answered)
        return task


class _Leaper(selectors.DefaultSelector):
    """Selector that advances the time where another selector would sleep."""

    def __init__(self, loop: _VirtualLoop, patience_s: float) -> None:
        super().__init__()
        self._loop = loop
        self._patience_s = patience_s

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # In this order: a job that ends between these lines has already woken the selector.
        is_held = self._loop.is_held
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if is_held:
            return super().select(None)
        if timeout is not None:
            self._loop.advance(timeout)
            return []
        events = super().select(self._patience_s)
        if not events:
            waiting = "\n".join(f"  {_where(task)}" for task in asyncio.all_tasks(self._loop))
            raise DeadlockError(
                "nothing is ready, no timer is set, no job is at work, and no other thread "
                f"called for {self._patience_s} s. Waiting:\n{waiting}"
            )
        return events


def _where(task: asyncio.Task[Any]) -> str:
    """Return the name of a task and the innermost line at which it waits."""
    coroutine: Any = task.get_coro()
    while isinstance(inner := getattr(coroutine, "cr_await", None), CoroutineType):
        coroutine = inner
    frame = getattr(coroutine, "cr_frame", None)
    if frame is None:
        return task.get_name()
    code = frame.f_code
    return f"{task.get_name()}: {code.co_qualname} ({code.co_filename}:{frame.f_lineno})"
