"""The errors that users see when a request has failed for good.

Each is of a class of `aioxarray.errors`, and also of the class that its client raised: programs
that catch ``aiohttp.ClientResponseError`` or ``botocore.exceptions.ClientError`` today still do,
and find its attributes. The message names only the request and the failure, because texts of
clients may show credentials. The client's own error is the ``__cause__``.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Self

from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import (
    AccessDeniedError,
    AioxarrayError,
    DataChangedError,
    RefusedError,
    ServerUnavailableError,
    ThrottledError,
    TimedOutError,
    UnreachableError,
    UntrustedServerError,
)

if TYPE_CHECKING:
    from aioxarray._zarr.stores.request import Request
    from aioxarray._zarr.stores.retries.errors import Failure

_VERBS = {
    "get": "read",
    "exists": "look for",
    "list": "list",
    "set": "write",
    "delete": "delete",
}
_MEANINGS: dict[type[AioxarrayError], str] = {
    ServerUnavailableError: "the server failed",
    ThrottledError: "the server refuses so many requests",
    UnreachableError: "the connection to the server failed",
    TimedOutError: "the server did not answer in time",
    AccessDeniedError: "access denied",
    UntrustedServerError: "the certificate of the server is not trusted",
    RefusedError: "the server refuses the request",
    DataChangedError: "it has been deleted or replaced",
}


def translated(
    error: Exception, failure: Failure | None, request: Request, attempts: int
) -> Exception:
    """Return the error that the user sees in place of ``error``.

    That is ``error`` itself if its failure is unknown, or if it is an `AioxarrayError` already.

    Parameters
    ----------
    error, failure
        The last error of the request, and what it means.
    request
        The request.
    attempts
        How often it was made.
    """
    if isinstance(error, AioxarrayError):
        error.attempts = attempts
        return error
    if failure is None:
        return error
    # If the cause is such an error, its class may be that of a client, too.
    kind = getattr(failure.kind, "_kind", failure.kind)
    if kind is DataChangedError and request.kind in ("set", "delete"):
        kind = RefusedError
    meaning = next((_MEANINGS[each] for each in kind.__mro__ if each in _MEANINGS), None)
    if meaning is None:
        return error
    store = repr(printable(request.store))
    place = f"{request.key!r} of {store}" if request.key else store
    # A "no such file" that hides a failure is not one: zarr would take it for a missing key.
    is_denial = isinstance(error, FileNotFoundError)
    # mypy mistakes the hash of an instance for that of a class.
    both = kind if is_denial else _kind_of_both(kind, type(error))  # type: ignore[arg-type]
    new = _made(
        both,
        f"could not {_VERBS[request.kind]} {place}: {meaning} ({failure.cause})",
        error,
    )
    new.attempts = attempts
    new.retry_after = failure.retry_after
    if failure.status is not None:
        new.status = failure.status
    return new


class _OfClient(AioxarrayError):
    """Base class of errors that are also of a client's class, whose methods it replaces."""

    # The class without the client's.
    _kind: type[AioxarrayError]

    def __init_subclass__(cls, **arguments: Any) -> None:
        """Leave out the client's own."""

    def __str__(self) -> str:
        return str(self.args[0])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.args[0]!r})"

    def __copy__(self) -> Self:
        new: Self = _filled(type(self), self.args[0], self)
        return new

    def __reduce__(self) -> tuple[Any, ...]:
        # Without what the client added: some of that cannot be pickled (aiohttp's headers), and the
        # process that reads it need not have the client.
        names = (*AioxarrayError.__annotations__, "__notes__")
        state = {name: value for name, value in vars(self).items() if name in names}
        return self._kind, self.args, state


@functools.lru_cache(maxsize=256)
def _kind_of_both(kind: type[AioxarrayError], other: type[Exception]) -> type[AioxarrayError]:
    """Return a class that is both; ``kind`` itself if it is, or if no class can be both."""
    if issubclass(kind, other):
        return kind
    names = {"__module__": kind.__module__, "__doc__": kind.__doc__, "_kind": kind}
    try:
        return type(kind.__name__, (_OfClient, kind, other), names)
    except TypeError:
        # They have different layouts in memory, as icechunk's errors and OSError do.
        return kind


def _made(kind: type[AioxarrayError], message: str, error: Exception) -> AioxarrayError:
    new = _filled(kind, message, error) if issubclass(kind, _OfClient) else kind(message)
    if isinstance(error, OSError) and isinstance(new, OSError):
        new.errno = error.errno
    if hasattr(error, "__notes__"):
        new.__notes__ = list(error.__notes__)
    return new


def _filled(kind: Any, message: str, error: Exception) -> Any:
    """Return an error of class ``kind`` with the attributes of ``error``.

    The ``__init__`` and ``__new__`` of a client may need anything.
    """
    base = OSError if issubclass(kind, OSError) else Exception
    new = base.__new__(kind, message)
    new.args = (message,)
    vars(new).update(vars(error))
    if hasattr(error, "__notes__"):
        new.__notes__ = list(error.__notes__)
    return new
