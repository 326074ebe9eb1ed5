"""Measurement of ways to load: repeated runs, checked results, and medians."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from statistics import median
from time import perf_counter
from typing import Any, Self

import numpy as np
import psutil
import xarray as xr

from aioxarray.testing import StallMonitor

Objects = Any  # a Dataset or DataTree, or a list of them


@dataclass(frozen=True)
class Options:
    """How thoroughly to measure.

    Attributes
    ----------
    quick
        A small part of the data, and one run each: to check that a benchmark works.
    runs
        The maximum number of runs of each way.
    seconds
        A way whose runs have taken this long is not run again.
    case
        Only rows with this text in their name are measured (in opening and in the peer tables).
    """

    quick: bool = False
    runs: int = 5
    seconds: float = 4.0
    case: str = ""

    def wants(self, what: str) -> bool:
        """Return whether the row ``what`` is selected."""
        return self.case.lower() in what.lower()

    def scaled(self, count: int) -> int:
        """Return ``count``, or a small part of it for a quick run."""
        return max(1, count // 16) if self.quick else count


# While the machine is calm, a process that only sleeps wakes no later than this.
_CALM_MS = 10.0


@dataclass(frozen=True)
class Taken:
    """Measurements of one run of a way, or the medians over its runs.

    Attributes
    ----------
    calm_stall_ms
        The stall in runs during which a bystander had none; None without such runs or a bystander.
    """

    seconds: float
    stall_ms: float
    calm_stall_ms: float | None = None


def measure(
    way: Callable[[Any], Any], lazy: Objects, expected: Objects | None, options: Options
) -> Taken:
    """Measure ``way``, which loads a copy of ``lazy`` and returns it, or an awaitable of it.

    Each run has its own event loop, as in a server: a blocking way stalls it. The result of the
    first run must be identical to ``expected``.
    """

    def check(result: Any) -> None:
        if expected is not None:
            check_same(result, expected)

    (taken,) = in_turn({"": lambda: way(copies(lazy))}, check, options).values()
    if isinstance(taken, Exception):
        raise taken
    return taken


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    check: Callable[[Any], None],
    options: Options,
    used_before: int = 0,
    bystander: Bystander | None = None,
) -> dict[str, Taken | Exception]:
    """Measure ``ways`` in turn, so that changes of the machine's speed affect all of them.

    Each round has a random order. The first run of each way, which also imports and connects,
    counts only if there is no other. Before each run, ``used_before`` bytes are allocated and
    freed: a virtual machine returns memory that was free for some seconds to its host, and waiting
    for the host to provide it again would double the time.

    Each way returns its result, or an awaitable of it; the first result of each is checked. A way
    that raises is not run again, and its error is returned in place of the measurements.
    """
    runs: dict[str, list[Taken]] = {name: [] for name in ways}
    spent = dict.fromkeys(ways, 0.0)
    errors: dict[str, Exception] = {}
    chance = Random(0)
    for _ in range(options.runs):
        for name in chance.sample(list(ways), len(ways)):
            if name in errors or spent[name] >= options.seconds:
                continue
            # Garbage of the previous way must not slow this one down.
            gc.collect()
            np.ones(used_before, np.uint8)
            if bystander is not None:
                bystander.worst_ms()
            begun = perf_counter()
            try:
                taken, result = asyncio.run(_run(ways[name]))
            except Exception as error:  # noqa: BLE001 - returned to the caller
                errors[name] = error
                continue
            if bystander is not None and bystander.worst_ms() <= _CALM_MS:
                taken = replace(taken, calm_stall_ms=taken.stall_ms)
            spent[name] += perf_counter() - begun
            if not runs[name]:
                check(result)
            # Free this gigabyte before the next one is allocated.
            del result
            runs[name].append(taken)
    return {name: errors.get(name) or _medians(runs[name][1:] or runs[name]) for name in ways}


def _medians(runs: Sequence[Taken]) -> Taken:
    calm = [run.calm_stall_ms for run in runs if run.calm_stall_ms is not None]
    return Taken(
        median(run.seconds for run in runs),
        median(run.stall_ms for run in runs),
        median(calm) if calm else None,
    )


async def _run(way: Callable[[], Any]) -> tuple[Taken, Any]:
    async with StallMonitor() as stalls:
        start = perf_counter()
        result = way()
        if inspect.isawaitable(result):
            result = await result
        seconds = perf_counter() - start
    return Taken(seconds, stalls.worst_s * 1000), result


def noise_ms(options: Options) -> float:
    """Return the worst stall while nothing loads and two threads compute without the GIL.

    This is the time that the operating system and other processes take from an event loop: the
    least that can be measured for a load that uses both cores.
    """
    values = np.ones(1 << 20)

    def busy() -> None:
        until = perf_counter() + (0.1 if options.quick else 1.0)
        while perf_counter() < until:
            values.sum()

    async def wait(_: object) -> None:
        await asyncio.gather(asyncio.to_thread(busy), asyncio.to_thread(busy))

    return measure(wait, [], None, options).stall_ms


_SLEEPER = """
import select, sys, time
worst = 0.0
while True:
    due = time.perf_counter() + 0.001
    time.sleep(0.001)
    worst = max(worst, time.perf_counter() - due)
    if select.select([sys.stdin], [], [], 0)[0]:
        if not sys.stdin.readline():
            break
        print(worst, flush=True)
        worst = 0.0
"""


class Bystander:
    """A process that only sleeps, to distinguish our own stalls from those of the machine.

    Its delays cannot come from the GIL or anything else in this process.
    """

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SLEEPER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.worst_ms()
        return self

    def __exit__(self, *_: object) -> None:
        # It exits when its input ends.
        with self._process:
            pass

    def worst_ms(self) -> float:
        """Return the longest delay of its wake-ups since the last call."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return float(process.stdout.readline()) * 1000


_WATCHER = """
import json, psutil, select, sys, time
stolen, times = None, []
while True:
    now, before = getattr(psutil.cpu_times(), "steal", 0.0), stolen
    stolen = now
    if before not in (None, stolen):
        times.append(time.perf_counter())
    if select.select([sys.stdin], [], [], 0.001)[0]:
        if not sys.stdin.readline():
            break
        print(json.dumps(times), flush=True)
        times.clear()
"""


class Host:
    """A process that records when the host of a virtual machine took processors away from it.

    A thread that runs on such a processor, perhaps with the GIL, stops meanwhile.
    """

    # Linux counts stolen time in ticks of this length, when the processor is next available.
    _TICK_S = 0.01

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WATCHER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._times_s()
        return self

    def __exit__(self, *_: object) -> None:
        # It exits when its input ends.
        with self._process:
            pass

    def _times_s(self) -> list[float]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return list(json.loads(process.stdout.readline()))

    def worst_undisturbed_s(self, stalls: Sequence[tuple[float, float]]) -> float:
        """Return the longest of ``stalls`` during which the host took no time, in seconds.

        Each is a start and an end by `time.perf_counter`, later than the previous call.
        """
        taken = self._times_s()
        return max(
            (
                end - begin
                for begin, end in stalls
                if not any(begin - self._TICK_S <= at <= end + self._TICK_S for at in taken)
            ),
            default=0.0,
        )


class Stalls:
    """Records all stalls of the running loop, where `StallMonitor` records only the worst."""

    _INTERVAL_S = 0.001

    def __init__(self) -> None:
        # The start and end of each stall.
        self.all_s: list[tuple[float, float]] = []

    @property
    def worst_s(self) -> float:
        """The longest stall, in seconds."""
        return max((end - begin for begin, end in self.all_s), default=0.0)

    async def _watch(self) -> None:
        while True:
            due = perf_counter() + self._INTERVAL_S
            await asyncio.sleep(self._INTERVAL_S)
            self.all_s.append((due, perf_counter()))

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *_: object) -> None:
        # Lets the last stall be recorded.
        await asyncio.sleep(2 * self._INTERVAL_S)
        self._task.cancel()


class Neighbours:
    """Measures the share of the machine that other processes have used since its creation."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Return their share of all cores, from 0 to 1."""
        everyone, own, at = (b - a for a, b in zip(self._before, self._now(), strict=True))
        return max(0.0, (everyone - own) / (at * (psutil.cpu_count() or 1)))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times, own = psutil.cpu_times(), psutil.Process().cpu_times()
        # By name: the available fields depend on the operating system.
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        everyone = sum(getattr(times, name, 0.0) for name in names)
        return everyone, own.user + own.system, perf_counter()


def copies(lazy: Objects) -> Objects:
    """Return copies that share the lazy data, but not what is loaded later."""
    if isinstance(lazy, list):
        return [copies(one) for one in lazy]
    return lazy.copy(deep=False)


def check_same(result: Objects, expected: Objects) -> None:
    """Raise AssertionError unless ``result`` is identical to ``expected``."""
    if isinstance(expected, list):
        for one, other in zip(result, expected, strict=True):
            check_same(one, other)
    else:
        xr.testing.assert_identical(result, expected)


def plain_load(obj: Objects) -> Objects:
    """Load with plain xarray, blocking."""
    for one in obj if isinstance(obj, list) else [obj]:
        one.load()
    return obj


async def plain_load_async(obj: Objects) -> Objects:
    """Load with plain xarray's ``load_async``; several objects concurrently."""
    await asyncio.gather(*(one.load_async() for one in (obj if isinstance(obj, list) else [obj])))
    return obj
