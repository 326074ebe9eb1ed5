"""Errors of clients: what has failed, and whether the same request may succeed later.

Clients are optional, so their errors are recognized by attributes, by the names of their types and,
if there is no other way, by their text. A failure is described by the class of `aioxarray.errors`
that the user will see: a request is made again if that is a `TryAgainError`.
"""

from __future__ import annotations

import datetime
import email.utils
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aioxarray._zarr.stores.retries import spellings
from aioxarray.errors import (
    AccessDeniedError,
    AioxarrayError,
    DamagedDataError,
    DataChangedError,
    RefusedError,
    SilentServerError,
    ThrottledError,
    TimedOutError,
    TryAgainError,
    UnreachableError,
    UntrustedServerError,
)

# A cause may be hidden below errors that translate it.
_DEEPEST = 6


@dataclass(frozen=True)
class Failure:
    """The failure of a request.

    Attributes
    ----------
    kind
        The class of the error that the user will see.
    cause
        A short description without a URL: "HTTP 503", "ClientPayloadError".
    status
        The HTTP status; None if there is none.
    retry_after
        The seconds after which the server wants to be asked again; None if it did not say.
    unreached
        Whether no connection to the server was made.
    """

    kind: type[AioxarrayError]
    cause: str
    status: int | None = None
    retry_after: float | None = None
    unreached: bool = False

    @property
    def passes(self) -> bool:
        """Whether making the request again may help."""
        if issubclass(self.kind, SilentServerError):
            # It has been made again already.
            return False
        return issubclass(self.kind, TryAgainError | DamagedDataError)

    @property
    def refused(self) -> bool:
        """Whether the server refused the request because it has too many."""
        return (
            self.kind is ThrottledError or self.status == 503 or self.cause in spellings.OVERLOADED
        )

    @property
    def late(self) -> bool:
        """Whether no answer came in time."""
        is_late = issubclass(self.kind, TimedOutError) or self.cause in spellings.LATE
        return is_late or self.status in (408, 504)


def is_answer(error: BaseException) -> bool:
    """Return whether callers take the error for an answer: there is no such key, or there is one.

    zarr is one of these callers, so such errors must not change. But fsspec also says that a file
    does not exist if the server failed when it was asked for the size.
    """
    if not isinstance(error, spellings.ANSWERS):
        return False
    below = None if error.__cause__ is None else failure_of(error.__cause__)
    return below is None or not below.passes


def failure_of(error: BaseException) -> Failure | None:
    """Return what has failed; None for an answer ("no such key"), and if it is unknown."""
    found: Failure | None = None
    for each in causes(error):
        if found is None and is_answer(each):
            return None
        here = None if isinstance(each, spellings.ANSWERS) else _failure(each)
        if here is None:
            continue
        if here.status is not None:
            # A client may have translated the answer into a class that does not have the status.
            return here if found is None or here.kind is found.kind else found
        found = found or here
    return found


def transient(error: BaseException) -> Failure | None:
    """Return the failure if making the request again may help; None if it cannot."""
    found = failure_of(error)
    return found if found is not None and found.passes else None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and its causes."""
    for _ in range(_DEEPEST):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _failure(error: BaseException) -> Failure | None:
    """Return what ``error`` itself says, without its causes."""
    name = type(error).__name__
    if isinstance(error, AioxarrayError):
        return Failure(type(error), name, error.status, error.retry_after)
    names = _names(error)
    if names & spellings.UNTRUSTED:
        return Failure(UntrustedServerError, name)
    if names & spellings.GARBLED or (
        error.__cause__ is not None and _names(error.__cause__) & spellings.GARBLED
    ):
        # aiohttp gives it the status 400, though the server sent none.
        return Failure(UnreachableError, "an answer that is not HTTP")
    status, code, headers = _answer(error)
    if code is not None and (kind := spellings.CODES.get(code)) is not None:
        return Failure(kind, code, status, _retry_after(headers))
    if status is None:
        status = next(
            (
                spellings.STATUSES_OF_TYPES[each]
                for each in names & spellings.STATUSES_OF_TYPES.keys()
            ),
            None,
        )
    if status is not None:
        return _of_status(status, _retry_after(headers))
    for each in names:
        if (kind := spellings.KINDS_OF_TYPES.get(each)) is not None:
            return Failure(kind, name)
    if isinstance(error, PermissionError):
        # The system's own error has the name of a file.
        return None if error.filename is not None else Failure(AccessDeniedError, name)
    if _is_broken(error, names):
        late = isinstance(error, TimeoutError) or bool(names & spellings.TIMED_OUT)
        kind = TimedOutError if late else UnreachableError
        return Failure(kind, name, unreached=_is_unreached(error, names))
    if any(each.partition(".")[0] in spellings.BY_TEXT for each in names):
        return _of_text(str(error))
    return None


def _of_status(status: int, retry_after: float | None = None) -> Failure | None:
    if status < 400:
        return None
    return Failure(spellings.KINDS.get(status, RefusedError), f"HTTP {status}", status, retry_after)


def _is_broken(error: BaseException, names: frozenset[str]) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return True
    return bool(names & spellings.TYPES) or (
        isinstance(error, OSError) and error.errno in spellings.ERRNOS
    )


def _is_unreached(error: BaseException, names: frozenset[str]) -> bool:
    return isinstance(error, ConnectionRefusedError | socket.gaierror) or bool(
        names & spellings.UNREACHED
    )


def _names(error: BaseException) -> frozenset[str]:
    """Return the types of an error, each with the library that defines it."""
    return frozenset(
        f"{kind.__module__.partition('.')[0].lstrip('_')}.{kind.__name__}"
        for kind in type(error).__mro__
    )


def _answer(error: BaseException) -> tuple[int | None, str | None, Any]:
    """Return status, code and headers of the server's answer, as far as the error has them."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore
        meta = response.get("ResponseMetadata", {})
        code = response.get("Error", {}).get("Code")
        status = meta.get("HTTPStatusCode")
        return status if isinstance(status, int) else None, code, meta.get("HTTPHeaders")
    # aiohttp; azure; gcsfs; requests and httpx.
    sources = [(error, name) for name in ("status", "status_code", "code")]
    sources.append((response, "status_code"))
    values = (getattr(source, name, None) for source, name in sources)
    status = next((value for value in values if isinstance(value, int) and value >= 100), None)
    headers = getattr(error, "headers", None) or getattr(response, "headers", None)
    code = getattr(error, "error_code", None)
    return status, code if isinstance(code, str) else None, headers


def _of_text(whole: str) -> Failure | None:
    text = whole.partition(spellings.DEBUG)[0]
    code = spellings.CODE_IN_TEXT.search(text)
    status = spellings.STATUS_IN_TEXT.search(text)
    number = None if status is None else int(status[1])
    if code is not None:
        return Failure(spellings.CODES[code[1]], code[1], number)
    if number is not None:
        return _of_status(number)
    if spellings.UNTRUSTED_IN_TEXT.search(whole):
        return Failure(UntrustedServerError, "certificate")
    if found := spellings.BROKEN_IN_TEXT.search(text):
        kind = TimedOutError if found[0].lower() == "timed out" else UnreachableError
        return Failure(kind, found[0], unreached=bool(spellings.UNREACHED_IN_TEXT.search(whole)))
    if found := spellings.CHANGED_IN_TEXT.search(text):
        return Failure(DataChangedError, found[0])
    if found := spellings.REFUSED_IN_TEXT.search(text):
        return Failure(RefusedError, found[1])
    return None


def _retry_after(headers: Any) -> float | None:
    """Return the seconds of a Retry-After header, which may also be a date."""
    if not isinstance(headers, Mapping):
        return None
    value = next((text for name, text in headers.items() if name.lower() == "retry-after"), None)
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
