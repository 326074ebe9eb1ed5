"""HDF5 and netCDF4 files as Zarr stores: the index of chunks read once, chunks as Zarr's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from zarr.abc.store import Store


def virtual_store(
    source: Any,
    *,
    group: str | None,
    drop_variables: str | Iterable[str] | None,
    storage_options: Mapping[str, Any] | None,
) -> Store:
    """Return a read-only Zarr store of the chunks in the file at ``source``.

    Reads the index of the file's chunks, blocking, with VirtualiZarr.

    Parameters
    ----------
    source
        Path or URL.
    group
        Group in the file.
    drop_variables
        Names of variables that are left out.
    storage_options
        For `obstore.store.from_url`: credentials, endpoint, ``client_options``.

    Raises
    ------
    ImportError
        If VirtualiZarr is not installed.
    TypeError
        If ``source`` is neither a path nor a URL.
    """
    try:
        from obspec_utils.registry import ObjectStoreRegistry
        from obstore.store import LocalStore, from_url
        from virtualizarr.parsers import HDFParser
    except ImportError as error:
        raise ImportError(
            "virtual=True reads HDF5 files with VirtualiZarr and obstore, which are not installed: "
            "pip install 'aioxarray[virtual]'"
        ) from error
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"virtual=True needs a path or a URL, got {type(source).__name__}")
    url = os.fspath(source)
    store: Any
    if "://" in url:
        parts = urlsplit(url)
        root = f"{parts.scheme}://{parts.netloc}"
        options: dict[str, Any] = dict(storage_options or {})
        if parts.scheme == "http":
            # obstore refuses plain HTTP unless told otherwise; the URL says it is meant.
            options["client_options"] = {"allow_http": True, **options.get("client_options", {})}
        store = from_url(root, **options)
    else:
        if not os.path.exists(url):
            raise FileNotFoundError(f"no such file: {url!r}")
        root, store = "file://", LocalStore()
        url = f"file://{os.path.abspath(os.path.expanduser(url))}"
    dropped = [drop_variables] if isinstance(drop_variables, str) else drop_variables
    parser = HDFParser(group=group, drop_variables=dropped)
    found: Store = parser(url=url, registry=ObjectStoreRegistry({root: store}))
    return found
