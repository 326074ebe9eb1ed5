"""Settings that limit concurrency, memory and threads, size the cache, and rule retries.

``config`` is a `donfig.Config`, like zarr's. Settings come from ``config.set(concurrency=32)``
(also a context manager), ``AIOXARRAY_CONCURRENCY=32`` in the environment, or
``~/.config/aioxarray/*.yaml``, and are read when a call begins. ``config.set`` refuses bad values
at once; those of the other sources are refused by the next call, before any request.
``print(config)`` shows all settings and where each comes from.

=============== ========== ==================================================================
name            default    meaning
=============== ========== ==================================================================
``concurrency`` "default"  store requests in flight in this process; 0 or below: no limit;
                           ``"auto"``: what each server accepts; ``"default"``: 128, or more
                           for distant servers, see below
``memory``      ``"1GiB"`` bytes of chunks in flight (fetched or being decoded) in this
                           process, results excluded; 0 or below: no limit
``threads``     None       threads that decode; None: one for each core this process may use, by
                           its affinity and the limits of its cgroups (containers)
``cache``       0          bytes of decoded chunks kept for later loads in this process, or a
                           string like ``"1GiB"``; None, 0 or below: no cache
``queue``       None       calls that may wait for their first turn in this process while the
                           limits are used up; more fail with `Overloaded`; None: no limit
``retry``       see below  how failed requests are made again
``stall_s``     5          seconds without an answer after which a request is made again;
                           None: never
``hedge``       False      whether reads that take unusually long are made a second time
``otel``        False      whether calls and their requests are spans of OpenTelemetry
``bypass_dask`` True       whether dask arrays that only read Zarr are loaded without dask
``tensorstore`` ``"auto"`` whether the package tensorstore, if it is installed, may read small
                           chunks of local files: True, False or, where it is faster, ``"auto"``
=============== ========== ==================================================================

Chunks of more than 4 MiB never take the whole budget, so smaller chunks need not wait for them. An
eighth of ``concurrency`` is reserved for smaller chunks (nothing if ``concurrency`` is below four:
a small chunk then waits for its place). Beyond the limits, smaller chunks also get one thread, and
an eighth of ``memory`` or one chunk. So the bytes in flight are at most ``memory``, or a single
chunk larger than it, plus an eighth of ``memory`` or a single chunk of up to 4 MiB.

By default, 128 requests are in flight at most, and more for a load from a server that takes
more than 25 ms for an answer: as many as make 5000 answers a second, up to 1024 or half of the file
descriptors, and up to 256 MiB on their way (or four times what latency and measured bandwidth need,
if that is more). After a refusal (429, 503, SlowDown and the like) it is 128 for a minute. Of
objects of 1 MiB and more there are fewer, at least 16, once the bandwidth is known. A number is
exact.

With ``concurrency="auto"``, up to 256 requests to a server are in flight, or more if that brings
more answers a second, until it refuses one for its load (429, 503, SlowDown and the like) or does
not answer it in time. From then on, that server gets as many at once as it accepted or, if it
limits their rate, as many a second. Now and then more is tried. There are never more than 1024, nor
than half of the file descriptors that the process may open. "Retry-After" holds for all requests to
the server. A refused request is made again when the server has room, until ``retry.deadline``;
``retry.attempts`` does not count refusals.

Cached chunks are read without a request. Writes by aioxarray and by its `CodecPipeline` drop the
cached chunks of that store. Other writes, in this process or another, go unnoticed, and so do
deletions when zarr resizes or replaces an array: keep the cache off in such programs, or set it to
0 for the first load after such a write. A smaller setting takes effect at the next load.

With ``tensorstore="auto"``, TensorStore reads blocks of at least 2048 chunks of up to 64 KiB each
from local files, if there are four threads or more: Python's lock lets one of them work at a time.
With ``tensorstore=True`` it reads all chunks that it decodes to the same values: numbers with zstd,
blosc, gzip, zlib, crc32c or no compression, but not shards, with a cache, or into arrays of the
caller. It gets as many threads as ``threads`` says, and reads up to 16 MiB at once, within
``memory``. If it fails, the chunks are read without it. A forked child of a process that has used
TensorStore reads without it.

Requests that fail in a way that may pass are made again: statuses 408, 425, 429, 500, 502, 503 and
504, throttling, broken connections and bodies, failing DNS. The waits are random, up to a time that
doubles with each attempt; "Retry-After" is honoured. ``retry="interactive"``, the default, gives up
soon; ``retry="batch"`` is for jobs that should outlast an outage. A profile can be changed in part
with ``config.set({"retry.attempts": 1})`` or ``AIOXARRAY_RETRY__ATTEMPTS=1``; None is the
profile's own value:

=================== ============== ========= ===================================================
name                interactive    batch     meaning
=================== ============== ========= ===================================================
``retry.attempts``  10             40        most attempts for a request; 1: no retries
``retry.deadline``  30             600       seconds after the first failure in which an attempt
                                             may begin
``retry.backoff_s`` 0.2            0.5       longest wait before the second attempt, in seconds
=================== ============== ========= ===================================================

A server that an open cannot reach at all is tried three times: its name may be wrong.

Clients that retry by themselves are left to it (s3fs, gcsfs, adlfs, icechunk, and obstore unless it
was made with ``max_retries=0``). Those made here for URLs of S3 do not.

A request is silent if it has no answer after ``stall_s`` seconds, and one more for each megabyte
that is expected, while its server sends nothing, or answers requests that began later. A read then
gets a second request beside it, within the limits; the first answer counts, and the other request
is cancelled. A write, and a read that finds no free place because all requests of its server are
silent, is cancelled and made again. If all are silent until ``retry.deadline``, the error is
`SilentServerError`. A body that arrives slowly is not given up: on Linux, the bytes on the
connections show that; elsewhere, only answers to later requests make one silent. Clients that retry
by themselves get one more request.

With ``hedge=True``, a read that takes a quarter longer than 97 % of the last 512 answers of its
server gets a second request, and perhaps a third, if places are free. These are at most 5 % of all
requests, and 1 % while answers are slow. Nearby object stores are then not read in threads.

With ``bypass_dask=True``, a load makes one plan for all chunks of a dask array whose graph only
reads Zarr, by slices, with all requests in flight at once: dask would run a task for each chunk,
with a distributed client in its workers. Everything that dask computes is left to it, and so are
arrays of annotated graphs, and all arrays in calls with options for ``dask.compute``.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from aioxarray._runtime.system.cores import usable_cores
from aioxarray._runtime.system.descriptors import spare_descriptors
from aioxarray._settings.brought import brought_value
from aioxarray._settings.checked import Settings
from aioxarray._settings.retry_policy import DEFAULTS as _RETRIES
from aioxarray._settings.retry_policy import RetryPolicy, policy_of
from aioxarray._settings.values import byte_count, flag, integer, seconds

Concurrency: TypeAlias = int | Literal["auto", "default"]

MOST_REQUESTS = 1024
"""The most requests in flight with ``concurrency="auto"``, and by default."""

FIRST_REQUESTS = 128
"""The most requests in flight by default, until the latency of the servers is known."""

_DEFAULTS: dict[str, Any] = {
    "concurrency": "default",
    "memory": "1GiB",
    "threads": None,
    "cache": 0,
    "queue": None,
    "retry": _RETRIES,
    "stall_s": 5,
    "hedge": False,
    "otel": False,
    "bypass_dask": True,
    "tensorstore": "auto",
}


def value_of(name: str) -> Any:
    """Return the value of a setting that holds here: that of a cluster's client, or its own."""
    value = brought_value(name)
    return config.get(name) if value is None else value


def is_own(name: str) -> bool:
    """Return whether this process has a value of its own for a setting, and not the default."""
    return config.source(name) != "default"


def check_settings() -> None:
    """Raise for a bad setting, with a note that says where it comes from.

    Files and the environment can hold bad ones; ``config.set`` refuses them itself.
    """
    name = ""
    try:
        for name, check in _CHECKS.items():
            check(config.config[name])
    except (TypeError, ValueError, ImportError) as error:
        sources = config.sources(name) - {"default"}
        error.add_note(f"The setting comes from {', '.join(sorted(sources))}")
        raise


def is_adaptive(concurrency: Concurrency | None = None) -> bool:
    """Return whether ``concurrency``, or the setting if it is None, is "auto"."""
    return (value_of("concurrency") if concurrency is None else concurrency) == "auto"


def is_default(concurrency: Concurrency | None = None) -> bool:
    """Return whether neither ``concurrency`` nor the setting names a limit."""
    return (value_of("concurrency") if concurrency is None else concurrency) == "default"


def request_limit(concurrency: Concurrency | None = None) -> float:
    """Return the limit on requests in flight: ``concurrency``, or the setting if it is None.

    ``math.inf`` means no limit. For "auto" it is the number of connections that the process can
    open. By default it is the number with which a call begins. Raises TypeError if the value is
    neither an integer nor "auto" nor "default".
    """
    return _request_limit(value_of("concurrency") if concurrency is None else concurrency)


def _request_limit(value: Any) -> float:
    if isinstance(value, str) and value == "auto":
        return max(1, min(MOST_REQUESTS, spare_descriptors()))
    if isinstance(value, str) and value == "default":
        return FIRST_REQUESTS
    limit = integer("concurrency", value, "an integer or 'auto'")
    return limit if limit > 0 else math.inf


def memory_limit() -> float:
    """Return the limit on bytes in flight; ``math.inf`` means no limit.

    Raises TypeError if the setting is neither an integer nor a string, and ValueError if the
    string is not a size.
    """
    return _memory_limit(value_of("memory"))


def _memory_limit(value: Any) -> float:
    limit = byte_count("memory", value)
    return limit if limit > 0 else math.inf


def cache_limit() -> int:
    """Return how many bytes of decoded chunks to cache; 0 for no cache.

    Raises the same errors as `memory_limit`.
    """
    return _cache_limit(config.get("cache"))


def _cache_limit(value: Any) -> int:
    return 0 if value is None else max(0, byte_count("cache", value))


def byte_bound(name: str, value: Any) -> int:
    """Return ``value``, the argument ``name``, as a number of bytes.

    Raises the same errors as `memory_limit`, and ValueError if the number is negative.
    """
    count = byte_count(name, value)
    if count < 0:
        raise ValueError(f"{name} must not be negative, got {value!r}")
    return count


def thread_count() -> int:
    """Return the number of threads that decode.

    Raises TypeError if the setting is not an integer, ValueError if it is less than one.
    """
    count = _thread_limit(config.get("threads"))
    return usable_cores() if count is None else count


def _thread_limit(value: Any) -> int | None:
    # Without asking for the cores: the check of a setting must read no file on a caller's loop.
    if value is None:
        return None
    count = integer("threads", value)
    if count < 1:
        raise ValueError(f"threads must be at least 1, or None for one a core; got {value!r}")
    return count


def queue_limit() -> int | None:
    """Return how many calls may wait for their first turn; None for no limit.

    Raises TypeError if the setting is not an integer, and ValueError if it is negative.
    """
    return _queue_limit(config.get("queue"))


def _queue_limit(value: Any) -> int | None:
    if value is None:
        return None
    count = integer("queue", value, "an integer or None")
    if count < 0:
        raise ValueError(f"queue must not be negative, got {value!r}; None means no limit")
    return count


def retry_policy() -> RetryPolicy:
    """Return how failed requests are made again.

    Raises TypeError if a setting is not a number, and ValueError if it is too small or if there is
    no such profile.
    """
    return policy_of(value_of("retry"))


def stall_seconds() -> float:
    """Return after how many seconds of silence a request is made again; ``math.inf``: never.

    Raises TypeError if the setting is not a number, and ValueError if it is not positive.
    """
    return _stall_seconds(config.config["stall_s"])


def is_hedging() -> bool:
    """Return whether reads that take unusually long are made a second time."""
    return flag("hedge", config.config["hedge"])


def is_bypassing_dask() -> bool:
    """Return whether dask arrays that only read Zarr are loaded without dask."""
    return flag("bypass_dask", config.config["bypass_dask"])


def is_otel() -> bool:
    """Return whether calls and their requests are spans of OpenTelemetry.

    Raises ImportError if they are to be, and OpenTelemetry is not installed.
    """
    return _spans(config.config["otel"])


def _spans(value: Any) -> bool:
    if flag("otel", value):
        _check_otel()
        return True
    return False


@functools.cache
def _check_otel() -> None:
    if importlib.util.find_spec("opentelemetry") is None:
        raise ImportError(
            "otel=True makes spans of OpenTelemetry, which is not installed: "
            "pip install 'aioxarray[otel]'"
        )


def uses_tensorstore() -> bool | None:
    """Return whether TensorStore reads chunks of local files; None for where it is faster.

    Raises TypeError if the setting is none of "auto", True and False, and ImportError if it is True
    and TensorStore is not installed.
    """
    return _uses_tensorstore(config.config["tensorstore"])


def _uses_tensorstore(value: Any) -> bool | None:
    if value == "auto":
        return None
    if not isinstance(value, bool):
        raise TypeError(f"tensorstore must be 'auto', True or False, got {value!r}")
    if value and not has_tensorstore():
        raise ImportError(
            "tensorstore=True reads with the package tensorstore, which is not installed: "
            "pip install 'aioxarray[tensorstore]'"
        )
    return value


@functools.cache
def has_tensorstore() -> bool:
    """Return whether TensorStore is installed."""
    return importlib.util.find_spec("tensorstore") is not None


def _stall_seconds(value: Any) -> float:
    if value is None:
        return math.inf
    # Asked for each request.
    if type(value) is float and value > 0:
        return value
    if (length := seconds("stall_s", value)) == 0:
        raise ValueError("stall_s must be more than 0, or None to wait for any answer; got 0")
    return length


_CHECKS: dict[str, Callable[[Any], object]] = {
    "retry": policy_of,
    "concurrency": _request_limit,
    "memory": _memory_limit,
    "threads": _thread_limit,
    "cache": _cache_limit,
    "queue": _queue_limit,
    "stall_s": _stall_seconds,
    "hedge": functools.partial(flag, "hedge"),
    "otel": _spans,
    "bypass_dask": functools.partial(flag, "bypass_dask"),
    "tensorstore": _uses_tensorstore,
}

config = Settings(_DEFAULTS, _CHECKS)
