"""Errors of clients: whether the same request may succeed if it is made again.

Clients are optional, so their errors are recognized by attributes, by the names of their types and,
if there is no other way, by their text.
"""

from __future__ import annotations

import datetime
import email.utils
import errno
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# 408 Request Timeout, 425 Too Early, 429 Too Many Requests, and the statuses of overloaded or
# restarting servers and proxies.
_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

# Codes in the answers of S3, GCS and Azure; some come with statuses that say nothing.
_REFUSING_CODES = frozenset(
    {
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "ServerBusy",
        "ServiceUnavailable",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "TooManyRequestsException",
        "rateLimitExceeded",
        "userRateLimitExceeded",
    }
)
_LATE_CODES = frozenset({"OperationTimedOut", "RequestTimeout"})
_CODES = _REFUSING_CODES | _LATE_CODES | {"InternalError", "backendError"}

# The server has too many requests, or was too slow for one.
_REFUSALS = _REFUSING_CODES | {429, 503}
_LATE = _LATE_CODES | {408, 504}

_ERRNOS = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNREFUSED",
        "ECONNRESET",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ENETDOWN",
        "ENETRESET",
        "ENETUNREACH",
        "EPIPE",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)

# Builtin errors that a client raises on purpose: the answer was clear.
_FINAL = (
    FileExistsError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)

# Connections that could not be made, broke or timed out, and bodies that ended early.
_TYPES = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "azure.IncompleteReadError",
        "azure.ServiceRequestError",
        "azure.ServiceResponseError",
        "botocore.ConnectionError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseStreamingError",
        "fsspec.FSTimeoutError",
        "http.IncompleteRead",
        "httpcore.NetworkError",
        "httpcore.RemoteProtocolError",
        "httpcore.TimeoutException",
        "httpx.NetworkError",
        "httpx.RemoteProtocolError",
        "httpx.TimeoutException",
        "requests.ChunkedEncodingError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.ProtocolError",
        "urllib3.TimeoutError",
    }
)
# Among those: the client has stopped waiting.
_TIMEOUTS = frozenset(
    {
        "botocore.ConnectTimeoutError",
        "botocore.ReadTimeoutError",
        "fsspec.FSTimeoutError",
        "httpcore.TimeoutException",
        "httpx.TimeoutException",
        "requests.Timeout",
        "urllib3.TimeoutError",
    }
)
# Among the subtypes of those: a certificate does not become valid.
_FINAL_TYPES = frozenset(
    {"aiohttp.ClientSSLError", "aiohttp.InvalidURL", "botocore.SSLError", "requests.SSLError"}
)
# The answer was not HTTP: for example, bytes of an earlier body that was too long.
_GARBLED = frozenset({"aiohttp.HttpProcessingError"})

# Rust clients, whose errors are texts, and the words for what `_TYPES` lists.
_BY_TEXT = frozenset({"icechunk", "obstore"})
_STATUS_IN_TEXT = re.compile(r"status(?: code)?: (\d{3})\b")
_CODE_IN_TEXT = re.compile(rf"\b({'|'.join(sorted(_CODES))})\b")
_BROKEN_IN_TEXT = re.compile(
    r"error sending request|request or response body error|error reading a body from connection"
    r"|streaming error|dispatch failure|dns error|connection (?:reset|refused|closed)|timed out",
    re.IGNORECASE,
)
# No connection was made: the server is down, or there is none of that name.
_UNREACHED = frozenset(
    {
        "aiohttp.ClientConnectorError",
        "botocore.ConnectTimeoutError",
        "botocore.EndpointConnectionError",
        "httpx.ConnectError",
        "urllib3.NewConnectionError",
    }
)
_UNREACHED_IN_TEXT = re.compile(
    r"dns error|connection refused|tcp connect error|ConnectError", re.IGNORECASE
)
_LATE_IN_TEXT = re.compile(r"\btimed out\b|\bTimedOut\b")

# In texts of obstore, this separates the message from details for its developers.
_DEBUG = "\n\nDebug source:"

# A cause may be hidden below errors that translate it.
_DEEPEST = 6


class BodyTooLongError(OSError):
    """An answer has more bytes than were asked for."""


@dataclass(frozen=True)
class Transient:
    """The failure of a request that may succeed if it is made again.

    Attributes
    ----------
    cause
        A short description without a URL: "HTTP 503", "ClientPayloadError".
    retry_after
        The seconds after which the server wants to be asked again; None if it did not say.
    unreached
        Whether no connection to the server was made.
    refused
        Whether the server refused the request because it has too many.
    late
        Whether no answer came in time.
    """

    cause: str
    retry_after: float | None = None
    unreached: bool = False
    refused: bool = False
    late: bool = False

    @classmethod
    def of_answer(cls, answer: int | str, retry_after: float | None = None) -> Transient:
        """Return the failure that a status or a code in the answer stands for."""
        cause = f"HTTP {answer}" if isinstance(answer, int) else answer
        return cls(cause, retry_after, refused=answer in _REFUSALS, late=answer in _LATE)


def transient(error: BaseException) -> Transient | None:
    """Return the failure if making the request again may help; None if it cannot."""
    for each in _causes(error):
        verdict = _verdict(each)
        if verdict is not None:
            return verdict if isinstance(verdict, Transient) else None
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Iterate over an error and its causes."""
    for _ in range(_DEEPEST):
        if error is None:
            return
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


_NEVER = False


def _verdict(error: BaseException) -> Transient | bool | None:
    """Return `_NEVER` if making the request again cannot help, and None if that is unknown."""
    if isinstance(error, _FINAL):
        return _NEVER
    names = _names(error)
    if names & _FINAL_TYPES:
        return _NEVER
    if names & _GARBLED or (error.__cause__ is not None and _names(error.__cause__) & _GARBLED):
        # aiohttp gives it the status 400, though the server sent none.
        return Transient("an answer that is not HTTP")
    status, code, headers = _answer(error)
    if code in _CODES:
        return Transient.of_answer(code, _retry_after(headers))
    if status is not None:
        return Transient.of_answer(status, _retry_after(headers)) if status in _STATUSES else _NEVER
    if _is_broken(error, names):
        late = isinstance(error, TimeoutError) or bool(names & _TIMEOUTS)
        return Transient(type(error).__name__, unreached=_is_unreached(error, names), late=late)
    if any(name.partition(".")[0] in _BY_TEXT for name in names):
        return _of_text(str(error))
    return None


def _is_broken(error: BaseException, names: frozenset[str]) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror | BodyTooLongError):
        return True
    return bool(names & _TYPES) or (isinstance(error, OSError) and error.errno in _ERRNOS)


def _is_unreached(error: BaseException, names: frozenset[str]) -> bool:
    return isinstance(error, ConnectionRefusedError | socket.gaierror) or bool(names & _UNREACHED)


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


def _of_text(whole: str) -> Transient | bool | None:
    text = whole.partition(_DEBUG)[0]
    status = _STATUS_IN_TEXT.search(text)
    if status is not None:
        number = int(status[1])
        return Transient.of_answer(number) if number in _STATUSES else _NEVER
    code = _CODE_IN_TEXT.search(text)
    if code is not None:
        return Transient.of_answer(code[0])
    broken = _BROKEN_IN_TEXT.search(text)
    if broken is not None:
        unreached = bool(_UNREACHED_IN_TEXT.search(whole))
        return Transient(broken[0], unreached=unreached, late=bool(_LATE_IN_TEXT.search(whole)))
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
