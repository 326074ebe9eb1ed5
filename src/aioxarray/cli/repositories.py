"""Icechunk repositories as sources: a session that reads a branch, a tag or a snapshot of one."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from aioxarray.cli.failures import InputError

# Folders of a repository, of all versions of its format.
_FOLDERS = ("manifests", "snapshots", "transactions")
# For each scheme, icechunk's function for the storage.
_STORAGES = {"s3": "s3_storage", "gs": "gcs_storage", "gcs": "gcs_storage"}
# With one of these, credentials are not looked for in the environment.
_CREDENTIALS = {
    "s3_storage": ("access_key_id", "anonymous"),
    "gcs_storage": (
        "service_account_file",
        "service_account_key",
        "application_credentials",
        "bearer_token",
        "anonymous",
    ),
}


def is_repository(location: str) -> bool:
    """Return whether ``location`` is a local folder with a repository."""
    path = location.removeprefix("file://")
    return all(os.path.isdir(os.path.join(path, each)) for each in _FOLDERS)


def opened_session(location: str, ref: str | None, options: dict[str, Any]) -> Any:
    """Return a session that reads a repository.

    Parameters
    ----------
    location
        A path, or a URL of a bucket and prefix: ``s3://``, ``gs://``.
    ref
        The name of a branch or tag, or the id of a snapshot; None for the branch "main".
    options
        Further arguments of icechunk's function for the storage.
    """
    try:
        import icechunk
    except ImportError as error:
        raise InputError("icechunk repositories need icechunk: pip install icechunk") from error
    # It warns that commits to a local folder may collide; nothing is committed here.
    icechunk.set_logs_filter("error")
    repository = icechunk.Repository.open(_storage(icechunk, location, options))
    if ref is None or ref in repository.list_branches():
        return repository.readonly_session(ref or "main")
    if ref in repository.list_tags():
        return repository.readonly_session(tag=ref)
    try:
        repository.lookup_snapshot(ref)
    except (icechunk.IcechunkError, ValueError) as error:
        names = ", ".join(sorted({*repository.list_branches(), *repository.list_tags()}))
        raise InputError(
            f"--ref: {ref!r} is no branch, tag or snapshot of the repository; there are {names}"
        ) from error
    return repository.readonly_session(snapshot_id=ref)


def _storage(icechunk: Any, location: str, options: dict[str, Any]) -> Any:
    if "://" not in location or location.startswith("file://"):
        if options:
            raise InputError("--storage-options: a repository in a local folder takes none")
        path = os.path.expanduser(location.removeprefix("file://"))
        if not os.path.isdir(path):
            # icechunk would create an empty folder.
            raise InputError(f"{path} does not exist")
        return icechunk.local_filesystem_storage(path)
    url = urlsplit(location)
    name = _STORAGES.get(url.scheme)
    if name is None:
        raise InputError(
            f"icechunk repositories are read from paths, s3:// and gs://, not {url.scheme}://"
        )
    if not any(each in options for each in _CREDENTIALS[name]):
        options = {"from_env": True, **options}
    prefix = url.path.strip("/") or None
    return getattr(icechunk, name)(bucket=url.netloc, prefix=prefix, **options)
