"""The settings: how much may be in use at once. Set in code, in the environment or in a file.

``config`` is a `donfig.Config`, as zarr's is: ``config.set(concurrency=32)`` (also as a context
manager), ``AIOXARRAY_CONCURRENCY=32`` in the environment, or ``~/.config/aioxarray/*.yaml``.
Settings are read when a call begins.

=============== ========== ==================================================================
name            default    meaning
=============== ========== ==================================================================
``concurrency`` 128        store requests in flight at once in this process; 0 or below: no
                           limit
``memory``      ``"1GiB"`` bytes of chunks in flight (fetched or being decoded) at once in
                           this process, results excluded; 0 or below: no limit
``threads``     None       threads that decode; None: as many as this process may use cores
=============== ========== ==================================================================
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import donfig

from aioxarray._runtime.threads import usable_cores

_DEFAULTS = {"concurrency": 128, "memory": "1GiB", "threads": None}


class _Settings(donfig.Config):  # type: ignore[misc]  # donfig has no types
    """Settings that refuse a name which would change nothing."""

    def set(self, arg: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        unknown = {**(arg or {}), **kwargs}.keys() - _DEFAULTS.keys()
        if unknown:
            raise ValueError(
                f"aioxarray has no setting {', '.join(map(repr, sorted(unknown)))}; "
                f"it has {', '.join(_DEFAULTS)}"
            )
        return super().set(arg, **kwargs)


config = _Settings("aioxarray", defaults=[_DEFAULTS])

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def request_limit(concurrency: int | None = None) -> float:
    """Return the limit on requests in flight: ``concurrency``, or the setting for None.

    ``math.inf`` stands for no limit. Raises TypeError for what is not an integer.
    """
    value = config.get("concurrency") if concurrency is None else concurrency
    limit = _integer("concurrency", value)
    return limit if limit > 0 else math.inf


def memory_limit() -> float:
    """Return the limit on bytes in flight; ``math.inf`` stands for no limit.

    Raises TypeError for what is neither an integer nor a text, ValueError for other texts.
    """
    value = config.get("memory")
    limit = (
        _byte_count(value)
        if isinstance(value, str)
        else _integer("memory", value, "a number of bytes or a text like '1GiB'")
    )
    return limit if limit > 0 else math.inf


def thread_count() -> int:
    """Return how many threads decode.

    Raises TypeError for what is not an integer, ValueError for fewer than one.
    """
    value = config.get("threads")
    if value is None:
        return usable_cores()
    count = _integer("threads", value)
    if count < 1:
        raise ValueError(f"threads must be at least 1, or None for one a core; got {value!r}")
    return count


def _integer(name: str, value: Any, kind: str = "an integer") -> int:
    # True is an integer to Python, and never what was meant.
    if not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{name} must be {kind}, got {value!r} ({type(value).__name__})")


def _byte_count(text: str) -> int:
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"memory must be a number of bytes or a text like '1GiB', got {text!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
