"""S3's protocol, path-style: listings, bulk deletes, copies, multipart uploads, errors in XML.

A bucket is the first part of a key. Objects are read and written as over plain HTTP; see `Site`.
Signatures are not checked.
"""

from __future__ import annotations

import base64
import itertools
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from aioxarray.testing._serving.messages import Answer, Incoming

if TYPE_CHECKING:
    from aioxarray.testing._serving.objects import Objects

__all__ = ["LIST", "Uploads", "error", "is_listing", "listed_key", "speaks_s3", "unchunked"]

# The method of a listing in the log and in rules of faults: S3 has no verb for it.
LIST = "LIST"

_NAMESPACE = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
_XML = {"Content-Type": "application/xml"}
# The most that a page of a listing may have.
_PAGE = 1000

_CODES = {
    400: "InvalidRequest",
    401: "AccessDenied",
    403: "AccessDenied",
    404: "NoSuchKey",
    405: "MethodNotAllowed",
    408: "RequestTimeout",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    416: "InvalidRange",
    429: "TooManyRequests",
    500: "InternalError",
    501: "NotImplemented",
    502: "InternalError",
    503: "SlowDown",
    504: "InternalError",
}


def speaks_s3(headers: Mapping[str, str], query: Mapping[str, str]) -> bool:
    """Return whether a request is one of S3's protocol: it is signed, or a listing."""
    return (
        headers.get("authorization", "").startswith("AWS")
        or "x-amz-content-sha256" in headers
        or "list-type" in query
    )


def is_listing(method: str, path: str, query: Mapping[str, str]) -> bool:
    """Return whether a request in S3's protocol lists a bucket."""
    return method == "GET" and "/" not in path.rstrip("/") and "location" not in query


def listed_key(path: str, query: Mapping[str, str]) -> str:
    """Return the key of a listing: the bucket and the prefix."""
    return f"{path.rstrip('/')}/{query.get('prefix', '')}"


def unchunked(body: bytes) -> bytes:
    """Decode a body in the encoding "aws-chunked", which may have checksums after the data."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.index(b"\r\n", at)
        length = int(body[at:end].partition(b";")[0], 16)
        if length == 0:
            return b"".join(parts)
        parts.append(body[end + 2 : end + 2 + length])
        at = end + 2 + length + 2


def error(status: HTTPStatus, key: str, code: str | None = None) -> Answer:
    """Return the answer for an error, with S3's own code."""
    code = code or _CODES.get(status, status.phrase.replace(" ", ""))
    return _xml(
        status,
        f"<Error><Code>{escape(code)}</Code><Message>{escape(status.phrase)}</Message>"
        f"<Key>{escape(key)}</Key><RequestId>0</RequestId><HostId>0</HostId></Error>",
    )


def _xml(status: HTTPStatus, document: str) -> Answer:
    return Answer(status, _XML, f'<?xml version="1.0" encoding="UTF-8"?>\n{document}'.encode())


class Uploads:
    """Operations of S3 that HTTP does not have, with the multipart uploads that are going on."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._parts: dict[str, dict[int, bytes]] = {}
        self._ids = itertools.count(1)

    def answer(self, incoming: Incoming) -> Answer | None:
        """Return the answer; None for what is the same in HTTP."""
        method, key, query = incoming.request.method, incoming.request.key, incoming.query
        match method:
            case "LIST":
                return self._list(key, query)
            case "GET" if "location" in query:
                return _xml(HTTPStatus.OK, f"<LocationConstraint {_NAMESPACE}/>")
            case "PUT" | "HEAD" if "/" not in key.rstrip("/"):
                return Answer(HTTPStatus.OK)  # every bucket exists
            case "PUT" if "x-amz-copy-source" in incoming.headers:
                return self._copy(key, incoming.headers["x-amz-copy-source"])
            case "POST" if "delete" in query:
                return self._delete(key.rstrip("/"), incoming.body)
            case "POST" if "uploads" in query:
                upload = str(next(self._ids))
                self._parts[upload] = {}
                return _xml(
                    HTTPStatus.OK,
                    f"<InitiateMultipartUploadResult {_NAMESPACE}>{_names(key)}"
                    f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>",
                )
            case "PUT" | "POST" | "DELETE" if "uploadId" in query:
                return self._upload(incoming)
            case "DELETE":
                # Deleting what is not there is no error.
                self._objects.pop(key, None)
                return Answer(HTTPStatus.NO_CONTENT)
        return None

    def _upload(self, incoming: Incoming) -> Answer:
        key, query = incoming.request.key, incoming.query
        parts = self._parts.get(query["uploadId"])
        if parts is None:
            return error(HTTPStatus.NOT_FOUND, key, "NoSuchUpload")
        if incoming.request.method == "PUT":
            number = int(query["partNumber"])
            parts[number] = incoming.body
            return Answer(HTTPStatus.OK, {"ETag": f'"{query["uploadId"]}-{number}"'})
        if incoming.request.method == "POST":
            self._objects[key] = b"".join(parts[number] for number in sorted(parts))
        del self._parts[query["uploadId"]]
        if incoming.request.method == "DELETE":
            return Answer(HTTPStatus.NO_CONTENT)
        found = self._objects.find(key)
        etag = "" if found is None else escape(found.etag)
        return _xml(
            HTTPStatus.OK,
            f"<CompleteMultipartUploadResult {_NAMESPACE}>{_names(key)}<ETag>{etag}</ETag>"
            "</CompleteMultipartUploadResult>",
        )

    def _copy(self, key: str, source: str) -> Answer:
        name = unquote(source.partition("?")[0]).removeprefix("/")
        if name not in self._objects:
            return error(HTTPStatus.NOT_FOUND, name)
        self._objects[key] = self._objects[name]
        found = self._objects.find(key)
        etag, modified = ("", 0) if found is None else (escape(found.etag), found.modified)
        return _xml(
            HTTPStatus.OK,
            f"<CopyObjectResult {_NAMESPACE}><ETag>{etag}</ETag>"
            f"<LastModified>{_time(modified)}</LastModified></CopyObjectResult>",
        )

    def _delete(self, bucket: str, body: bytes) -> Answer:
        deleted = []
        for each in ElementTree.fromstring(body).iterfind("{*}Object/{*}Key"):
            key = each.text or ""
            self._objects.pop(f"{bucket}/{key}", None)
            deleted.append(f"<Deleted><Key>{escape(key)}</Key></Deleted>")
        document = f"<DeleteResult {_NAMESPACE}>{''.join(deleted)}</DeleteResult>"
        return _xml(HTTPStatus.OK, document)

    def _list(self, key: str, query: Mapping[str, str]) -> Answer:
        bucket, _, prefix = key.partition("/")
        after = query.get("start-after", "")
        if "continuation-token" in query:
            after = base64.urlsafe_b64decode(query["continuation-token"]).decode()
        most = min(_PAGE, int(query.get("max-keys", _PAGE)))
        delimiter = query.get("delimiter", "")
        names = (name for name in self._grouped(bucket, prefix, delimiter) if name > after)
        page = list(itertools.islice(names, most + 1))
        is_truncated = len(page) > most
        del page[most:]

        def text(name: str) -> str:
            return quote(name) if query.get("encoding-type") == "url" else escape(name)

        entries = []
        for name in page:
            if delimiter and name.endswith(delimiter):
                entries.append(f"<CommonPrefixes><Prefix>{text(name)}</Prefix></CommonPrefixes>")
            elif (found := self._objects.find(f"{bucket}/{name}")) is not None:
                modified = _time(found.modified)
                entries.append(
                    f"<Contents><Key>{text(name)}</Key><LastModified>{modified}</LastModified>"
                    f"<ETag>{escape(found.etag)}</ETag><Size>{found.size}</Size>"
                    "<StorageClass>STANDARD</StorageClass></Contents>"
                )
        if is_truncated:
            token = base64.urlsafe_b64encode(page[-1].encode()).decode()
            entries.append(f"<NextContinuationToken>{token}</NextContinuationToken>")
        return _xml(
            HTTPStatus.OK,
            f"<ListBucketResult {_NAMESPACE}><Name>{escape(bucket)}</Name>"
            f"<Prefix>{text(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount>"
            f"<MaxKeys>{most}</MaxKeys><IsTruncated>{str(is_truncated).lower()}</IsTruncated>"
            f"{'<EncodingType>url</EncodingType>' * (query.get('encoding-type') == 'url')}"
            f"{''.join(entries)}</ListBucketResult>",
        )

    def _grouped(self, bucket: str, prefix: str, delimiter: str) -> Iterator[str]:
        """Iterate, sorted, over keys in a bucket and what is common up to the delimiter."""
        last = None
        for key in self._objects.below(f"{bucket}/{prefix}"):
            name = key[len(bucket) + 1 :]
            if delimiter:
                head, found, _ = name[len(prefix) :].partition(delimiter)
                name = prefix + head + found
            if name != last:
                yield name
            last = name


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


def _names(key: str) -> str:
    bucket, _, name = key.partition("/")
    return f"<Bucket>{escape(bucket)}</Bucket><Key>{escape(name)}</Key>"
