"""Measurement of epochs: the time until all pieces have come, and until the first one has."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.measuring import Options
from benchmarks.peers import OURS, Unavailable, reason
from benchmarks.stream_loaders import Pieces

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A peer that takes longer is broken off.
LIMIT_S = 12.0


@dataclass(frozen=True)
class Epoch:
    """Times of an epoch, or the medians over several.

    Attributes
    ----------
    seconds
        From the first request for a piece to the last piece, without the open.
    first_s
        From before the open to the first piece.
    """

    seconds: float
    first_s: float


def epochs(
    ways: Mapping[str, Callable[[], Pieces]],
    check: Callable[[Sequence[NDArray[Any]]], None],
    options: Options,
    part: Any = ...,
    unchecked: Sequence[str] = (),
    starting: Sequence[str] = (),
) -> dict[str, Epoch | str]:
    """Measure ``ways`` in turn, in a random order in each round; return the medians.

    The first run of each way counts only if there is no other. ``part`` of each of its pieces is
    checked. A way that raises, or takes more than `LIMIT_S`, is not run again; the reason is
    returned in place of its times. An error of aioxarray is raised.

    Parameters
    ----------
    ways
        Each opens its data, and returns a function that reads all pieces.
    check
        Raises AssertionError for wrong pieces.
    options
        Options of the run.
    part
        Returns the part of a piece that is kept until the check.
    unchecked
        Ways that return no values.
    starting
        Ways that start processes first: their epoch counts from its first piece on, which favours
        them by what they have read ahead by then.
    """
    runs: dict[str, list[Epoch]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    errors: dict[str, str] = {}
    chance = Random(0)
    for _ in range(options.runs):
        for name in chance.sample(list(ways), len(ways)):
            if name in errors or spent[name] >= options.seconds:
                continue
            gc.collect()
            begun = perf_counter()
            try:
                taken, kept = _run(ways[name], part, name in starting, name == OURS.name)
                if not runs[name] and name not in unchecked:
                    check(kept)
            except Exception as error:
                if name == OURS.name:
                    raise
                errors[name] = (
                    "other values" if isinstance(error, AssertionError) else reason(error)
                )
                continue
            spent[name] += perf_counter() - begun
            runs[name].append(taken)
    return {name: errors.get(name) or _medians(runs[name][1:] or runs[name]) for name in ways}


def _medians(runs: Sequence[Epoch]) -> Epoch:
    return Epoch(median(run.seconds for run in runs), median(run.first_s for run in runs))


def _run(
    opening: Callable[[], Pieces], part: Any, starting: bool, is_ours: bool
) -> tuple[Epoch, list[NDArray[Any]]]:
    begun = perf_counter()
    read = opening()
    opened = perf_counter()
    first = None
    kept = []
    for piece in read():
        now = perf_counter()
        if first is None:
            first = now
            if starting:
                opened = now
        kept.append(piece[part].copy())
        if now > opened + LIMIT_S and not is_ours:
            raise Unavailable(f"broken off after {LIMIT_S:.0f} s, with {len(kept)} pieces")
    assert first is not None
    return Epoch(perf_counter() - opened, first - begun), kept
