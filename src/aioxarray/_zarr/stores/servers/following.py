"""The default bound on requests in flight, which follows the latency and the size of the answers.

A process can ask for some thousands of answers a second. Of a server that takes long for each, that
many are on their way only if the bound is their product. Of large answers, a few fill the link.
"""

from __future__ import annotations

import math
from time import monotonic

from aioxarray._runtime.budget import Budget, Share
from aioxarray._zarr import tuning
from aioxarray._zarr.stores.servers.measured import Measured
from aioxarray.config import FIRST_REQUESTS, request_limit


class FollowingShare(Share):
    """A share of the requests in flight of a call without a limit of its own.

    Its bound is at first the default, and grows with the latency of the servers that the call
    reads. It never falls below the default, so that the requests of other servers have their
    places; `most_at_once` is for the large objects of one server.
    """

    __slots__ = ()

    def __init__(self, budget: Budget, bound: float) -> None:
        super().__init__(budget, bound)

    def follow(self, measured: Measured, nbytes: int) -> None:
        """Adapt the bound to a server, from which objects of ``nbytes`` bytes are read.

        A server that has lately refused requests for their number gets the default.
        """
        wanted = bound_for(measured, nbytes)
        if wanted > self.bound:
            self.rebound(min(wanted, request_limit("auto")))
        elif self.bound > FIRST_REQUESTS and _has_refused(measured):
            self.rebound(FIRST_REQUESTS)


def bound_for(measured: Measured, nbytes: int) -> int:
    """Return how many requests for ``nbytes`` bytes should be in flight; at least the default."""
    latency = measured.latency_s
    if latency is None or _has_refused(measured):
        return FIRST_REQUESTS
    wanted = math.ceil(latency * tuning.FOLLOWED_A_SECOND)
    bandwidth = measured.bandwidth
    most_bytes = max(
        tuning.FOLLOWED_BYTES,
        0.0 if bandwidth is None else tuning.FOLLOWED_GAIN * latency * bandwidth,
    )
    return max(FIRST_REQUESTS, int(min(wanted, most_bytes / max(nbytes, 1))))


def most_at_once(measured: Measured, nbytes: int) -> float:
    """Return how many objects of ``nbytes`` bytes should at most be requested at once.

    That is `math.inf` except for large objects of a server whose bandwidth is known.
    """
    latency, bandwidth = measured.latency_s, measured.bandwidth
    if nbytes < tuning.FOLLOWED_LARGE_BYTES or latency is None or bandwidth is None:
        return math.inf
    on_the_way = tuning.FOLLOWED_GAIN * latency * bandwidth
    return max(tuning.FOLLOWED_LEAST, math.ceil(on_the_way / nbytes))


def _has_refused(measured: Measured) -> bool:
    return monotonic() - measured.refused_at < tuning.FOLLOWED_PAUSE_S
