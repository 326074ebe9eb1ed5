"""Opening Zarr stores for xarray, with all metadata fetched before xarray's code needs it."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zarr
from zarr.abc.store import Store
from zarr.storage import ObjectStore, StorePath

from aioxarray._zarr.compat import make_store_path
from aioxarray._zarr.metadata.filtering import GroupFilter
from aioxarray._zarr.metadata.hierarchy import ROOT_KEYS, join, parse
from aioxarray._zarr.metadata.prefetch import fetch, prefetch
from aioxarray._zarr.metadata.prefetched import PrefetchedStore
from aioxarray._zarr.metadata.validity import problems
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.calls import current_concurrency
from aioxarray._zarr.stores.fork import usable_after_fork
from aioxarray._zarr.stores.identity import libraries
from aioxarray._zarr.stores.limited import ForeignStore, Places
from aioxarray._zarr.stores.printable import NamedPath, printable, without_secrets
from aioxarray._zarr.stores.request import DOCUMENTS
from aioxarray._zarr.stores.retries.attempts import BOTO_ONCE, attempt_once
from aioxarray._zarr.stores.servers.pacing import request_share
from aioxarray.errors import SilentServerError, UnreachableError

if TYPE_CHECKING:
    from aioxarray._zarr.metadata.hierarchy import Hierarchy
    from aioxarray._zarr.metadata.prefetched import Answers

_logger = logging.getLogger("aioxarray")

# How many invalid documents an error names.
_NOTES = 5
# The documents of which every Zarr group or array that can be opened has one.
_ROOT = tuple(name for name in ROOT_KEYS if name != ".zattrs")


@dataclass(frozen=True)
class Opened:
    """A store, and a wrapper around it that has the documents needed to open it.

    Attributes
    ----------
    store
        The store itself.
    stand_in
        The wrapper, which xarray's own code opens instead.
    consolidated
        The argument ``consolidated`` for that code.
    answers
        The documents and listings that were fetched.
    hierarchy
        The group that is opened, if all its metadata are known: zarr then need not parse the
        documents again each time that xarray's code accesses the group.
    """

    store: Store
    stand_in: StorePath
    consolidated: bool | None
    answers: Answers
    hierarchy: Hierarchy | None = None

    @contextlib.contextmanager
    def error_notes(self) -> Iterator[None]:
        """Add notes to an error of the body, one for each invalid metadata document."""
        try:
            yield
        except Exception as error:
            documents = {
                key: None if value is None else value.to_bytes()
                for key, value in self.answers.values.items()
                if key.rpartition("/")[2] in DOCUMENTS
            }
            for problem in itertools.islice(problems(documents), _NOTES):
                error.add_note(problem)
            raise


@contextmanager
def places() -> Iterator[Places]:
    """Open a share of the requests in flight for an open."""
    with request_share(grants.requests, current_concurrency()) as share:
        given = Places(share)
        try:
            yield given
        finally:
            given.requests = None


async def open_store(
    source: Any,
    *,
    group: str | None,
    mode: Any,
    consolidated: bool | None,
    zarr_format: int | None,
    storage_options: dict[str, Any] | None,
    deep: bool,
    times: bool,
    indexes: bool,
    drop: Iterable[str],
    groups: str | None,
    places: Places,
) -> Opened:
    """Make a store from ``source`` and fetch what opening ``group`` needs; on the I/O loop.

    ``groups`` is the pattern of a `GroupFilter` below ``group``; None for all groups.

    All requests, including those of xarray's own code, take ``places`` until these are closed. If
    ``source`` is not a store or does not exist, zarr's error is raised.
    """
    given = _as_store(source, read_only=mode == "r")
    root = await store_path(given, mode=mode, storage_options=storage_options)
    store = usable_after_fork(root.store)
    if not store.supports_consolidated_metadata:
        consolidated = False
    path = f"{root.path}/{(group or '').strip('/')}".strip("/")
    limited = ForeignStore(store, places)
    answers = await prefetch(
        limited,
        root.path,
        path,
        consolidated=consolidated,
        zarr_format=zarr_format,
        deep=deep,
        times=times,
        indexes=indexes,
        drop=drop,
        groups=None if groups is None else GroupFilter(groups, path),
    )
    # xarray closes a store with the dataset unless the store is the caller's own.
    closes = store is not source and given is source
    stand_in = NamedPath(PrefetchedStore(limited, answers, closes=closes), root.path)
    hierarchy = answers.hierarchy
    if hierarchy is not None and not hierarchy.consolidated and consolidated is not False:
        # xarray's own code has to warn that there are no consolidated metadata.
        hierarchy = None
    return Opened(store, stand_in, consolidated, answers, hierarchy)


async def store_path(
    source: Any, *, mode: Any, storage_options: dict[str, Any] | None
) -> StorePath:
    """Return the store path for ``source``; with mode "r" it is read-only.

    Besides what zarr accepts, ``source`` may be an obstore store, an icechunk session, or a URL for
    which fsspec lacks a package and obstore does not.
    """
    source = _as_store(source, read_only=mode == "r")
    once = _s3fs_options(source, storage_options)
    try:
        root = await make_store_path(source, mode=mode, storage_options=once or storage_options)
        if once is not None:
            attempt_once(root.store)
        return root
    except ImportError:
        # fsspec, which zarr uses for URLs, lacks the package for this scheme.
        by_obstore = _obstore(source, storage_options, read_only=mode == "r")
        if by_obstore is None:
            raise
        return StorePath(by_obstore)


def is_store(source: Any) -> bool:
    """Return whether ``source`` is an object that can only be read as Zarr."""
    if isinstance(source, Store | StorePath | MutableMapping):
        return True
    of = libraries(source)
    return "obstore" in of or ("icechunk" in of and hasattr(source, "store"))


async def holds_zarr(
    source: Any, *, group: str | None, storage_options: dict[str, Any] | None
) -> bool:
    """Return whether ``source`` has Zarr metadata, with a few concurrent requests; on the I/O loop.

    It makes three requests, or six with a ``group``. Returns False if one of them fails, too,
    unless that is because the server cannot be reached.
    """
    try:
        root = await store_path(source, mode="r", storage_options=storage_options)
        try:
            paths = {root.path, f"{root.path}/{(group or '').strip('/')}".strip("/")}
            with places() as given:
                store = ForeignStore(usable_after_fork(root.store), given)
                found = await fetch(store, (join(path, name) for path in paths for name in _ROOT))
        finally:
            root.store.close()
    except Exception as error:
        _logger.debug(
            "asking %s for Zarr's metadata failed: %s: %s",
            printable(source),
            type(error).__name__,
            without_secrets(str(error)),
        )
        if isinstance(error, SilentServerError | UnreachableError):
            raise
        # Opening the source by other means raises the error again.
        return False
    # A server may answer with a page saying that the object does not exist.
    return any(value is not None and parse(value.to_bytes()) for value in found.values())


def _as_store(source: Any, *, read_only: bool) -> Any:
    """Return a Zarr store for an obstore store or an icechunk session, which zarr does not accept.

    Anything else is returned unchanged.
    """
    of = libraries(source)
    if "obstore" in of:
        return ObjectStore(source, read_only=read_only)
    if "icechunk" in of and not isinstance(source, Store) and hasattr(source, "store"):
        return source.store
    return source


# The schemes of URLs for which obstore has a store.
OBSTORE_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "http", "https")


def _obstore(url: Any, storage_options: dict[str, Any] | None, *, read_only: bool) -> Store | None:
    """Return an obstore-based store for ``url``; None if obstore is missing or does not support it.

    None with ``storage_options``, too, which are for fsspec; obstore is configured by environment.
    """
    scheme = url.partition("://")[0] if isinstance(url, str) else ""
    if storage_options or scheme not in OBSTORE_SCHEMES:
        return None
    try:
        from obstore.store import from_url
    except ImportError:
        return None
    allowed: dict[str, Any] = {"client_options": {"allow_http": True}} if scheme == "http" else {}
    # Requests are retried by this package.
    once: dict[str, Any] = {"retry_config": {"max_retries": 0}}
    return ObjectStore(from_url(url, **allowed, **once), read_only=read_only)


def _s3fs_options(url: Any, storage_options: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return options with which s3fs makes a filesystem without retries for ``url``.

    None if it is another client's URL, or if the caller has set retries. Since fsspec keeps
    filesystems by their options, it is none that the caller uses otherwise.
    """
    given = dict(storage_options or {})
    config = given.get("config_kwargs") or {}
    if not isinstance(url, str) or url.partition("://")[0] not in ("s3", "s3a"):
        return None
    return None if "retries" in config else {**given, "config_kwargs": {**config, **BOTO_ONCE}}


def replace_store(node: zarr.Array[Any] | zarr.Group, store: Store) -> None:
    """Make an array or group that was opened through a stand-in use ``store`` itself.

    The documents in the stand-in were for opening; they would go stale.
    """
    # Private, as in `aioxarray._zarr.chunks.arrays`: a node cannot be given another store.
    inner: Any = node._async_array if isinstance(node, zarr.Array) else node._async_group
    object.__setattr__(inner, "store_path", StorePath(store, inner.store_path.path))
