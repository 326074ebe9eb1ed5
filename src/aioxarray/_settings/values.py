"""Values of settings and arguments: numbers, seconds, bytes, flags; errors name the setting."""

from __future__ import annotations

import functools
import operator
import re
import sys
from decimal import Decimal
from typing import Any

_BYTES = "a number of bytes or a text like '1GiB'"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def seconds(name: str, value: Any) -> float:
    """Return ``value`` as a number of seconds; raises if it is none or is negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{name} must be a number of seconds, got {value!r} ({type(value).__name__})"
        )
    if not value >= 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be at most {sys.float_info.max:.0e}") from None


def flag(name: str, value: Any) -> bool:
    """Return ``value`` if it is True or False; raises TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def integer(name: str, value: Any, kind: str = "an integer") -> int:
    """Return ``value`` as an integer; raises TypeError, with the ``kind`` of value wanted."""
    # bool is a subclass of int, but True is never meant as a number here.
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")


def byte_count(name: str, value: Any) -> int:
    """Return ``value``, a number of bytes or a text like "1GiB", as a number."""
    if not isinstance(value, str):
        return integer(name, value, _BYTES)
    return _bytes_of_text(name, value)


@functools.lru_cache(maxsize=32)
def _bytes_of_text(name: str, value: str) -> int:
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name} must be {_BYTES}, got {value!r}")
    return int(Decimal(match[1]) * _UNITS[(match[2] or "").lower()])
