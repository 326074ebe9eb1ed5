"""Retries: whether a failed request is made again, and when.

The request makes the attempts (`aioxarray._zarr.stores.request.send`). Nothing here runs unless
one has failed.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from zarr.abc.store import Store
from zarr.storage import FsspecStore, ObjectStore

from aioxarray._zarr.stores.identity import unwrapped
from aioxarray._zarr.stores.retries.errors import causes, failure_of, is_answer
from aioxarray._zarr.stores.retries.spellings import DEBUG
from aioxarray._zarr.stores.retries.translation import translated
from aioxarray._zarr.stores.servers.hosts import host_of
from aioxarray._zarr.stores.servers.pacing import pace_of
from aioxarray.config import retry_policy
from aioxarray.errors import DamagedDataError, SilentServerError, WrongLengthError

if TYPE_CHECKING:
    from aioxarray._runtime.budget import Share
    from aioxarray._zarr.stores.request import Request
    from aioxarray._zarr.stores.retries.errors import Failure

# The filesystems that retry by themselves; fsspec's HTTP, for example, does not.
_RETRYING = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "oci", "oss", "s3", "s3a", "tos"})

BOTO_ONCE = {"retries": {"max_attempts": 0}}
"""The configuration of a client of botocore that makes one attempt."""

# Libraries whose clients all retry, unless they were told not to.
_CLIENTS = frozenset({"botocore", "icechunk", "obstore"})
# Filesystems can be wrapped: in a cache, or in a directory of another.
_DEEPEST = 6

# The most attempts of an open to reach a server that has not answered it yet: a name may be wrong.
_TO_REACH = 3

# Replaced in tests.
sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
clock: Callable[[], float] = time.monotonic


class Attempts:
    """The failed attempts of one request, after the first of them.

    Attributes
    ----------
    wait_s
        The seconds to wait before the next attempt.
    """

    def __init__(self, request: Request, places: Share | None) -> None:
        self._policy = retry_policy()
        self._begun = clock()
        self._failed: list[tuple[float, str]] = []
        # Why no further attempt is made.
        self._reason = ""
        self.wait_s = 0.0
        self._request = request
        # Whether the next attempt waits until the server has room for it.
        self._is_paced = pace_of(request.store, places) is not None
        self._uncounted = 0
        self._damaged = 0

    @property
    def left_s(self) -> float:
        """The seconds in which another attempt may begin."""
        return self._policy.deadline - (clock() - self._begun)

    def goes_on(self, error: Exception, *, last: bool = False) -> bool:
        """Record a failed attempt; return whether there is another one.

        If there is none, ``error`` gets a note with all attempts. If its client is known, this
        raises the error that the user sees in its place (see `translated`).

        Parameters
        ----------
        error
            The error of the attempt.
        last
            Whether the caller cannot make another one.
        """
        if is_answer(error) or isinstance(error, SilentServerError):
            # A silent request was made again until the deadline.
            return False
        found = failure_of(error)
        elapsed = clock() - self._begun
        if found is not None and found.refused and (host := host_of(self._request.store)):
            host.measured.refused_at = time.monotonic()
        self._failed.append((elapsed, type(error).__name__ if found is None else found.cause))
        if found is None or not found.passes:
            self._reason = "this error cannot be retried"
        elif last:
            self._reason = "the caller cannot wait for another one"
        else:
            self._reason = self._end(error, found, elapsed)
            if not self._reason:
                return True
        final = translated(error, found, self._request, len(self._failed))
        note = self._note()
        if note not in getattr(final, "__notes__", ()):
            final.add_note(note)
        if final is not error:
            raise final from error
        return False

    def _end(self, error: Exception, found: Failure, elapsed: float) -> str:
        """Return why there is no further attempt; "" if there is one, after ``wait_s``."""
        policy, count = self._policy, len(self._failed)
        if not self._request.repeatable:
            return "it is not safe to repeat"
        if self._is_paced and found.refused:
            # The server had no room; as soon as it has, the attempt is repeated.
            self._uncounted += 1
        elif isinstance(error, WrongLengthError | DamagedDataError):
            # No client notices these. Unless the first was an accident, more attempts do not help.
            self._damaged += 1
            if self._damaged > 1:
                return "a damaged answer is requested twice at most"
        elif (client := retrying_client(self._request.store, error)) is not None:
            if count > 1 or not self._is_left_out(error):
                return f"{client} retries by itself"
        elif found.unreached and self._request.is_first_contact and count >= _TO_REACH:
            return "the server was never reached"
        if count - self._uncounted >= policy.attempts:
            return f"attempts exhausted (retry.attempts={policy.attempts})"
        # "Full jitter": clients that failed together do not come back together.
        most = min(policy.longest_s, math.ldexp(policy.backoff_s, min(count - 1, 60)))
        self.wait_s = max(random.uniform(0, most), found.retry_after or 0.0)
        if elapsed + self.wait_s > policy.deadline:
            if (asked := found.retry_after) is not None:
                return f"the server asks to wait {asked:g} s (retry.deadline={policy.deadline:g})"
            return f"time is up (retry.deadline={policy.deadline:g})"
        return ""

    def _is_left_out(self, error: Exception) -> bool:
        """Return whether a client that retries by itself has not retried this failure."""
        # s3fs translates the errors of botocore.
        for each in causes(error):
            found, library = failure_of(each), _library(each)
            if found is None:
                continue
            # Answers to HEAD have no code, by which s3fs would know them.
            if library == "botocore" and found.cause in ("HTTP 408", "HTTP 425"):
                return True
            # icechunk asks for no body again that broke off.
            if library == "icechunk" and found.cause == "streaming error":
                return True
            # obstore does so for objects, but neither for listings nor for answers that are errors:
            # a 404 of S3 has a body.
            if library == "obstore" and found.cause == "request or response body error":
                message = str(each).partition(DEBUG)[0]
                return self._request.kind == "list" or "Error performing" in message
        return False

    def _note(self) -> str:
        count = len(self._failed)
        groups = [
            (cause, sum(1 for _ in same))
            for cause, same in itertools.groupby(cause for _, cause in self._failed)
        ]
        causes = ", ".join(cause if n == 1 else f"{n} x {cause}" for cause, n in groups)
        if count == 1:
            return f"1 attempt: {causes}; {self._reason}"
        return f"{count} attempts over {self._failed[-1][0]:.1f} s: {causes}; {self._reason}"

    def __str__(self) -> str:
        """Describe the next attempt, for a timeout error."""
        return f"attempt {len(self._failed) + 1} after {self._failed[-1][1]}"


def retrying_client(source: Any, error: Exception | None = None) -> str | None:
    """Return the name of the client of ``source`` if it retries by itself; None if it does not.

    Attempts would multiply if both retried: obstore makes up to 11, s3fs 5 to 23, icechunk 10 and
    more.

    Parameters
    ----------
    source
        A Zarr store, an obstore store or an fsspec filesystem.
    error
        The error of a request. If the store is of an unknown type, it tells the client.
    """
    source = unwrapped(source)
    if isinstance(source, ObjectStore):
        source = source.store
    elif isinstance(source, FsspecStore):
        source = source.fs
    elif isinstance(source, Store) and error is not None and _library(error) in _CLIENTS:
        return _library(error)
    library = _library(source)
    if library == "obstore":
        most = (getattr(source, "retry_config", None) or {}).get("max_retries")
        return None if most == 0 else library
    if library in _CLIENTS:
        return library
    if getattr(source, "retries", None) == 1 and _asks_botocore_once(source):
        return None
    return type(source).__name__ if _protocols(source) & _RETRYING else None


def attempt_once(store: Store) -> None:
    """Let the filesystem of ``store`` make one attempt if it is s3fs's, made with `BOTO_ONCE`."""
    filesystem: Any = store.fs if isinstance(store, FsspecStore) else None
    if _library(filesystem) == "s3fs" and _asks_botocore_once(filesystem):
        filesystem.retries = 1


def _asks_botocore_once(filesystem: Any) -> bool:
    config = getattr(filesystem, "config_kwargs", None) or {}
    return bool(config.get("retries") == BOTO_ONCE["retries"])


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0].lstrip("_")


def _protocols(filesystem: Any) -> frozenset[str]:
    """Return the protocols of an fsspec filesystem, or of the one inside it."""
    filesystem = getattr(filesystem, "sync_fs", filesystem)
    for _ in range(_DEEPEST):
        inner = getattr(filesystem, "fs", None)
        if inner is None:
            break
        filesystem = inner
    protocol: Any = getattr(filesystem, "protocol", ())
    return frozenset({protocol} if isinstance(protocol, str) else protocol)
