"""The clients of the application: each asks for one window after the other and checks it."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field

import aiohttp
import numpy as np

from benchmarks.soak.data import DAMAGED, NAMES, SIZE, WINDOW, Window, values

# How long a response may take beyond the timeout of its load.
EXTRA_S = 5.0


@dataclass
class Outcomes:
    """What the clients have seen.

    Attributes
    ----------
    seconds
        How long each right answer took.
    failed
        The number of other outcomes, by what they were.
    """

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    # The first error of each status.
    examples: dict[int, str] = field(default_factory=dict)
    cancelled: int = 0
    wrong: int = 0
    late: int = 0

    @property
    def damaged(self) -> int:
        """The number of windows given up since an answer was damaged twice."""
        return self.failed[f"HTTP {DAMAGED}"]

    @property
    def errors(self) -> dict[str, int]:
        """The number of other errors of the application, by status."""
        return {
            name: number
            for name, number in self.failed.items()
            if name.startswith("HTTP") and name != f"HTTP {DAMAGED}"
        }

    @property
    def cut_off(self) -> int:
        """The number of requests that broke off, for example as a worker was killed."""
        return sum(n for name, n in self.failed.items() if not name.startswith("HTTP"))

    def percentile(self, percent: float) -> float:
        """Return a percentile of the seconds; NaN if there are none."""
        return float(np.percentile(self.seconds, percent)) if self.seconds else float("nan")


@dataclass(frozen=True)
class Load:
    """How much the clients ask.

    Attributes
    ----------
    clients
        The number of clients at once.
    cancelled
        The share of requests that their client gives up.
    timeout_s
        The timeout of each load in the application.
    """

    clients: int
    cancelled: float
    timeout_s: float


async def ask(url: str, load: Load, seconds: float, seed: int) -> Outcomes:
    """Let clients ask for ``seconds``; return what they have seen."""
    outcomes = Outcomes()
    until = time.monotonic() + seconds
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=load.timeout_s + EXTRA_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        async with asyncio.TaskGroup() as group:
            for number in range(load.clients):
                rng = random.Random(f"{seed} {number}")
                group.create_task(_client(session, url, load, until, rng, outcomes))
    return outcomes


async def _client(
    session: aiohttp.ClientSession,
    url: str,
    load: Load,
    until: float,
    rng: random.Random,
    outcomes: Outcomes,
) -> None:
    while time.monotonic() < until:
        most = SIZE - WINDOW
        window = Window(rng.choice(NAMES), rng.randint(0, most), rng.randint(0, most))
        try:
            if rng.random() < load.cancelled:
                # The connection closes, which is all that the application sees.
                async with asyncio.timeout(rng.expovariate(1 / 0.05)):
                    await _one(session, url, window, outcomes)
            else:
                await _one(session, url, window, outcomes)
        except aiohttp.ServerTimeoutError:
            outcomes.late += 1
        except TimeoutError:
            outcomes.cancelled += 1
        except aiohttp.ClientError as error:
            # A worker was killed.
            outcomes.failed[type(error).__name__] += 1
            await asyncio.sleep(0.1)


async def _one(
    session: aiohttp.ClientSession, url: str, window: Window, outcomes: Outcomes
) -> None:
    begun = time.monotonic()
    async with session.get(f"{url}/window/{window.name}/{window.y}/{window.x}") as answer:
        body = await answer.read()
    if answer.status != 200:
        outcomes.failed[f"HTTP {answer.status}"] += 1
        outcomes.examples.setdefault(answer.status, body.decode(errors="replace"))
        return
    part = values(window.name)[window.y : window.y + WINDOW, window.x : window.x + WINDOW].tobytes()
    if body != part or answer.headers["X-Checksum"] != f"{zlib.crc32(part):08x}":
        outcomes.wrong += 1
        return
    outcomes.seconds.append(time.monotonic() - begun)
