"""Silent and slow requests: they are made again, beside the first or in its place.

A silent read gets a second request beside it, under the limit: the first to answer wins, and the
other one is cancelled. A write is cancelled first, and so is a read if no place becomes free
because all requests of the server are silent. Thus a body that arrives slowly is not given up. With
the setting ``hedge``, a slow read is made again, too, if a place is free and few requests were.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from aioxarray._zarr import tuning
from aioxarray._zarr.stores.retries.attempts import retrying_client
from aioxarray._zarr.stores.retries.errors import transient
from aioxarray._zarr.stores.retries.watch import Watch, patience_s, watch_here
from aioxarray._zarr.stores.servers.hosts import Host, host_of
from aioxarray._zarr.stores.servers.pacing import pace_of
from aioxarray._zarr.stores.servers.turns import place
from aioxarray.config import is_hedging, retry_policy, stall_seconds
from aioxarray.errors import SilentServerError

if TYPE_CHECKING:
    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.clients import Held
    from aioxarray._zarr.stores.request import Reason, Request

T = TypeVar("T")


@dataclass(slots=True)
class SilenceStatistics:
    """The requests of this process that were made again because an answer was missing.

    Attributes
    ----------
    silent
        The requests made because another one was silent.
    hedges
        The requests made because another one was slow.
    won
        Those of both kinds that were answered first.
    """

    silent: int = 0
    hedges: int = 0
    won: int = 0


_counts = SilenceStatistics()


def statistics() -> SilenceStatistics:
    """Return the counts since the start of the process."""
    return replace(_counts)


async def first_answer(
    request: Request, places: Share | None, ask: Callable[[], Awaitable[T]], size: int
) -> T:
    """Await ``ask()``, which makes ``request``; make the request again if it is silent.

    The caller holds the request's place; another one is taken in ``places``. Raises
    SilentServerError if there is no answer until the deadline of the retries.

    Parameters
    ----------
    request, places, ask
        As in `aioxarray._zarr.stores.request.send`.
    size
        The bytes that are expected: many may take long.
    """
    hedges = is_hedging()
    patience = patience_s(size)
    is_off = patience == math.inf and not hedges
    if is_off or (host := host_of(request.store)) is None:
        with request:
            return await ask()
    watch = watch_here()
    asked = _Asked(request, places, ask, size, watch, host)
    asked.due = asked.begun + patience
    if hedges and request.kind == "get":
        asked.is_hedged = True
        asked.hedge_at = asked.begun + watch.of(host).slow_s
    watch.add(asked)
    try:
        with request:
            answer = await ask()
    except BaseException as error:  # noqa: BLE001 - raised again unless there is another answer
        return await asked.recover(error)
    else:
        watch.answered(host, asked.begun, is_hedged=asked.is_hedged)
        host.measured.answered(asked.begun, watch.loop.time(), request.nbytes or 0)
        return answer
    finally:
        watch.remove(asked)
        if asked.others or asked.interrupted:
            await asked.end()


class _Interrupting:
    """A wait of a task, which it can end by cancelling the task; that is undone afterwards.

    Attributes
    ----------
    interrupted
        Whether the task was cancelled here, and that was not undone so far.
    """

    interrupted = False

    def _belongs_to(self, task: asyncio.Task[Any] | None) -> None:
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()

    def interrupt(self) -> None:
        """Cancel the task."""
        if not self.interrupted:
            self.interrupted = True
            self._task.cancel()

    def undo(self) -> bool:
        """Undo that; return whether the task was cancelled here, and by nothing else."""
        if not self.interrupted:
            return False
        self.interrupted = False
        return self._task.uncancel() <= self._cancelling


class _Asked(_Interrupting, Generic[T]):
    """A request in flight, and others beside it that were made because it is silent or slow.

    Attributes
    ----------
    others
        The other requests.
    is_hedged
        Whether another one is made if it is slow.
    """

    # Attributes of the class as long as they do not change: nearly all requests are answered.
    due = hedge_at = math.inf
    others: Sequence[asyncio.Task[T]] = ()
    is_hedged = False
    # The one of them that waits for a place.
    _queued: asyncio.Task[T] | None = None
    _answer: tuple[T] | None = None
    _error: SilentServerError | None = None
    _attempts = 1

    def __init__(
        self,
        request: Request,
        places: Share | None,
        ask: Callable[[], Awaitable[T]],
        size: int,
        watch: Watch,
        host: Host,
    ) -> None:
        self.request = request
        self.host = host
        self.begun = watch.loop.time()
        self._places = places
        self._ask = ask
        self._size = size
        self._watch = watch
        self._belongs_to(asyncio.current_task(watch.loop))
        self._context = contextvars.copy_context()

    async def recover(self, error: BaseException) -> T:
        """Return another answer after an error of the first request; raise the error if none comes.

        The error may be that the request was cancelled here.
        """
        while isinstance(error, asyncio.CancelledError):
            if not self.undo():
                raise error
            if self._answer is not None:
                return self._answer[0]
            if self._error is not None:
                raise self._error from None
            self.request.repeat(self._attempts, "silence")
            self._watch.add(self)
            try:
                with self.request:
                    answer = await self._ask()
            except BaseException as latest:  # noqa: BLE001 - as in `first_answer`
                error = latest
            else:
                self._watch.answered(self.host, self.begun, is_hedged=self.is_hedged)
                return answer
        self._watch.remove(self)
        if isinstance(error, Exception) and transient(error) is not None:
            while self.others and self._answer is None:
                await asyncio.wait(self.others, return_when=asyncio.FIRST_COMPLETED)
                # Until the callbacks of those that are done have run.
                await asyncio.sleep(0)
            if self._answer is not None:
                return self._answer[0]
        raise error

    async def end(self) -> None:
        """Cancel the other requests, and wait for their end."""
        # The client may have swallowed the interruption.
        self.undo()
        await _end(self.others)

    def on_silence(self, now: float, *, is_quiet: bool) -> None:
        """Make the request again, or give it up; ``is_quiet`` if the server sends nothing."""
        policy = retry_policy()
        patience = patience_s(self._size)
        silent_s = now - self.begun
        if silent_s >= patience + policy.deadline:
            attempts = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
            self._error = SilentServerError(
                f"no answer to {attempts} in {silent_s:.1f} s (stall_s={stall_seconds():g}, "
                f"retry.deadline={policy.deadline:g})"
            )
            self._error.attempts = self._attempts
            self.request.name_in(self._error)
            self.interrupt()
            return
        client = retrying_client(self.request.store)
        # icechunk would make the second one wait for the first.
        is_single = self.request.kind in ("set", "delete") or client == "icechunk"
        in_place = is_single or bool(self.others)
        if self._queued is not None:
            if not is_quiet:
                return
            # The places are held by requests that are silent, too.
            self._queued.cancel()
            self._queued = None
            self._attempts -= 1
        # Clients that retry by themselves are helped out once.
        most = policy.attempts if client is None else 2
        if self._attempts >= min(most, policy.attempts) or not self.request.repeatable:
            return
        self._attempts += 1
        self.due = now + math.ldexp(patience, self._attempts - 1)
        _counts.silent += 1
        if in_place:
            self.interrupt()
        else:
            other = self._ask_beside("silence", has_place=False)
            self._queued = None if self._places is None else other

    def on_slowness(self) -> bool:
        """Make the request once more if a place is free; return whether that was done."""
        places = self._places
        pace = pace_of(self.request.store, places)
        if len(self.others) >= tuning.HEDGES_OF_ONE or (pace is not None and pace.is_bounded):
            return False
        if places is not None and not places.take_if_free(long=self._long):
            return False
        self._attempts += 1
        _counts.hedges += 1
        self._ask_beside("hedge", has_place=True)
        return True

    @property
    def _long(self) -> bool:
        return self._size > tuning.LONG_BYTES

    def interrupt(self) -> None:
        """End the first request."""
        if not self.interrupted:
            self._watch.remove(self)
        super().interrupt()

    def _ask_beside(self, reason: Reason, *, has_place: bool) -> asyncio.Task[T]:
        """Start another request; its place was taken already, or it waits for one."""
        request = self.request.again(self._attempts, reason)
        other = self._watch.loop.create_task(
            self._ask_in_place(request, has_place=has_place), context=self._context
        )
        self.others = [*self.others, other]
        other.add_done_callback(self._on_other)
        return other

    async def _ask_in_place(self, request: Request, *, has_place: bool) -> T:
        places = self._places
        if places is None:
            return await self._ask_again(request)
        if has_place:
            try:
                return await self._ask_again(request)
            finally:
                places.release(long=self._long)
        async with place(request, places, long=self._long):
            self._queued = None
            return await self._ask_again(request)

    async def _ask_again(self, request: Request) -> T:
        begun = self._watch.loop.time()
        with request:
            answer = await self._ask()
            request.nbytes = self.request.nbytes
        self._watch.answered(self.host, begun, is_hedged=self.is_hedged)
        return answer

    def _on_other(self, other: asyncio.Task[T]) -> None:
        self.others = [each for each in self.others if each is not other]
        if other is self._queued:
            self._queued = None
        if other.cancelled() or other.exception() is not None:
            # Another one may still be answered; if not, there will be a further one.
            return
        _counts.won += 1
        self._answer = (other.result(),)
        if self in self._watch:
            self.interrupt()


class SilentCall(_Interrupting):
    """A context around a blocking call in a thread, which ends the wait for a silent request.

    The request itself cannot be ended. Its thread is left alone, and does nothing more.

    Parameters
    ----------
    store
        The store or client that the call uses.
    held
        The places of the call.
    size
        The bytes that each of its requests is expected to return.

    Attributes
    ----------
    is_taken_over
        Whether the wait was ended.
    """

    hedge_at = math.inf

    def __init__(self, store: Any, held: Held, size: int) -> None:
        self.host = host_of(store) or Host("memory", None)
        self.is_taken_over = False
        self._held = held
        self._patience_s = patience_s(size)

    def __enter__(self) -> None:
        self._belongs_to(asyncio.current_task())
        self._watch = watch_here()
        self._watch.add(self)

    def __exit__(self, *_: object) -> None:
        self._watch.remove(self)

    @property
    def begun(self) -> float:
        """When the request began that is in flight; now, if there is none."""
        asked_at = self._held.asked_at
        return self._watch.loop.time() if asked_at is None else asked_at

    @property
    def due(self) -> float:
        """When its answer is overdue."""
        return self.begun + self._patience_s

    def on_slowness(self) -> bool:
        """Do nothing: with the setting ``hedge``, no thread waits for a server."""
        return False

    def on_silence(self, now: float, *, is_quiet: bool) -> None:
        """End the wait for the thread."""
        if not self.is_taken_over and self._held.take_over():
            _counts.silent += 1
            self.is_taken_over = True
            self._watch.remove(self)
            self.interrupt()


async def _end(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel ``tasks`` and wait for their end."""
    waiting = set(tasks)
    for task in waiting:
        task.cancel()
    cancelled = None
    while waiting:
        try:
            _, waiting = await asyncio.wait(waiting)
        except asyncio.CancelledError as error:
            cancelled = error
            waiting = {task for task in waiting if not task.done()}
    if cancelled is not None:
        raise cancelled
