"""``python -m benchmarks.soak``: serve windows of a remote Zarr while much goes wrong.

200 clients ask an application with two workers, which load from an object server. Of the answers
of the object server 5 % fail; clients give up at random; a worker is killed now and then. The run
fails if a byte is wrong, a response is late, or something leaks.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from aioxarray.testing import Exponential, ObjectServer
from aioxarray.testing._serving.faults import Effect
from benchmarks.soak.clients import Load, Outcomes, ask
from benchmarks.soak.data import dataset
from benchmarks.soak.serving import WORKERS, Application

LATENCY_S = 0.02
TIMEOUT_S = 30.0
# The faults of the object server: 5 % of the answers.
FAULTS: tuple[tuple[int | Effect, float], ...] = (
    (503, 0.02),
    ("reset", 0.01),
    ("truncate", 0.01),
    ("flip", 0.005),
    ("stall", 0.005),
)
# After the last client has left, the workers may take this long to end what they do.
SETTLING_S = 30.0
# A chunk is given up if two answers in a row are damaged, by chance one in 40,000; a window has up
# to 9 chunks.
MOST_DAMAGED = 0.005
# How much the memory of a worker may grow after it has warmed up, in runs long enough to tell.
GROWTH = 0.05
LONG_S = 240.0


@dataclass
class Phase:
    """A part of the run: one way to load, with or without faults.

    Attributes
    ----------
    seconds
        How long clients ask.
    kill_every_s
        The time between two kills of a worker; 0 for none.
    """

    name: str
    reader: str
    seconds: float
    has_faults: bool
    kill_every_s: float = 0.0
    outcomes: Outcomes = field(default_factory=Outcomes)
    kills: int = 0
    growth: float = float("nan")
    leaks: list[str] = field(default_factory=list)

    def problems(self) -> list[str]:
        """Return what must not be."""
        found = list(self.leaks)
        if self.outcomes.wrong:
            found.append(f"{self.outcomes.wrong} responses with wrong bytes")
        if self.outcomes.late:
            found.append(f"{self.outcomes.late} responses later than their timeout")
        if not self.outcomes.seconds:
            found.append("no right response")
        if self.reader == "aioxarray":
            if self.outcomes.errors:
                found.append(f"errors: {self.outcomes.errors}")
            if self.outcomes.damaged > MOST_DAMAGED * len(self.outcomes.seconds):
                found.append(f"{self.outcomes.damaged} windows given up as damaged")
            if self.seconds >= LONG_S and not self.growth <= GROWTH:
                found.append(f"memory grew by {self.growth:.1%}")
        return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the test; return 1 if aioxarray fails it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="in all (default: 600)")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--phase", action="append", help="only this row; may be repeated")
    parser.add_argument("--without-peer", action="store_true", help="aioxarray only")
    options = parser.parse_args(argv)
    phases = _phases(options.seconds, options.without_peer)
    if options.phase:
        phases = [each for each in phases if each.name in options.phase]
    load = Load(options.clients, cancelled=0.05, timeout_s=TIMEOUT_S)
    with TemporaryDirectory() as folder:
        dataset().to_zarr(Path(folder, "data"), consolidated=False, zarr_format=3)
        print(HEADER)
        for phase in phases:
            _run(phase, load, folder, options.seed)
            print(_row(phase), flush=True)
            if phase.outcomes.failed:
                print(f"    {dict(phase.outcomes.failed)}", flush=True)
            for status, text in phase.outcomes.examples.items():
                print(f"    {status}: {text[:500]}", flush=True)
    problems = [
        f"{phase.name}: {each}"
        for phase in phases
        if phase.reader == "aioxarray"
        for each in phase.problems()
    ]
    print("\n".join(["", *problems]) if problems else "\nno wrong byte, nothing late, no leak")
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(phase) for phase in phases]), encoding="utf-8")
    return 1 if problems else 0


def _phases(seconds: float, without_peer: bool) -> list[Phase]:
    if without_peer:
        return [Phase("aioxarray, faults", "aioxarray", seconds, True, seconds / 6)]
    return [
        Phase("aioxarray, faults", "aioxarray", 0.7 * seconds, True, 0.7 * seconds / 6),
        Phase("xarray, faults", "xarray", 0.1 * seconds, True),
        Phase("aioxarray", "aioxarray", 0.1 * seconds, False),
        Phase("xarray", "xarray", 0.1 * seconds, False),
    ]


def _run(phase: Phase, load: Load, folder: str, seed: int) -> None:
    latency = Exponential(LATENCY_S, seed)
    with ObjectServer(latency_s=latency, root=folder, process=True) as server:
        with Application(phase.reader, f"{server.url}/data", TIMEOUT_S) as application:
            # Without faults and clients: what there is when nothing is under way.
            asyncio.run(ask(application.url, load, 2.0, seed + 1))
            before = _settled(application)
            if phase.has_faults:
                for effect, probability in FAULTS:
                    server.fail("*/c/*", effect, probability=probability, seed=seed)
            asyncio.run(_soak(phase, load, application, seed))
            server.mend()
            if phase.reader == "aioxarray":
                phase.leaks += _left(before, _settled(application))


async def _soak(phase: Phase, load: Load, application: Application, seed: int) -> None:
    memory: list[int] = []

    async def watch() -> None:
        killed_at = time.monotonic()
        while True:
            workers = application.workers()
            # The others may be killed.
            memory.append(workers[0].memory_info().rss)
            if phase.kill_every_s and time.monotonic() - killed_at > phase.kill_every_s:
                killed_at = time.monotonic()
                application.kill_youngest()
                phase.kills += 1
            await asyncio.sleep(min(1.0, phase.seconds / 60))

    watching = asyncio.create_task(watch())
    phase.outcomes = await ask(application.url, load, phase.seconds, seed)
    watching.cancel()
    quarter = len(memory) // 4
    # The first quarter warms up.
    early, late = memory[quarter : 2 * quarter], memory[-quarter:]
    if early and late:
        phase.growth = statistics.median(late) / statistics.median(early) - 1


def _settled(application: Application) -> dict[int, dict[str, Any]]:
    """Return the state of each worker when it does nothing more, or at the end of patience."""
    until = time.monotonic() + SETTLING_S
    while True:
        states = _states(application)
        busy = any(each["requests"] or each["shares"] or each["bytes"] for each in states.values())
        if (len(states) == WORKERS and not busy) or time.monotonic() > until:
            return states
        time.sleep(0.2)


def _states(application: Application) -> dict[int, dict[str, Any]]:
    states: dict[int, dict[str, Any]] = {}
    # The kernel chooses the worker of each connection.
    for _ in range(50):
        with urllib.request.urlopen(f"{application.url}/state", timeout=SETTLING_S) as answer:
            state = json.load(answer)
        with _gone_is_fine():
            state["descriptors"] = psutil.Process(state["pid"]).num_fds()
            states[state["pid"]] = state
        if len(states) == WORKERS:
            break
    return states


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        pass


def _left(before: dict[int, dict[str, Any]], after: dict[int, dict[str, Any]]) -> list[str]:
    """Return what is left in the workers, compared to when nothing had gone wrong."""
    # A pool's threads and a client's connections stay: there may be a few more or less.
    spare = {"threads": 20, "descriptors": 40, "tasks": 2, "io_tasks": 5}
    found = []
    for pid, state in after.items():
        for name in ("requests", "bytes", "shares"):
            if state[name]:
                found.append(f"worker {pid}: {name} in use: {state[name]}")
        for name, most in spare.items():
            base = max(each[name] for each in before.values())
            if state[name] > base + most:
                found.append(f"worker {pid}: {state[name]} {name}, {base} before")
    return found


_COLUMNS = (
    "per s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "right",
    "wrong",
    "late",
    "damaged",
    "errors",
    "cut off",
    "gave up",
    "kills",
    "memory",
)
HEADER = " ".join([f"{'':18}", *(f"{name:>8}" for name in _COLUMNS)])


def _row(phase: Phase) -> str:
    seen = phase.outcomes
    errors = sum(seen.errors.values())
    cells = [
        f"{len(seen.seconds) / phase.seconds:.1f}",
        *(f"{1000 * seen.percentile(each):.0f}" for each in (50, 99, 99.9)),
        *(str(n) for n in (len(seen.seconds), seen.wrong, seen.late, seen.damaged, errors)),
        *(str(n) for n in (seen.cut_off, seen.cancelled, phase.kills)),
        f"{phase.growth:+.1%}",
    ]
    return " ".join([f"{phase.name:18}", *(f"{cell:>8}" for cell in cells)])


if __name__ == "__main__":
    sys.exit(main())
