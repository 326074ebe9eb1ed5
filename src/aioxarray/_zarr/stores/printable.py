"""Short names, without credentials, of stores, URLs, paths and files in messages.

Every message, note, log record and ``repr`` of this package that names a store or file uses
`printable`; text of other libraries that ends up in one goes through `without_secrets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store
from zarr.storage import (
    FsspecStore,
    LocalStore,
    MemoryStore,
    ObjectStore,
    StorePath,
    ZipStore,
)

from aioxarray._zarr.stores.identity import libraries, unwrapped

# A URL inside other text. White space, a quote or an angle bracket ends it.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://[^\s'\"<>|`]*")
# The separator in fsspec's chained URLs ("zip://a.zarr::https://host/b.zip"). A "::" elsewhere may
# be part of a query, or of an IPv6 address.
_LINK = re.compile(r"::(?=[A-Za-z][A-Za-z0-9+.\-]*://)")
# Azure's "container@account" is not secret; "user:password@host" and "token@host" are.
_CONTAINER_SCHEMES = frozenset({"abfs", "abfss", "wasb", "wasbs"})


def printable(source: Any) -> str:
    """Return a name, for messages, of something that is opened, read or written.

    Parameters
    ----------
    source
        A Zarr store or store path, a URL, a path, a file object, an fsspec mapper, an obstore store
        or an icechunk session. A wrapper has the name of the store that it wraps.

    Returns
    -------
    str
        A name that the user recognizes, without userinfo, query and fragment of URLs. An object of
        an unknown type is named by its type alone: its ``repr`` may show anything.
    """
    source = unwrapped(source)
    if isinstance(source, str):
        return without_secrets(source, whole=True)
    if isinstance(source, os.PathLike):
        return printable(os.fspath(source))
    if isinstance(source, bytes | memoryview):
        return f"{type(source).__name__} of {len(source)} bytes"
    if isinstance(source, StorePath):
        root = printable(source.store)
        return f"{root.rstrip('/')}/{source.path}" if source.path else root
    if isinstance(source, Store):
        return _of_store(source)
    name = _of_client(source)
    if name is not None:
        return name
    if hasattr(source, "read"):
        return _of_file(source)
    return type(source).__name__


def without_secrets(text: str, *, whole: bool = False) -> str:
    """Return ``text`` without userinfo, query and fragment of the URLs in it.

    With ``whole``, all of ``text`` is one path or URL, whatever characters it contains.
    """
    if not whole:
        return _URL.sub(lambda found: without_secrets(found[0], whole=True), text)
    return "::".join(map(_of_link, _LINK.split(text)))


class NamedAsWrapped:
    """Mixin that gives a store wrapper, in messages of other libraries, its store's name."""

    def __str__(self) -> str:
        return printable(self)

    def __repr__(self) -> str:
        return repr(printable(self))


class NamedPath(NamedAsWrapped, StorePath):
    """A path in a store wrapper of this package; zarr's own class would show the wrapper's type."""


def _of_link(url: str) -> str:
    """Return a URL without userinfo, query and fragment; return a path unchanged."""
    # A bare protocol may come first ("simplecache::https://…"); it is kept.
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    scheme_itself = scheme.rpartition("::")[2].lower()
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if re.search(r"^[^\[:@]*:(?!\d*$)[^@]*$", host) and "@" in path:
        # Not a port, but a password with an unescaped slash.
        host, slash, path = f"{host}/{path}".rpartition("@")[2].partition("/")
    user, at, address = host.rpartition("@")
    if at and (scheme_itself not in _CONTAINER_SCHEMES or ":" in user):
        host = address
    return f"{scheme}://{host}{slash}{path}"


def _of_store(store: Store) -> str:
    if isinstance(store, LocalStore):
        return str(store.root)
    if isinstance(store, ZipStore):
        return str(store.path)
    if isinstance(store, MemoryStore):
        return str(store)
    if isinstance(store, FsspecStore):
        return _of_filesystem(store.fs, store.path)
    if isinstance(store, ObjectStore):
        return _of_client(store.store) or type(store.store).__name__
    session = getattr(store, "session", None)
    name = None if session is None else _of_client(session)
    return type(store).__name__ if name is None else name


def _of_client(client: Any) -> str | None:
    """Return the name of an object of obstore, icechunk or fsspec; None for anything else."""
    of = libraries(client)
    if "obstore" in of:
        return _of_obstore(client)
    if "icechunk" in of:
        branch = getattr(client, "branch", None)
        return f"icechunk session on branch {branch!r}" if branch else "icechunk session"
    if isinstance(client, Mapping) and hasattr(client, "fs") and hasattr(client, "root"):
        return _of_filesystem(client.fs, client.root)
    return None


def _of_filesystem(filesystem: Any, path: str) -> str:
    """Return the URL of a path in an fsspec filesystem."""
    # Look inside async wrappers and caches, whose protocol is not part of the location.
    filesystem = getattr(filesystem, "sync_fs", filesystem)
    while _protocol(filesystem) in _CACHES:
        filesystem = filesystem.fs
    if "://" in path:
        return without_secrets(path, whole=True)
    protocol = _protocol(filesystem)
    if protocol in ("file", "local"):
        return path
    return without_secrets(f"{protocol}://{path.lstrip('/')}", whole=True)


_CACHES = frozenset({"blockcache", "filecache", "simplecache"})


def _protocol(filesystem: Any) -> str:
    protocol: Any = filesystem.protocol
    return str(protocol if isinstance(protocol, str) else protocol[0])


_OBSTORE_SCHEMES = {"S3Store": "s3", "GCSStore": "gs", "AzureStore": "az"}


def _of_obstore(client: Any) -> str:
    kind = type(client).__name__
    if kind == "HTTPStore":
        return printable(client.url)
    prefix = str(getattr(client, "prefix", None) or "").strip("/")
    if kind == "LocalStore":
        return f"/{prefix}"
    scheme = _OBSTORE_SCHEMES.get(kind)
    if scheme is None:
        return f"{kind} of obstore"
    config = client.config or {}
    bucket = next((config[key] for key in ("bucket", "container_name") if key in config), "")
    return without_secrets("/".join(filter(None, (f"{scheme}://{bucket}", prefix))), whole=True)


def _of_file(file: Any) -> str:
    name = next(
        (
            value
            for attribute in ("full_name", "path", "name")
            if isinstance(value := getattr(file, attribute, None), str)
        ),
        None,
    )
    kind = type(file).__name__
    return kind if name is None else f"{kind} of {printable(name)}"
