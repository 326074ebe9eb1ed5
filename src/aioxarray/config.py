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
``cache``       0          bytes of decoded chunks that are kept for later loads of this process,
                           or a text like ``"1GiB"``; None, 0 or below: none
=============== ========== ==================================================================

Chunks of more than 4 MiB leave places to smaller ones, which then need not wait for their end: an
eighth of ``concurrency`` (of at least four places) and, beyond the limit, an eighth of ``memory``,
or one smaller chunk, and one thread. So the bytes in flight are at most ``memory``, or one chunk
that is larger, and beside them an eighth of ``memory`` or one chunk of up to 4 MiB. With fewer than
four places a small chunk waits for one of them.

What is in the cache is read without a request. aioxarray's own writes, and those of its
`CodecPipeline`, are seen: what was kept of that store goes. What others write, in this process or
another, or what zarr deletes when it resizes or replaces an array, is not seen, so keep the cache
off, or set it to 0 for the first load after such a write. A smaller setting takes effect when the
next load begins.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Mapping
from typing import Any

import donfig

from aioxarray._runtime.threads.pool import usable_cores

_DEFAULTS = {"concurrency": 128, "memory": "1GiB", "threads": None, "cache": 0}


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

_BYTES = "a number of bytes or a text like '1GiB'"
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
    limit = _byte_count("memory", config.get("memory"))
    return limit if limit > 0 else math.inf


def cache_limit() -> int:
    """Return how many bytes of decoded chunks are kept; 0 for none.

    Raises what `memory_limit` does.
    """
    value = config.get("cache")
    return 0 if value is None else max(0, _byte_count("cache", value))


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


def _byte_count(name: str, value: Any) -> int:
    if not isinstance(value, str):
        return _integer(name, value, _BYTES)
    return _bytes_of_text(name, value)


@functools.lru_cache(maxsize=32)
def _bytes_of_text(name: str, value: str) -> int:
    match = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*([kmg]i?)?b?\s*", value, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{name} must be {_BYTES}, got {value!r}")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])
