"""Silent and slow requests: they are made again, beside the first or in its place.

A request is *silent* if it is overdue, and its server has sent nothing lately on any connection or
has answered a request that began later. A read then gets a second request beside it, under the
limit: the first to answer wins, and the other one is cancelled. A write is cancelled first, and so
is a read if no place becomes free because all requests of the server are silent. Thus a body that
arrives slowly is not given up. Where the system does not count what arrives (other than Linux),
only answers count.

With the setting ``hedge``, a read that takes longer than most others of its server is *slow*, and
is asked for once more, too, if a place is free and few requests were.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from aioxarray._runtime.connections import Connection, moved_bytes, plain_address
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.retries.attempts import retrying_client
from aioxarray._zarr.stores.retries.errors import transient
from aioxarray._zarr.stores.servers.hosts import Host, host_of
from aioxarray.config import is_hedging, retry_policy, stall_seconds
from aioxarray.errors import SilentServerError

if TYPE_CHECKING:
    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.clients import Held
    from aioxarray._zarr.stores.request import Request

T = TypeVar("T")

_RESOLUTION_S = 0.001

# Replaced in tests.
count_moved: Callable[[], Mapping[Connection, int] | None] = moved_bytes


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


statistics = SilenceStatistics()
"""The counts since the start of the process."""


async def answer(
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
    stall_s, hedges = stall_seconds(), is_hedging()
    if (stall_s == math.inf and not hedges) or (host := host_of(request.store)) is None:
        with request:
            return await ask()
    watch = _watch()
    asked = _Asked(request, places, ask, size, watch, host)
    asked.due = asked.begun + stall_s + size / tuning.SLOW_BYTES_A_SECOND
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
        watch.answered(asked, asked.begun)
        return answer
    finally:
        watch.remove(asked)
        if asked.others or asked.interrupted:
            await asked.end()


class _Asked(Generic[T]):
    """A request in flight, and others beside it that were made because it is silent or slow.

    Attributes
    ----------
    others
        The other requests.
    is_hedged
        Whether another one is made if it is slow.
    interrupted
        Whether the task was cancelled here, to end the first request.
    """

    # Attributes of the class as long as they do not change: nearly all requests are answered.
    due = hedge_at = math.inf
    others: Sequence[asyncio.Task[T]] = ()
    is_hedged = False
    # The one of them that waits for a place.
    _queued: asyncio.Task[T] | None = None
    _answer: tuple[T] | None = None
    _error: SilentServerError | None = None
    interrupted = False
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
        self._task: Any = asyncio.current_task(watch.loop)
        self._cancelling = self._task.cancelling()
        self._context = contextvars.copy_context()

    async def recover(self, error: BaseException) -> T:
        """Return another answer after an error of the first request; raise the error if none comes.

        The error may be that the request was cancelled here.
        """
        while isinstance(error, asyncio.CancelledError):
            if not self.interrupted or self._task.uncancel() > self._cancelling:
                raise error
            self.interrupted = False
            if self._answer is not None:
                return self._answer[0]
            if self._error is not None:
                raise self._error from None
            self.request.attempt = self._attempts
            self._watch.add(self)
            try:
                with self.request:
                    answer = await self._ask()
            except BaseException as latest:  # noqa: BLE001 - as in `answer`
                error = latest
            else:
                self._watch.answered(self, self.begun)
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
        if self.interrupted:
            # The client has swallowed that.
            self._task.uncancel()
        await _end(self.others)

    def on_silence(self, now: float, *, is_quiet: bool) -> None:
        """Make the request again, or give it up; ``is_quiet`` if the server sends nothing."""
        policy = retry_policy()
        patience_s = stall_seconds() + self._size / tuning.SLOW_BYTES_A_SECOND
        silent_s = now - self.begun
        if silent_s >= patience_s + policy.deadline:
            attempts = "1 attempt" if self._attempts == 1 else f"{self._attempts} attempts"
            self._error = SilentServerError(
                f"no answer to {attempts} in {silent_s:.1f} s (stall_s={stall_seconds():g}, "
                f"retry.deadline={policy.deadline:g})"
            )
            self._error.attempts = self._attempts
            self.request.name_in(self._error)
            self._interrupt()
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
        self.due = now + math.ldexp(patience_s, self._attempts - 1)
        statistics.silent += 1
        if in_place:
            self._interrupt()
        else:
            self._queued = self._ask_beside(has_place=False)

    def on_slowness(self) -> bool:
        """Make the request once more if a place is free; return whether that was done."""
        if len(self.others) >= tuning.HEDGES_OF_ONE or not (
            self._places is None or self._places.take_if_free(long=self._long)
        ):
            return False
        self._attempts += 1
        statistics.hedges += 1
        self._ask_beside(has_place=True)
        return True

    @property
    def _long(self) -> bool:
        return self._size > tuning.LONG_BYTES

    def _interrupt(self) -> None:
        """End the first request."""
        if not self.interrupted:
            self.interrupted = True
            self._watch.remove(self)
            self._task.cancel()

    def _ask_beside(self, *, has_place: bool) -> asyncio.Task[T]:
        """Start another request; its place was taken already, or it waits for one."""
        other = self._watch.loop.create_task(
            self._ask_in_place(has_place=has_place), context=self._context
        )
        self.others = [*self.others, other]
        other.add_done_callback(self._on_other)
        return other

    async def _ask_in_place(self, *, has_place: bool) -> T:
        places = self._places
        if not has_place:
            if places is not None:
                await places.acquire(long=self._long)
            self._queued = None
        try:
            begun = self._watch.loop.time()
            with self.request.again(self._attempts) as request:
                answer = await self._ask()
                request.nbytes = self.request.nbytes
            self._watch.answered(self, begun)
            return answer
        finally:
            if places is not None:
                places.release(long=self._long)

    def _on_other(self, other: asyncio.Task[T]) -> None:
        self.others = [each for each in self.others if each is not other]
        if other is self._queued:
            self._queued = None
        if other.cancelled() or other.exception() is not None:
            # Another one may still be answered; if not, there will be a further one.
            return
        statistics.won += 1
        self._answer = (other.result(),)
        if self in self._watch:
            self._interrupt()


class SilentCall:
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
        self._patience_s = stall_seconds() + size / tuning.SLOW_BYTES_A_SECOND

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watch = _watch()
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
            statistics.silent += 1
            self.is_taken_over = True
            self._watch.remove(self)
            self._task.cancel()

    def has_cancelled(self) -> bool:
        """Return whether only this has cancelled the task; to be called once, when it was."""
        return self.is_taken_over and self._task.uncancel() <= self._cancelling


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


class _Heard:
    """What was heard from a host lately."""

    def __init__(self) -> None:
        # When the youngest request began that was answered.
        self.answered = -math.inf
        # The addresses of its connections; None as long as they are unknown.
        self.peers: frozenset[tuple[str, int]] | None = None
        self.resolving: asyncio.Task[None] | None = None
        # How long answers took lately, in seconds.
        self._times: deque[float] = deque(maxlen=tuning.HEDGE_HISTORY)
        self._fresh = 0
        # How many hedges are allowed.
        self.hedges = 0.0
        # An answer that takes longer than nearly all others is slow.
        self.slow_s = math.inf

    def record(self, seconds: float) -> None:
        """Record how long an answer took."""
        quick = seconds <= self.slow_s
        share = tuning.HEDGE_SHARE if quick else tuning.HEDGE_SHARE_IF_SLOW
        self.hedges = min(self.hedges + share, tuning.MOST_HEDGES)
        self._times.append(seconds)
        self._fresh += 1
        if self._fresh >= tuning.HEDGE_HISTORY // 16:
            self._fresh = 0
            times = sorted(self._times)
            nearly_all = times[int(len(times) * (1 - tuning.SLOW_SHARE))]
            self.slow_s = nearly_all * tuning.CLEARLY_SLOWER


class _Awaited(Protocol):
    """A wait for an answer.

    Attributes
    ----------
    host
        The server.
    begun, due, hedge_at
        When the request began, when its answer is overdue, and when it is slow.
    """

    host: Host
    hedge_at: float

    @property
    def begun(self) -> float: ...

    @property
    def due(self) -> float: ...

    def on_slowness(self) -> bool:
        """Called once when the request is slow; return whether another one was made."""

    def on_silence(self, now: float, *, is_quiet: bool) -> None:
        """Called again and again while the request is silent."""


class Watch:
    """The requests of one event loop that wait for their answers.

    One timer looks at all of them, so that a request which is answered in time costs little.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._asked: dict[_Awaited, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._look_s = _look_s()
        self._heard: dict[Host, _Heard] = {}
        self._moved: Mapping[Connection, int] = {}
        self._growing: frozenset[Connection] | None = None
        self._counted_at = -math.inf

    def __contains__(self, asked: _Awaited) -> bool:
        return asked in self._asked

    def of(self, host: Host) -> _Heard:
        """Return what was heard from ``host``."""
        heard = self._heard.get(host)
        if heard is None:
            if len(self._heard) >= tuning.MOST_HOSTS:
                del self._heard[next(iter(self._heard))]
            heard = self._heard[host] = _Heard()
        return heard

    def add(self, asked: _Awaited) -> None:
        """Watch a request that is being made."""
        self._asked[asked] = None
        if (when := min(asked.due - self._look_s, asked.hedge_at)) < self._wakes_at:
            self._wake_at(when)

    def remove(self, asked: _Awaited) -> None:
        """Watch a request no more."""
        self._asked.pop(asked, None)

    def answered(self, asked: _Asked[Any], begun: float) -> None:
        """Record that a request was answered which had begun at ``begun``."""
        heard = self.of(asked.host)
        if begun > heard.answered:
            heard.answered = begun
        if asked.is_hedged:
            heard.record(self.loop.time() - begun)

    def _wake_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = when
        self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        # A timer may be early by the resolution of the clock; and close ones need but one look.
        now = self.loop.time() + _RESOLUTION_S
        self._look_s = look_s = _look_s()
        wake_at = math.inf
        counted = False
        for asked in list(self._asked):
            if now >= asked.hedge_at:
                self._hedge(asked)
            if now >= asked.due - look_s:
                if not counted:
                    self._count(now, look_s)
                    counted = True
                if now >= asked.due:
                    self._judge(asked, now)
            if asked in self._asked:
                wake_at = min(wake_at, asked.hedge_at, max(asked.due - look_s, now + look_s))
        if wake_at < self._wakes_at:
            self._wake_at(wake_at)

    def _hedge(self, asked: _Awaited) -> None:
        heard = self.of(asked.host)
        asked.hedge_at = self.loop.time() + heard.slow_s
        if heard.hedges >= 1 and asked.on_slowness():
            heard.hedges -= 1

    def _judge(self, asked: _Awaited, now: float) -> None:
        heard = self.of(asked.host)
        is_quiet = self._is_quiet(asked.host, heard)
        if is_quiet or heard.answered > asked.begun:
            asked.on_silence(now, is_quiet=is_quiet)

    def _count(self, now: float, look_s: float) -> None:
        """Find the connections on which bytes have moved since the last look."""
        moved = count_moved()
        if moved is None:
            self._growing = None
            return
        before, self._moved = self._moved, moved
        # Without a recent count there is nothing to compare with.
        recent = now - self._counted_at <= 2 * look_s
        self._counted_at = now
        self._growing = (
            frozenset(key for key, count in moved.items() if count > before.get(key, math.inf))
            if recent
            else None
        )

    def _is_quiet(self, host: Host, heard: _Heard) -> bool:
        """Return whether certainly nothing arrives from ``host``."""
        if self._growing is None:
            return False
        if host.address is not None and heard.peers is None:
            if heard.resolving is None:
                heard.resolving = self.loop.create_task(_resolve(host.address, heard))
            return False
        peers = heard.peers or ()
        ours = {each for each in self._moved if each[:2] in peers}
        # Through a proxy, or if the client does not tell its server, any connection may be meant.
        return not (self._growing & ours if ours else self._growing)


async def _resolve(address: tuple[str, int], heard: _Heard) -> None:
    """Find the IP addresses of a host."""
    name, port = address
    try:
        found = await asyncio.get_running_loop().getaddrinfo(name, port)
    except OSError:
        # If there is a proxy, the name may mean nothing here.
        found = []
    addresses = (plain_address(str(address[0])) for *_, address in found)
    heard.peers = frozenset((each, port) for each in addresses)


def _look_s() -> float:
    """Return the seconds between two looks at an overdue request."""
    return min(stall_seconds() / 5, 1.0)


_here = threading.local()


def _watch() -> Watch:
    """Return the watch of the running loop."""
    loop = asyncio.get_running_loop()
    watch: Watch | None = getattr(_here, "watch", None)
    if watch is None or watch.loop is not loop:
        watch = _here.watch = Watch(loop)
    return watch
