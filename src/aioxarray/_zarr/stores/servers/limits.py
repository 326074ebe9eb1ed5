"""The limits of a server, learned from what it accepts and refuses; without I/O and clocks."""

from __future__ import annotations

import math
import random

from aioxarray._zarr import tuning
from aioxarray.config import MOST_REQUESTS

# After the first pause, the second is twice as long, and so on.
_FIRST_PAUSE_S = 0.02
_LONGEST_PAUSE_S = 5.0
# How long to wait, after a refusal, before trying more again.
_FIRST_HOLD_S = 1.0
_LONGEST_HOLD_S = 30.0
# At least so many times as long as the server asks to wait.
_ASKED_SHARE = 20
# With so few requests in flight, one more or less is a large step: a rate is finer.
_FEW = 8
# The fewest answers from which a number of answers a second is taken.
_LEAST_COUNT = 4
# Twice the requests in flight must bring so many more answers a second.
_WORTH = 0.25
# Of the rate that was accepted, as other clients may share it.
_CAUTION = 0.95
_SLOWER = 0.9
_FIRST_RATE_STEP = 0.05
_LARGEST_RATE_STEP = 0.25
# Below this part of the rate, something else limits the answers.
_LIMITED = 0.7
# So many refusals in a row mean that everything is refused.
_ALL = 5
# The limits of servers often are numbers a second.
_RATE_EPOCH_S = 1.0
# How far back the mean rate of the answers goes.
_MEMORY_S = 10.0


class ServerLimits:
    """How many requests a server gets at once and in a second.

    At first, requests are bounded only by `tuning.FIRST_IN_FLIGHT`, which doubles as long as that
    means more answers a second. With each refusal or time-out the bound falls by one, so that it
    becomes the number of requests that were accepted. If the server goes on to refuse some though
    only a few are in flight, or if it refused all of them for a while, it limits their rate: then
    the rate is bounded by that of the answers so far.

    After a while without refusals more is tried: one request at once or 5 % a second more, then
    twice that, and so on. A refusal takes the last step back, and the next attempt comes later.

    While everything is refused, one request at a time is made, after pauses that grow.

    The caller passes the time in seconds, from any start.

    Attributes
    ----------
    bound
        The most requests in flight.
    rate
        The most requests a second.
    resume_at
        When the next request may be made: the server asked for that, or refuses everything.
    is_bounded
        Whether the server has refused a request, or not answered one in time.
    """

    def __init__(self) -> None:
        self.bound = tuning.FIRST_IN_FLIGHT
        self.rate = math.inf
        self.resume_at = -math.inf
        self.is_bounded = False
        # Requests that were made before the latest refusal was known say little new.
        self._era = 0
        self._refused_in_a_row = 0
        # While everything is refused: the last pause, and whether a request is on its way.
        self._pause_s = 0.0
        self._is_asking = False
        # Whether a bound on the rate may explain that everything is refused.
        self._suggests_rate = False
        self._next_at = -math.inf
        # How long the server asked to wait, the last time.
        self._asked_s = 0.0
        # The largest bound and rate that worked, and the next steps beyond.
        self._good_bound = math.inf
        self._good_rate = math.inf
        self._step = 1
        self._rate_step = _FIRST_RATE_STEP
        self._hold_s = _FIRST_HOLD_S
        self._hold_until = -math.inf
        # Answers since the last decision, and whether requests were waiting all the time.
        self._is_idle = True
        self._count = 0
        self._since = 0.0
        self._was_wanted = True
        # The bound, and the answers a second, before it was raised.
        self._base: tuple[int, float] | None = None
        # Answers over a longer time, for their mean rate.
        self._mean_count = 0.0
        self._mean_since = 0.0

    # --- sending ---------------------------------------------------------------------------------

    def opens_at(self, now: float, in_flight: int) -> float:
        """Return when a request may be made: ``now`` or later; ``math.inf``: after an answer."""
        if self._is_asking if self._pause_s else in_flight >= self.bound:
            return math.inf
        return max(now, self.resume_at, self._next_at)

    def is_full(self, count: int) -> bool:
        """Return whether ``count`` requests are as many as may be in flight."""
        return count >= (1 if self._pause_s else self.bound)

    def sent(self, now: float) -> int:
        """Record that a request is made; return the era, to pass with its outcome."""
        self._is_asking = True
        if self.rate < math.inf:
            # Timers are late by milliseconds, which the next requests make up for.
            self._next_at = max(self._next_at, now - tuning.PACE_SLACK_S) + 1 / self.rate
        if self._is_idle:
            self._is_idle = False
            self._restart_epoch(now)
            self._restart_mean(now)
        return self._era

    def idle(self) -> None:
        """Record that no request is in flight, and none waits."""
        self._is_idle = True
        self._base = None

    # --- outcomes --------------------------------------------------------------------------------

    def accepted(self, era: int, now: float, *, wanted: bool) -> None:
        """Record an answer; ``wanted`` if requests are waiting for their turn."""
        self._refused_in_a_row = 0
        self._mean_count += 1
        self._count += 1
        if not wanted:
            self._was_wanted = False
        if self._pause_s and era == self._era:
            self._reopen(now)
        if self.rate == math.inf:
            if self._count >= self.bound and self._count >= _LEAST_COUNT:
                self._end_epoch(now)
        elif now - self._since >= _RATE_EPOCH_S:
            self._end_epoch(now)

    def dropped(self, era: int) -> None:
        """Record that a request ended without an answer, for another reason than the load."""
        if era == self._era:
            self._is_asking = False

    def refused(
        self,
        era: int,
        now: float,
        in_flight: int,
        *,
        late: bool = False,
        retry_after: float | None = None,
    ) -> None:
        """Record a refusal, or with ``late`` a time-out.

        ``in_flight`` counts the request itself, and ``retry_after`` is what the server asks for.
        """
        self._refused_in_a_row += 1
        if retry_after is not None:
            self._asked_s = retry_after
            self.resume_at = max(self.resume_at, now + retry_after)
        if self._pause_s:
            if era == self._era:
                self._pause(now)
            return
        is_new = era == self._era
        is_known = self.is_bounded and not late
        self.is_bounded = True
        if is_new:
            self._era += 1
            self._base = None
            self._restart_epoch(now)
        if self.rate < math.inf:
            if is_new and self._refused_in_a_row == 1:
                self._lower_rate(now)
            if self._refused_in_a_row >= _ALL:
                self._pause(now)
        elif is_new and self.bound > self._good_bound:
            self._take_back(now)
        elif era >= self._era - 1:
            is_full = is_new and in_flight >= self.bound
            if is_new:
                self._suggests_rate = is_full and not late and in_flight > _FEW
                self._hold(now)
            self._lower_bound(now, in_flight)
            if is_full and is_known and not self._pause_s and self.bound <= _FEW:
                self._limit_rate(now)

    # --- decisions -------------------------------------------------------------------------------

    def _lower_bound(self, now: float, in_flight: int) -> None:
        """Bound the requests by those that are in flight beside the refused one."""
        self.bound = min(self.bound, in_flight) - 1
        if self.bound < 1:
            self.bound = 1
            if in_flight == 1:
                self._pause(now)
        self._good_bound = self.bound
        self._step = 1

    def _take_back(self, now: float) -> None:
        """Return to the bound that worked."""
        self.bound = int(self._good_bound)
        self._step = 1
        self._hold(now, again=True)
        # Further refusals of requests beyond that bound say nothing about it.
        self._era += 1

    def _limit_rate(self, now: float) -> None:
        """Bound the rate by the mean rate of the answers, and not the number in flight."""
        self.rate = self._good_rate = self._mean_rate(now)
        self._rate_step = _FIRST_RATE_STEP
        self._next_at = now
        self.bound = tuning.FIRST_IN_FLIGHT
        self._hold(now)
        self._restart_epoch(now)
        self._restart_mean(now)

    def _mean_rate(self, now: float) -> float:
        elapsed = max(now - self._mean_since, 1e-3)
        return max(1.0, _CAUTION * self._mean_count / elapsed)

    def _lower_rate(self, now: float) -> None:
        was_tried = self.rate > self._good_rate
        self._suggests_rate = not was_tried
        self.rate = self._good_rate if was_tried else max(1.0, _SLOWER * self.rate)
        self._good_rate = self.rate
        self._rate_step = _FIRST_RATE_STEP
        self._hold(now, again=was_tried)

    def _pause(self, now: float) -> None:
        """Make no request for a while: everything is refused."""
        self._era += 1
        self._is_asking = False
        self._pause_s = min(max(_FIRST_PAUSE_S, 2 * self._pause_s), _LONGEST_PAUSE_S)
        # Random: clients that were refused together do not come back together.
        self.resume_at = max(self.resume_at, now + self._pause_s * random.uniform(0.5, 1))

    def _reopen(self, now: float) -> None:
        """Go on: the server has accepted a request again."""
        self._pause_s = 0.0
        if self.rate < math.inf:
            if self._suggests_rate:
                self.rate = self._good_rate = min(self.rate, self._mean_rate(now))
            self._next_at = now
        elif self._suggests_rate:
            self._limit_rate(now)
        else:
            self._good_bound = math.inf
        self._restart_epoch(now)
        self._restart_mean(now)

    def _hold(self, now: float, *, again: bool = False) -> None:
        """Try nothing more for a while; ``again``: for twice as long as before."""
        self._hold_s = min(2 * self._hold_s, _LONGEST_HOLD_S) if again else _FIRST_HOLD_S
        # Trying more may cost a wait that the server asks for.
        self._hold_until = now + max(self._hold_s, _ASKED_SHARE * self._asked_s)

    def _restart_epoch(self, now: float) -> None:
        self._count = 0
        self._since = now
        self._was_wanted = True

    def _restart_mean(self, now: float) -> None:
        self._mean_count = 0.0
        self._mean_since = now

    def _end_epoch(self, now: float) -> None:
        """Raise the bound or the rate, if requests are waiting for it and it may help."""
        a_second = self._count / max(now - self._since, 1e-9)
        was_wanted = self._was_wanted
        self._restart_epoch(now)
        if now - self._mean_since > _MEMORY_S:
            self._mean_count /= 2
            self._mean_since = (self._mean_since + now) / 2
        if not was_wanted:
            self._base = None
        elif self.rate < math.inf:
            if now >= self._hold_until and a_second >= _LIMITED * self.rate:
                self._good_rate = self.rate
                self.rate *= 1 + self._rate_step
                self._rate_step = min(2 * self._rate_step, _LARGEST_RATE_STEP)
        else:
            self._raise_bound(now, a_second)

    def _raise_bound(self, now: float, a_second: float) -> None:
        self._good_bound = max(self._good_bound, self.bound)
        if now < self._hold_until:
            return
        if self._base is not None and self.bound >= 1.5 * self._base[0]:
            bound, before = self._base
            self._base = None
            if a_second < before * (1 + _WORTH * (self.bound / bound - 1)):
                # More requests at once took longer, and brought hardly more answers a second.
                self.bound = bound
                self._hold(now, again=True)
                return
        if self._base is None:
            self._base = self.bound, a_second
        if self.bound < self._good_bound:
            larger = min(2 * self.bound, self._good_bound)
        else:
            larger = self.bound + self._step
            self._step *= 2
        self.bound = int(min(larger, MOST_REQUESTS))
