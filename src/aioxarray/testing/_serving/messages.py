"""Requests as they arrive at the server, and its answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest

    from aioxarray.testing._log import Request

__all__ = ["Answer", "Incoming", "http_date", "parse_range", "span"]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that has arrived.

    Attributes
    ----------
    request
        The request as it is logged; rules of faults are matched against it.
    headers
        The headers, by names in lower case.
    query
        The parameters of the URL.
    is_s3
        Whether the client speaks S3's protocol, and so expects errors in XML.
    """

    request: Request
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    is_s3: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers and body of an answer."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | memoryview = b""
    # For HEAD: the length of the body that is not sent.
    length: int | None = None


@lru_cache(maxsize=256)
def http_date(seconds: int) -> str:
    """Return a time for headers; cached, because objects are read often."""
    return formatdate(seconds, usegmt=True)


def parse_range(header: str) -> ByteRequest | None:
    """Parse a Range header; None if the standard says to ignore it."""
    unit, _, spec = header.partition("=")
    first, dash, last = (part.strip() for part in spec.partition("-"))
    if unit.strip() != "bytes" or not dash or not (first + last).isdecimal():
        return None  # several ranges in one header may be ignored too
    if not first:
        return SuffixByteRequest(int(last))
    if not last:
        return OffsetByteRequest(int(first))
    if int(last) < int(first):
        return None
    return RangeByteRequest(int(first), int(last) + 1)


def span(part: ByteRequest, size: int) -> tuple[int, int] | None:
    """Return start and end of a part in an object of ``size`` bytes; None if it is empty there."""
    match part:
        case RangeByteRequest(start, end):
            start, end = start, min(end, size)
        case OffsetByteRequest(offset):
            start, end = offset, size
        case SuffixByteRequest(suffix):
            start, end = max(0, size - suffix), size
    return (start, end) if start < end else None
