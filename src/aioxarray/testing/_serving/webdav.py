"""WebDAV listings (RFC 4918), as obstore's ``HTTPStore`` requests them from a server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.sax.saxutils import escape

from aioxarray.testing._serving.messages import http_date

if TYPE_CHECKING:
    from aioxarray.testing._serving.objects import Objects

__all__ = ["multistatus"]

_RESPONSE = (
    "<D:response><D:href>/{href}</D:href><D:propstat><D:prop>{properties}</D:prop>"
    "<D:status>HTTP/1.1 200 OK</D:status></D:propstat></D:response>"
)
_DIRECTORY = (
    f"<D:resourcetype><D:collection/></D:resourcetype>"
    # Clients require a time; directories have none.
    f"<D:getlastmodified>{http_date(0)}</D:getlastmodified>"
)
_OBJECT = (
    "<D:resourcetype/><D:getcontentlength>{size}</D:getcontentlength><D:getetag>{etag}</D:getetag>"
    "<D:getlastmodified>{modified}</D:getlastmodified>"
)


def multistatus(objects: Objects, key: str, deep: bool) -> bytes | None:
    """List ``key`` and its children or, if ``deep``, all descendants; None if it is absent."""
    path = key.strip("/")
    prefix = f"{path}/" if path else ""
    if objects.find(path) is not None:
        keys = iter([path])
    elif path and not objects.children(prefix):
        return None
    else:
        keys = _below(objects, prefix, deep)
    listed = "".join(_response(objects, each) for each in keys)
    document = f'<?xml version="1.0"?><D:multistatus xmlns:D="DAV:">{listed}</D:multistatus>'
    return document.encode()


def _below(objects: Objects, prefix: str, deep: bool) -> Iterator[str]:
    yield prefix
    for name in objects.children(prefix):
        if deep and name.endswith("/"):
            yield from _below(objects, prefix + name, deep)
        else:
            yield prefix + name


def _response(objects: Objects, key: str) -> str:
    found = objects.find(key) if key and not key.endswith("/") else None
    if found is None:
        properties = _DIRECTORY
    else:
        properties = _OBJECT.format(
            size=found.size, etag=escape(found.etag), modified=http_date(found.modified)
        )
    return _RESPONSE.format(href=quote(key), properties=properties)
