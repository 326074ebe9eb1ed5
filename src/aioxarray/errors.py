"""The errors of aioxarray's own.

Errors of stores, codecs and backends reach the caller as they are, with notes that say which
variable, chunk and store they belong to (`BaseException.add_note`). Only what has no error
elsewhere has one here::

    RuntimeError
      ForkError     the data was opened before this process was forked: open it anew
"""

from __future__ import annotations


class ForkError(RuntimeError):
    """A store's client cannot be used in a process forked after its first use.

    Clients with threads of their own (obstore, icechunk) hang there for ever. Start processes
    with the ``spawn`` or ``forkserver`` method, or fork before the first read.
    """
