"""Streams of objects that are loaded ahead of their consumer: `stream`."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Generic, TypeVar, overload

from aioxarray._runtime.loops import io_loop, run_blocking, run_on
from aioxarray._runtime.tasks import checkpoint
from aioxarray._xarray.explaining.load_plan import LoadPlan
from aioxarray._xarray.explaining.survey import survey
from aioxarray._xarray.lazy.loader import Options
from aioxarray._xarray.lazy.variables import Allocate
from aioxarray._xarray.streaming.engine import Engine
from aioxarray._xarray.streaming.room import Room
from aioxarray._xarray.streaming.slots import Slot
from aioxarray._xarray.streaming.source import Position, Progress, Source
from aioxarray._xarray.streaming.stages import Limiting
from aioxarray.config import byte_bound

__all__ = ["Limiting", "Stream", "StreamStatistics", "stream"]

T = TypeVar("T")
S = TypeVar("S")


@overload
def stream(
    objects: Iterable[Callable[[], T]],
    *,
    ahead: int | str = ...,
    ordered: bool = ...,
    transform: None = ...,
    epochs: int | None = ...,
) -> Stream[T]: ...
@overload
def stream(
    objects: Iterable[T],
    *,
    ahead: int | str = ...,
    ordered: bool = ...,
    transform: None = ...,
    epochs: int | None = ...,
) -> Stream[T]: ...
@overload
def stream(
    objects: Iterable[Any],
    *,
    ahead: int | str = ...,
    ordered: bool = ...,
    transform: Callable[[Any], S],
    epochs: int | None = ...,
) -> Stream[S]: ...
def stream(
    objects: Iterable[Any],
    *,
    ahead: int | str = "512MiB",
    ordered: bool = True,
    transform: Callable[[Any], Any] | None = None,
    epochs: int | None = 1,
) -> Stream[Any]:
    """Load each of ``objects`` before its consumer asks for it.

    The result is a context manager and an iterator, in plain and in asynchronous code::

        with aioxarray.stream([ds.isel(time=i) for i in range(1000)]) as pieces:
            for piece in pieces:
                train(piece)

        async with aioxarray.stream(objects) as pieces:
            async for piece in pieces:
                ...

    Parameters
    ----------
    objects
        An iterable of objects that `load` takes: an xarray Variable, DataArray, Dataset or
        DataTree, or a list, tuple or dict of them, from any backend. A function without arguments
        that opens such an object is called in a worker thread, and its result is closed once it is
        loaded. A generator is advanced in a worker thread; it may be endless.
    ahead
        The most bytes that are held for pieces that the consumer has not taken, such as
        ``"512MiB"`` or a number: their values, copies that decoding them by the CF conventions
        makes, and decoded chunks that several known pieces need, each once. A larger piece is
        loaded when no other is held.
    ordered
        False to hand out the pieces as they finish.
    transform
        A function of one loaded piece; the stream yields its results. It is called in worker
        threads, for several pieces at once (the setting ``threads``).
    epochs
        How many times to iterate over ``objects``, without a gap; None for no end. More than once
        is refused for an iterator, which ends for good.

    Returns
    -------
    Stream
        The stream, which loads nothing before its context is entered. It is used once.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.

    Notes
    -----
    *Requests:* as `load` makes them for each piece, many pieces at once. Up to 256 further pieces
    are known. A chunk, or inner chunk of a shard, that several of them need is fetched and decoded
    once: it is kept until the last of them has it. If there is no room in ``ahead``, the chunks
    that are needed last are dropped, and fetched again; `Stream.statistics` counts that. So it is
    with Zarr stores; other backends read a chunk for each piece that needs it.

    *Order:* pieces begin in the order of ``objects``. They are new objects; ``objects`` stay lazy.

    *Memory:* ``ahead``, the piece that the consumer has, and the bytes of chunks in flight: at most
    a quarter of ``ahead`` or 32 MiB, and what the setting ``memory`` allows. Known objects whose
    values are in memory are no more than fill ``ahead``. The result of ``transform`` counts if it
    is of xarray or has ``nbytes``; if not, it counts as its piece.

    *Errors:* an error of the iterable, of a load or of ``transform`` is raised in place of its
    piece, with a note that names it. The stream ends with it.

    *Cancelling:* when the context is left, in whatever way, the requests are cancelled and
    awaited, as by `load`. A stream whose context is never left ends within seconds after the last
    reference to it has gone.

    See Also
    --------
    load_async : how an object is loaded, and the errors of that.
    """
    return Stream(objects, ahead=ahead, ordered=ordered, transform=transform, epochs=epochs)


@dataclass(frozen=True, slots=True)
class StreamStatistics:
    """The state of a stream at one moment, from `Stream.statistics`.

    Attributes
    ----------
    pieces
        The pieces that are loading, or loaded and not taken.
    nbytes
        The bytes that count towards ``ahead``: of their values, and of decoded chunks that other
        known pieces need.
    fetched
        The chunks, and indexes of shards, that were fetched from Zarr stores.
    repeated
        How many of these had been fetched before and did not fit into ``ahead`` since.
    kept
        The decoded chunks that are kept for known pieces.
    """

    pieces: int
    nbytes: int
    fetched: int
    repeated: int
    kept: int


class Stream(Generic[T]):
    """An iterator over objects that are loaded ahead; `stream` makes it.

    Its methods may be called from any thread. Several threads may share the pieces.
    """

    def __init__(
        self,
        objects: Iterable[Any],
        *,
        ahead: int | str,
        ordered: bool,
        transform: Callable[[Any], Any] | None,
        epochs: int | None,
    ) -> None:
        self._ahead = byte_bound("ahead", ahead)
        if not isinstance(ordered, bool):
            raise TypeError(f"ordered must be True or False, got {ordered!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of one piece, got {transform!r}")
        self._source = Source(objects, epochs)
        self._ordered = ordered
        self._transform = transform
        self._progress = Progress(Position())
        self._engine: Engine | None = None
        # Makes the arrays that the pieces are read into; None for xarray's.
        self._allocate: Allocate | None = None

    # --- the position ------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream, ready for JSON: the pieces that were handed out.

        A piece counts once the consumer has it. Save the state after the piece is processed, and
        `load_state_dict` makes the next stream begin after it.
        """
        return self._progress.position().to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin at the position of ``state``, from `state_dict` of a stream of the same objects.

        A sequence is read from there. Any other iterable is advanced to there; nothing is loaded
        on the way.

        Raises
        ------
        ValueError
            If ``state`` is not from `state_dict`.
        RuntimeError
            If the context of the stream was entered already.
        """
        if self._engine is not None:
            raise RuntimeError("load_state_dict must be called before the stream is entered")
        self._progress = Progress(Position.of_dict(state))

    # --- its state ---------------------------------------------------------------------------

    def _explain(self) -> LoadPlan:
        """Return the plan of an epoch, for `aioxarray.explain`."""
        plan = survey(self._source.known_objects(), shares=True)
        return replace(plan, memory=self._ahead + Room(self._ahead).in_flight)

    def limiting(self) -> Limiting:
        """Return the slow stage so far: what the consumer waits for, or the consumer itself.

        Returns
        -------
        Limiting
            Its ``stage`` is "consumer", "fetching", "decoding", "transform", "opening" (functions
            that open objects), "objects" (the iterable) or "unclear", with the seconds that show
            it; its text says it in a sentence. The time before the first piece does not count.
        """
        return self._entered().stages.limiting()

    def statistics(self) -> StreamStatistics:
        """Return what the stream holds, and how often chunks were fetched again.

        Returns
        -------
        StreamStatistics
            The numbers at this moment.
        """
        room = self._entered().room
        found = room.window.statistics()
        return StreamStatistics(
            pieces=room.unconsumed,
            nbytes=room.held + found.nbytes,
            fetched=found.fetched,
            repeated=found.repeated,
            kept=found.kept,
        )

    # --- in plain code -----------------------------------------------------------------------

    def __enter__(self) -> Stream[T]:
        engine = self._new_engine()
        try:
            run_blocking(engine.open)
        except BaseException:
            self._exit(engine)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._exit(self._entered())

    def _exit(self, engine: Engine) -> None:
        # An interrupt ends the wait, but not the end of the stream.
        engine.stop()
        if engine.is_here:
            run_blocking(engine.until_ended)

    def __iter__(self) -> Stream[T]:
        self._entered()
        return self

    def __next__(self) -> T:
        engine = self._entered()
        engine.check_process()
        while (slot := engine.take()) is None:
            run_blocking(engine.until_ready)
        if slot.is_last:
            raise StopIteration
        return self._handed_out(slot)

    # --- in asynchronous code ----------------------------------------------------------------

    async def __aenter__(self) -> Stream[T]:
        engine = self._new_engine()
        try:
            await run_on(io_loop(), engine.open)
        except BaseException:
            await self._aexit(engine)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._aexit(self._entered())

    async def _aexit(self, engine: Engine) -> None:
        engine.stop()
        if engine.is_here:
            await run_on(io_loop(), engine.until_ended, shielded=True)

    def __aiter__(self) -> Stream[T]:
        self._entered()
        return self

    async def __anext__(self) -> T:
        engine = self._entered()
        engine.check_process()
        # Without it, a consumer with all pieces ready would keep its loop from other tasks.
        await checkpoint()
        while (slot := engine.take()) is None:
            await run_on(io_loop(), engine.until_ready)
        if slot.is_last:
            raise StopAsyncIteration
        return self._handed_out(slot)

    # -----------------------------------------------------------------------------------------

    def _read_into(self, allocate: Allocate) -> None:
        """Have the pieces read into arrays that ``allocate`` makes, in worker threads."""
        if self._engine is not None:
            raise RuntimeError("the stream was entered already: pass it before its context")
        self._allocate = allocate

    def _has_ready(self) -> bool:
        """Return whether the next piece, or an error in its place, is there without waiting."""
        return self._entered().has_ready

    def _new_engine(self) -> Engine:
        if self._engine is not None:
            raise RuntimeError("a stream is used once: call aioxarray.stream(…) again")
        # Invalid settings are an error of the stream, not of its first piece.
        Options().check()
        self._engine = Engine(
            self._source,
            self._progress.position(),
            ahead=self._ahead,
            ordered=self._ordered,
            transform=self._transform,
            consumer=weakref.ref(self),
            allocate=self._allocate,
        )
        return self._engine

    def _entered(self) -> Engine:
        if self._engine is None:
            raise RuntimeError(
                "a stream loads only inside its context, which ends the loads whenever the loop "
                "is left: with aioxarray.stream(…) as pieces: for piece in pieces: … (or "
                "async with, async for)"
            )
        return self._engine

    def _handed_out(self, slot: Slot) -> T:
        if slot.error is not None:
            try:
                raise slot.error
            finally:
                # The traceback of the error holds this frame.
                del slot
        self._progress.add(slot.serial, slot.number)
        value: T = slot.value
        return value
