"""The ways in which clients spell failures: statuses, codes, types of exceptions, and texts.

Types are named with the library that defines them, which need not be installed.
"""

from __future__ import annotations

import errno
import re

from aioxarray.errors import (
    AccessDeniedError,
    AioxarrayError,
    DataChangedError,
    RefusedError,
    ServerUnavailableError,
    ThrottledError,
)

# 408 Request Timeout, 425 Too Early, 429 Too Many Requests, and the statuses of overloaded or
# restarting servers and proxies.
KINDS: dict[int, type[AioxarrayError]] = {
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: DataChangedError,
    408: ServerUnavailableError,
    410: DataChangedError,
    412: DataChangedError,
    416: DataChangedError,
    425: ServerUnavailableError,
    429: ThrottledError,
    500: ServerUnavailableError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerUnavailableError,
}

# Codes in the answers of S3, GCS and Azure; some come with statuses that say nothing.
CODES: dict[str, type[AioxarrayError]] = {
    **dict.fromkeys(
        (
            "BandwidthLimitExceeded",
            "EC2ThrottledException",
            "RequestLimitExceeded",
            "RequestThrottled",
            "RequestThrottledException",
            "SlowDown",
            "ThrottledException",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
            "TooManyRequestsException",
            "rateLimitExceeded",
            "userRateLimitExceeded",
        ),
        ThrottledError,
    ),
    **dict.fromkeys(
        (
            "InternalError",
            "OperationTimedOut",
            "RequestTimeout",
            "ServerBusy",
            "ServiceUnavailable",
            "backendError",
        ),
        ServerUnavailableError,
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AuthenticationFailed",
            "ExpiredToken",
            "InvalidAccessKeyId",
            "InvalidToken",
            "SignatureDoesNotMatch",
        ),
        AccessDeniedError,
    ),
    "InvalidRequest": RefusedError,
}

# Those of servers that have too many requests, or were too slow for one.
OVERLOADED = frozenset({"ServerBusy", "ServiceUnavailable"})
LATE = frozenset({"OperationTimedOut", "RequestTimeout"})

ERRNOS = frozenset(
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

ANSWERS = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError)

# Connections that could not be made, broke or timed out, and bodies that ended early.
TYPES = frozenset(
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
# Among the subtypes of those: a certificate does not become valid.
UNTRUSTED = frozenset(
    {
        "aiohttp.ClientSSLError",
        "botocore.SSLError",
        "requests.SSLError",
        "ssl.SSLCertVerificationError",
    }
)
# Types that stand for one failure.
KINDS_OF_TYPES: dict[str, type[AioxarrayError]] = {
    "aiohttp.InvalidURL": RefusedError,
    "azure.ClientAuthenticationError": AccessDeniedError,
    "botocore.NoCredentialsError": AccessDeniedError,
    "botocore.PartialCredentialsError": AccessDeniedError,
    "obstore.InvalidPathError": RefusedError,
}
STATUSES_OF_TYPES = {
    "obstore.NotFoundError": 404,
    "obstore.PermissionDeniedError": 403,
    "obstore.PreconditionError": 412,
    "obstore.UnauthenticatedError": 401,
}
# Beside the builtin class.
TIMED_OUT = frozenset(
    {
        "botocore.ConnectTimeoutError",
        "botocore.ReadTimeoutError",
        "httpcore.TimeoutException",
        "httpx.TimeoutException",
        "requests.Timeout",
        "urllib3.TimeoutError",
    }
)
# The answer was not HTTP: for example, bytes of an earlier body that was too long.
GARBLED = frozenset({"aiohttp.HttpProcessingError"})

# Rust clients, whose errors are texts, and the words for what `TYPES` lists.
BY_TEXT = frozenset({"icechunk", "obstore"})
STATUS_IN_TEXT = re.compile(r"status(?: code)?: (\d{3})\b")
CODE_IN_TEXT = re.compile(rf"\b({'|'.join(sorted(CODES))})\b")
BROKEN_IN_TEXT = re.compile(
    r"error sending request|request or response body error|error reading a body from connection"
    r"|streaming error|dispatch failure|dns error|connection (?:reset|refused|closed)|timed out",
    re.IGNORECASE,
)
# No connection was made: the server is down, or there is none of that name.
UNREACHED = frozenset(
    {
        "aiohttp.ClientConnectorError",
        "botocore.ConnectTimeoutError",
        "botocore.EndpointConnectionError",
        "httpx.ConnectError",
        "urllib3.NewConnectionError",
    }
)
UNREACHED_IN_TEXT = re.compile(
    r"dns error|connection refused|tcp connect error|ConnectError", re.IGNORECASE
)
UNTRUSTED_IN_TEXT = re.compile(r"certificate", re.IGNORECASE)
# Any other code in an answer of S3, as icechunk tells it.
REFUSED_IN_TEXT = re.compile(r"unhandled error \((\w+)\)")
CHANGED_IN_TEXT = re.compile(r"object not found|NoSuchKey|NoSuchBucket")

# In texts of obstore, this separates the message from details for its developers.
DEBUG = "\n\nDebug source:"
