"""Distributions of the latency of an object server."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Exponential", "Latency", "Mixed", "latency_from_json", "latency_to_json", "sampler"]


@dataclass(frozen=True)
class Exponential:
    """Exponentially distributed latency.

    Attributes
    ----------
    mean_s : float
        The mean in seconds.
    seed : int
        The seed of the random numbers.

    Examples
    --------
    >>> from aioxarray.testing import ObjectServer
    >>> with ObjectServer(latency_s=Exponential(0.05)) as server:
    ...     server.latency_s.mean_s
    0.05
    """

    mean_s: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check(mean_s=self.mean_s)

    def sampler(self) -> Callable[[], float]:
        """Return a function that draws a latency."""
        draw = random.Random(self.seed).expovariate
        return lambda: draw(1 / self.mean_s) if self.mean_s else 0.0


@dataclass(frozen=True)
class Mixed:
    """Latency that is usual for most answers and much longer for a few, drawn at random.

    Attributes
    ----------
    usual_s, slow_s : float
        The usual latency and that of slow answers, in seconds.
    share : float
        The share of slow answers.
    seed : int
        The seed of the random numbers.

    Examples
    --------
    >>> draw = Mixed(usual_s=0.01, slow_s=2.0, share=0.01).sampler()
    >>> sum(draw() == 2.0 for _ in range(10_000))
    101
    """

    usual_s: float
    slow_s: float
    share: float
    seed: int = 0

    def __post_init__(self) -> None:
        _check(usual_s=self.usual_s, slow_s=self.slow_s)
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be between 0 and 1; got {self.share!r}")

    def sampler(self) -> Callable[[], float]:
        """Return a function that draws a latency."""
        draw = random.Random(self.seed).random
        return lambda: self.slow_s if draw() < self.share else self.usual_s


Latency = float | Exponential | Mixed | Callable[[], float]
"""Seconds, a distribution, or a function that returns the seconds of the next answer."""

_KINDS: dict[str, type[Exponential | Mixed]] = {"Exponential": Exponential, "Mixed": Mixed}


def _check(**seconds: float) -> None:
    for name, value in seconds.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative; got {value!r}")


def sampler(latency: Latency) -> Callable[[], float]:
    """Return a function that draws a latency."""
    if isinstance(latency, Exponential | Mixed):
        return latency.sampler()
    if callable(latency):
        return latency
    _check(latency_s=latency)
    return lambda: latency


def latency_to_json(latency: Latency) -> str:
    """Serialize a latency for `latency_from_json`; raises TypeError for a function."""
    if isinstance(latency, Exponential | Mixed):
        return json.dumps({"kind": type(latency).__name__, **asdict(latency)})
    if callable(latency):
        raise TypeError(
            "a server in another process cannot call a function for its latency; "
            "use seconds, Exponential or Mixed"
        )
    return json.dumps(latency)


def latency_from_json(text: str | bytes) -> Latency:
    """Parse the output of `latency_to_json`."""
    value: Any = json.loads(text)
    if isinstance(value, dict):
        return _KINDS[value.pop("kind")](**value)
    return float(value)
