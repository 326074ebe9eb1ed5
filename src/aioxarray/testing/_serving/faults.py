"""Faults of the object server: rules that say which requests go wrong, and how."""

from __future__ import annotations

import asyncio
import json
import math
import random
import socket
import struct
import sys
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from aioxarray.testing._log import Request

__all__ = ["Effect", "Fault", "Faults", "flipped", "reset"]

Effect = Literal["reset", "lose", "stall", "stall-body", "truncate", "extend", "overrun", "flip"]


@dataclass(frozen=True, slots=True)
class Fault:
    """A rule; the arguments are those of `ObjectServer.fail`."""

    key: str
    effect: int | Effect | None
    method: str = "*"
    after: int = 0
    times: int | None = None
    probability: float = 1.0
    seed: int = 0
    retry_after: str | None = None
    code: str | None = None
    above: int | None = None
    above_per_s: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.effect, str):
            if self.effect not in get_args(Effect):
                names = ", ".join(map(repr, get_args(Effect)))
                raise ValueError(
                    f"a fault is an HTTP status or one of {names}; got {self.effect!r}"
                )
        elif self.effect is not None:
            HTTPStatus(self.effect)
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1; got {self.probability!r}")
        if self.after < 0 or (self.times is not None and self.times < 0):
            raise ValueError(f"after and times count requests; got {self.after!r}, {self.times!r}")
        for name, value in (("Retry-After", self.retry_after), ("code", self.code)):
            if value is not None and not isinstance(self.effect, int):
                raise ValueError(f"only a status has a {name}; got {self.effect!r}")
        if self.above is not None and self.above < 0:
            raise ValueError(f"above must not be negative; got {self.above!r}")
        if self.above_per_s is not None and self.above_per_s < 1:
            raise ValueError(f"above_per_s must be at least 1; got {self.above_per_s!r}")

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the error's answer."""
        return {} if self.retry_after is None else {"Retry-After": self.retry_after}

    def to_json(self) -> bytes:
        """Serialize the rule for `from_json`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Fault:
        """Parse the output of `to_json`."""
        return cls(**json.loads(data))


class _Rule:
    """A fault, and which of the requests that match it so far went wrong."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._seen = 0
        self._failed = 0
        self._random = random.Random(fault.seed)
        # The allowance of `above_per_s` that is left, and the time of the last request.
        self._left = fault.above_per_s or 0.0
        self._left_at = -math.inf

    def matches(self, request: Request) -> bool:
        fault = self.fault
        return fnmatchcase(request.key, fault.key) and fnmatchcase(request.method, fault.method)

    def strikes(self, in_flight: int, now: float) -> bool:
        """Count a request that matches; return whether it goes wrong.

        Parameters
        ----------
        in_flight
            The number of requests in flight at the server, this one included.
        now
            The time in seconds.
        """
        fault = self.fault
        if fault.above is not None and in_flight <= fault.above:
            return False
        if fault.above_per_s is not None and self._is_within_rate(fault.above_per_s, now):
            return False
        self._seen += 1
        if self._seen <= fault.after or self._failed == fault.times:
            return False
        if fault.probability < 1 and self._random.random() >= fault.probability:
            return False
        self._failed += 1
        return True

    def _is_within_rate(self, per_s: float, now: float) -> bool:
        """Take one of the requests of a second, if one is left; they come back evenly."""
        self._left = min(per_s, self._left + (now - self._left_at) * per_s)
        self._left_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Faults:
    """The rules of a server; used on its loop only, except `add`."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []

    def __bool__(self) -> bool:
        return bool(self._rules)

    def add(self, fault: Fault) -> None:
        """Add a rule, which takes precedence over earlier ones; thread-safe."""
        # A new list: the server may be iterating over the old one.
        self._rules = [*self._rules, _Rule(fault)]

    def clear(self) -> None:
        """Drop all rules; thread-safe."""
        self._rules = []

    def of(self, request: Request, in_flight: int, now: float) -> Fault | None:
        """Return the fault of a request that has arrived; None if it is answered well."""
        for rule in reversed(self._rules):
            if rule.matches(request) and rule.strikes(in_flight, now):
                return None if rule.fault.effect is None else rule.fault
        return None


def flipped(body: bytes) -> bytes:
    """Return a body with one bit of its middle byte flipped."""
    if not body:
        return body
    damaged = bytearray(body)
    damaged[len(body) // 2] ^= 1
    return bytes(damaged)


def reset(transport: asyncio.Transport) -> None:
    """Close a connection with an RST packet: the client gets a "connection reset" error."""
    connection = transport.get_extra_info("socket")
    # Closing a socket that lingers for 0 seconds drops what was not sent, and resets.
    linger = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    transport.abort()
