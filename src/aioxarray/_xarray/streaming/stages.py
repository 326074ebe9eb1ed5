"""The stage of a stream for which its consumer waits most."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

from aioxarray._zarr.stores.observing.observers import Observer

# The stage that a piece is in; the consumer of a stream waits for it.
Stage = Literal["objects", "opening", "loading", "transform"]
Slowest = Literal["unclear", "consumer", "objects", "opening", "fetching", "decoding", "transform"]

# If the consumer waits for less than this part of the time, it is the slow stage itself.
_HARDLY = 0.1
# If decoding threads are busy for more than this part of the time, they are what loads wait for.
_MOSTLY = 0.5


@dataclass(frozen=True)
class Limiting:
    """The slow stage of a stream so far, from `Stream.limiting`.

    Attributes
    ----------
    stage
        "consumer", if the next piece was there whenever it was asked for; "fetching", "decoding" or
        "transform" of pieces; "opening", if functions that open objects take the time; "objects",
        if the iterable does; "unclear" before the consumer has had two pieces.
    waited_s, consumer_s
        The seconds that the consumer has waited for pieces, and has had them.
    waited_for
        The seconds that the consumer has waited for each stage; "loading" is fetching and decoding.
    decoding
        The part of the time, from 0 to 1, in which the decoding threads were busy.
    """

    stage: Slowest
    waited_s: float
    consumer_s: float
    waited_for: dict[Stage, float] = field(default_factory=dict)
    decoding: float = 0.0

    def __str__(self) -> str:
        total = self.waited_s + self.consumer_s
        if self.stage == "unclear" or total == 0:
            return "unclear: the consumer has had fewer than two pieces"
        return (
            f"{self.stage}: the consumer waited for {100 * self.waited_s / total:.0f} % of "
            f"{total:.1f} s; decoding threads were busy for {100 * self.decoding:.0f} % of it"
        )


class Stages(Observer):
    """Measures for what the consumer of a stream waits.

    Each method is called on the I/O loop, except those of `Observer`.

    Parameters
    ----------
    threads
        The number of decoding threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._decoding_s = 0.0
        self._waited: dict[Stage, float] = {}
        self._begun = perf_counter()
        self._had = 0
        # Since when the consumer has waited, and for what; None while it does not wait.
        self._since: tuple[float, Stage] | None = None

    def decoded(
        self, key: str, variable: str | None, chunks: int, nbytes: int, begun: float, ended: float
    ) -> None:
        # From several threads: a sum that is lost once in a million does not matter.
        self._decoding_s += ended - begun

    def waits(self, stage: Stage | None) -> None:
        """Tell that the consumer waits for ``stage`` from now on; None if it does not wait."""
        now = perf_counter()
        if self._since is not None:
            since, before = self._since
            self._waited[before] = self._waited.get(before, 0.0) + now - since
        self._since = None if stage is None else (now, stage)

    def consumed(self) -> None:
        """Tell that the consumer has taken a piece."""
        if self._had == 0:
            # Before the first, everything waits for its requests.
            self._begun = perf_counter()
            self._waited = {}
            self._decoding_s = 0.0
        self._had += 1

    def limiting(self) -> Limiting:
        """Return the slow stage so far; from any thread."""
        now = perf_counter()
        waited = dict(self._waited)
        if (wait := self._since) is not None:
            since, stage = wait
            waited[stage] = waited.get(stage, 0.0) + now - max(since, self._begun)
        total = now - self._begun
        waited_s = sum(waited.values())
        decoding = min(1.0, self._decoding_s / (total * self._threads)) if total > 0 else 0.0
        return Limiting(
            self._slowest(waited, waited_s, total, decoding),
            waited_s,
            max(0.0, total - waited_s),
            waited,
            decoding,
        )

    def _slowest(
        self, waited: dict[Stage, float], waited_s: float, total: float, decoding: float
    ) -> Slowest:
        if self._had < 2:
            return "unclear"
        if waited_s < _HARDLY * total:
            return "consumer"
        stage = max(waited, key=lambda each: waited[each])
        if stage == "loading":
            return "decoding" if decoding > _MOSTLY else "fetching"
        return stage
