"""Exceptions that aioxarray defines.

Errors from stores, codecs and backends reach the caller unchanged, with notes that name the
variable, chunk and store, and the attempts of a request that was or could have been retried
(`BaseException.add_note`). Only errors that exist nowhere else are
defined here::

    RuntimeError
      ForkError     the data was opened before this process was forked: reopen it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ForkError(RuntimeError):
    """A store's client cannot be used in a process forked after its first use.

    Clients with their own threads (obstore, icechunk) would hang forever. Start processes
    with the ``spawn`` or ``forkserver`` method, or fork before the first read.
    """


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a "did you mean" suffix with the closest of ``names``; "" if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
