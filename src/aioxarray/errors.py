"""Exceptions of aioxarray, in one tree: each branch is something that a handler can do.

::

    AioxarrayError
      TryAgainError               ask again later
        ServerUnavailableError    ConnectionError    the server failed: HTTP 5xx
          WrongLengthError        ConnectionError    an answer has more bytes than were asked for
        ThrottledError            ConnectionError    the server refuses so many requests: HTTP 429
        UnreachableError          ConnectionError    no connection, or it broke
        TimedOutError             TimeoutError       a call took longer than its ``timeout``
          SilentServerError       TimeoutError       a request had no answer
        ArrayChangedError         RuntimeError       your array was changed while it was saved
      AskForLessError             ask for less, or with fewer calls at once
        TooLargeError             MemoryError        more bytes than ``max_bytes`` allows
        Overloaded                RuntimeError       more calls wait than ``queue`` allows
      WrongRequestError           change the request
        AccessDeniedError         PermissionError    HTTP 401 and 403
        UntrustedServerError      ConnectionError    the certificate of the server is not valid
        RefusedError              OSError            other statuses from 400 on
      ReopenError                 open the data again
        ForkError                 RuntimeError       this process was forked since it was opened
        DataChangedError          OSError            it was replaced or deleted since it was opened
        DamagedDataError          ValueError         a checksum does not match

The class beside each name is the builtin that it also is, whichever client the error came from.

When a request has failed for good, the error of the store's client is the ``__cause__`` of one of
these. That is also of the client's own class, with its attributes, so that programs that catch
``aiohttp.ClientResponseError`` or ``botocore.exceptions.ClientError`` keep working; only icechunk's
errors cannot be combined with others. It is pickled as the class above, without what the client
added. The message names the request and the failure, and has no text of the client, which may show
credentials.

Errors of codecs and backends, errors that are unknown, and those that mean that there is no such
key, such as ``FileNotFoundError``, reach the caller unchanged. All errors have notes that name the
request and its attempts, the chunk, the store and the variable (`BaseException.add_note`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AioxarrayError(Exception):
    """Base class of the exceptions that aioxarray defines.

    Attributes
    ----------
    attempts
        How often the request was made; None if the error is not that of a request.
    status
        The HTTP status of the answer; None if there was none, or if the client does not tell.
    retry_after
        The seconds after which the server wants to be asked again; None if it did not say.
    """

    attempts: int | None = None
    status: int | None = None
    retry_after: float | None = None


# --- ask again later -------------------------------------------------------------------------


class TryAgainError(AioxarrayError):
    """The same call may succeed later. All attempts that the settings allow have been made."""


class ServerUnavailableError(TryAgainError, ConnectionError):
    """The server failed, or a proxy before it: for example, HTTP 500 or 503."""


class WrongLengthError(ServerUnavailableError):
    """An answer has more bytes than were asked for: perhaps the server ignores byte ranges."""


class ThrottledError(TryAgainError, ConnectionError):
    """The server refuses this many requests: for example, HTTP 429 or "SlowDown"."""


class UnreachableError(TryAgainError, ConnectionError):
    """No connection to the server was made, or it broke before the answer was complete."""


class TimedOutError(TryAgainError, TimeoutError):
    """A call or a request has taken longer than its timeout."""


class SilentServerError(TimedOutError):
    """A request, and those that replaced it, had no answer."""


class ArrayChangedError(TryAgainError, RuntimeError):
    """An array in memory was changed while a save read it."""


# --- ask for less ----------------------------------------------------------------------------


class AskForLessError(AioxarrayError):
    """The call asks for more than the settings or the process allow. No request was made."""


class TooLargeError(AskForLessError, MemoryError):
    """The data has more bytes than the call may load."""


class Overloaded(AskForLessError, RuntimeError):
    """More calls wait for their turn than the queue may hold."""


# --- change the request ----------------------------------------------------------------------


class WrongRequestError(AioxarrayError):
    """The server refuses the request, and will refuse it again."""


class AccessDeniedError(WrongRequestError, PermissionError):
    """The credentials are missing, wrong or expired, or do not allow the request."""


class UntrustedServerError(WrongRequestError, ConnectionError):
    """The certificate of the server is not valid, or not one that this machine trusts."""


class RefusedError(WrongRequestError, OSError):
    """The server refuses the request for a reason that has nothing to do with permissions."""


# --- open the data again ---------------------------------------------------------------------


class ReopenError(AioxarrayError):
    """The opened data cannot be used any longer, or not here."""


class ForkError(ReopenError, RuntimeError):
    """A store's client cannot be used in a process forked after its first use.

    Clients with their own threads (obstore, icechunk) would hang forever. Start processes
    with the ``spawn`` or ``forkserver`` method, or fork before the first read.
    """


class DataChangedError(ReopenError, OSError):
    """The data has been replaced or deleted since it was opened."""


class DamagedDataError(ReopenError, ValueError):
    """The bytes of a chunk or of the index of a shard do not match their checksum.

    If they came from a server, they were requested twice.
    """


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a "did you mean" suffix with the closest of ``names``; "" if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
