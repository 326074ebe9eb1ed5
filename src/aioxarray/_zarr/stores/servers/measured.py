"""The latency and the bandwidth of a server, as its answers have shown them lately."""

from __future__ import annotations

import math
from collections import deque

from aioxarray._zarr import tuning


class Measured:
    """Measures a server by the requests that are made anyway.

    The bandwidth is measured in periods in which requests are in flight, less one latency. There
    is no lock: of two threads at once, one may not be counted, which changes a figure a little.

    Attributes
    ----------
    refused_at
        When it last refused a request because it had too many, by `time.monotonic`.
    """

    def __init__(self) -> None:
        self.refused_at = -math.inf
        self._small: deque[float] = deque(maxlen=tuning.MEASURED_ANSWERS)
        # Of the period: its begin and end, the answers that have arrived, and their bytes.
        self._begun = self._ended = -math.inf
        self._answers = self._nbytes = 0
        self._bandwidth: float | None = None

    @property
    def latency_s(self) -> float | None:
        """The shortest of the last small answers took so many seconds; None if there was none."""
        return min(self._small.copy(), default=None)

    @property
    def bandwidth(self) -> float | None:
        """The bytes a second that arrived last; None if there never were enough to tell."""
        self._measure()
        return self._bandwidth

    def answered(self, begun: float, ended: float, nbytes: int) -> None:
        """Record an answer of ``nbytes`` bytes to a request that began at ``begun``."""
        if begun > self._ended or ended - self._begun > tuning.MEASURED_PERIOD_S:
            self._measure()
            self._begun = max(begun, self._ended)
            self._answers = self._nbytes = 0
        self._ended = ended
        self._answers += 1
        self._nbytes += nbytes
        if nbytes <= tuning.SMALL_ANSWER_BYTES:
            self._small.append(ended - begun)

    def _measure(self) -> None:
        # Of few bytes, or small answers, the latency and the requests at once decide how many come.
        if self._nbytes >= max(tuning.MEASURED_BYTES, self._answers * tuning.SMALL_ANSWER_BYTES):
            seconds = self._ended - self._begun - (self.latency_s or 0.0)
            if seconds > 0:
                self._bandwidth = self._nbytes / seconds
