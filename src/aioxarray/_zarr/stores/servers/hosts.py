"""Hosts: the servers behind stores, for what is known of a server rather than of one store."""

from __future__ import annotations

import weakref
from typing import Any
from urllib.parse import urlsplit

from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, ZipStore

from aioxarray._runtime.threads.forks import after_fork
from aioxarray._zarr.stores.identity import unwrapped
from aioxarray._zarr.stores.printable import printable
from aioxarray._zarr.stores.servers.measured import Measured


class Host:
    """A server that stores may share.

    Attributes
    ----------
    name
        Scheme and address, as far as they are known: "https://example.org", "s3://bucket".
    address
        Host name and port; None if the client does not tell.
    measured
        Its latency and bandwidth.
    """

    def __init__(self, name: str, address: tuple[str, int] | None) -> None:
        self.name = name
        self.address = address
        self.measured = Measured()

    def __repr__(self) -> str:
        return f"<Host {self.name}>"


_by_name: weakref.WeakValueDictionary[str, Host] = weakref.WeakValueDictionary()
# By the id of the store: a name costs some microseconds, and each request needs the host.
_by_store: dict[int, tuple[weakref.ref[Any], Host | None]] = {}
_MOST_STORES = 1000


def host_of(store: Any) -> Host | None:
    """Return the host behind a store, filesystem or client; None for files and for memory."""
    known = _by_store.get(id(store))
    if known is not None and known[0]() is store:
        return known[1]
    host = _find(store)
    try:
        entry = weakref.ref(store), host
    except TypeError:
        # Some clients cannot be referred to weakly.
        return host
    if len(_by_store) >= _MOST_STORES:
        for number, (reference, _) in list(_by_store.items()):
            if reference() is None:
                _by_store.pop(number, None)
    _by_store[id(store)] = entry
    return host


def _find(store: Any) -> Host | None:
    innermost = unwrapped(store)
    if innermost is store and isinstance(store, LocalStore | MemoryStore | ZipStore):
        return None
    url = _endpoint(innermost)
    parts = urlsplit(printable(innermost).rpartition("::")[2])
    if url is None and parts.scheme in ("http", "https"):
        url = parts.geturl()
    # An object of an unknown type, such as icechunk's store, has no scheme either, but a server.
    is_known = innermost is store and isinstance(store, FsspecStore | ObjectStore)
    if is_known and url is None and parts.scheme in ("file", ""):
        return None
    name = (
        f"{parts.scheme}://{parts.netloc}" if parts.netloc else f"{parts.geturl()} {id(innermost)}"
    )
    host = Host(name, _address(url))
    return _by_name.setdefault(name if url is None else f"{name} {url}", host)


def _endpoint(client: Any) -> str | None:
    """Return the URL of the server of an S3 client, if it was given."""
    if isinstance(client, FsspecStore):
        client = client.fs
    elif isinstance(client, ObjectStore):
        client = client.store
    client = getattr(client, "sync_fs", client)
    url = (getattr(client, "client_kwargs", None) or {}).get("endpoint_url")
    if url is None:
        url = getattr(client, "endpoint_url", None)
    if url is None and isinstance(config := getattr(client, "config", None), dict):
        url = config.get("endpoint") or config.get("aws_endpoint")
    return url if isinstance(url, str) else None


def _address(url: str | None) -> tuple[str, int] | None:
    if url is None:
        return None
    parts = urlsplit(url)
    if not parts.hostname:
        return None
    try:
        port = parts.port
    except ValueError:
        return None
    return parts.hostname, port or (80 if parts.scheme == "http" else 443)


@after_fork
def _reset_after_fork() -> None:
    _by_store.clear()
    _by_name.clear()
