"""No credential is shown by what aioxarray adds: names, notes, messages, warnings, logs."""

from __future__ import annotations

import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import icechunk
import obstore.store
import pytest
from obspec_utils.registry import ObjectStoreRegistry
from zarr.storage import (
    FsspecStore,
    LocalStore,
    LoggingStore,
    ObjectStore,
    StorePath,
    WrapperStore,
    ZipStore,
)

import aioxarray
from aioxarray._runtime.budget import Budget
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.metadata.prefetched import Answers, PrefetchedStore
from aioxarray._zarr.metadata.write_behind import Changes, WriteBehindStore
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.printable import NamedPath, printable, without_secrets
from aioxarray.cli import main
from aioxarray.config import config
from aioxarray.errors import AioxarrayError
from aioxarray.testing import ObjectServer
from tests import samples
from tests.concurrency.clients import icechunk_storage
from tests.opening.helpers import Way, every_way
from tests.samples import contents, stored

SECRET = "hunter2"
SIGNED = f"https://user:{SECRET}@host/a.zarr?sig={SECRET}#{SECRET}"
PUBLIC = "https://host/a.zarr"


def signed_mapper() -> Any:
    return fsspec.get_mapper(f"http://user:{SECRET}@host/a.zarr")


def signed_s3() -> Any:
    return obstore.store.S3Store(
        "bucket",
        prefix="a/b.zarr",
        region="us-east-1",
        endpoint=f"https://user:{SECRET}@host",
        access_key_id=SECRET,
        secret_access_key=SECRET,
    )


def signed_azure() -> Any:
    return obstore.store.AzureStore("box", account_name="me", sas_key=f"sig={SECRET}")


def signed_http() -> ObjectStore[Any]:
    return ObjectStore(obstore.store.HTTPStore.from_url(SIGNED))


def manifest_store() -> Any:
    from virtualizarr.manifests import ManifestGroup, ManifestStore

    registry = ObjectStoreRegistry({"https://host": obstore.store.HTTPStore.from_url(SIGNED)})
    return ManifestStore(ManifestGroup(), registry=registry)


def session() -> Any:
    repository = icechunk.Repository.create(icechunk.in_memory_storage())
    return repository.writable_session("main")


def open_file() -> Any:
    return fsspec.open(SIGNED).fs.open(SIGNED, size=9)


class Odd:
    """An object of an unknown type, whose ``repr`` shows all its attributes."""

    def __repr__(self) -> str:
        return SECRET


# What may be given or stand in a message, and its name.
NAMES: dict[str, tuple[Callable[[], Any], str]] = {
    "URL": (lambda: SIGNED, PUBLIC),
    "URL with a port": (lambda: f"https://{SECRET}@host:80/a?{SECRET}", "https://host:80/a"),
    "password with @": (lambda: f"https://me:a@{SECRET}@host/a", "https://host/a"),
    "password with slash": (lambda: f"s3://key:a/{SECRET}@bucket/a", "s3://bucket/a"),
    "IPv6": (lambda: f"http://me:{SECRET}@[::1]:80/a?{SECRET}::{SECRET}", "http://[::1]:80/a"),
    "chained URL": (lambda: f"simplecache::{SIGNED}", f"simplecache::{PUBLIC}"),
    "URL of an archive": (lambda: f"zip://a::{SIGNED}", f"zip://a::{PUBLIC}"),
    "@ in a path": (lambda: "https://host/@v1/a", "https://host/@v1/a"),
    "container": (lambda: "abfs://box@me.net/a", "abfs://box@me.net/a"),
    "key of a container": (lambda: f"abfs://me:{SECRET}@host/a", "abfs://host/a"),
    "S3": (lambda: "s3://bucket/a.zarr", "s3://bucket/a.zarr"),
    "path": (lambda: "/data/what?/p@th#1", "/data/what?/p@th#1"),
    "path object": (lambda: Path("/data/a.zarr"), "/data/a.zarr"),
    "references": (lambda: "reference::refs.json", "reference::refs.json"),
    "bytes": (lambda: SECRET.encode(), "bytes of 7 bytes"),
    "local store": (lambda: LocalStore("/data/a"), "/data/a"),
    "zip store": (lambda: ZipStore("/data/a.zip"), "/data/a.zip"),
    "HTTP of fsspec": (
        lambda: FsspecStore.from_url(f"http://me:{SECRET}@host/a?{SECRET}"),
        "http://host/a",
    ),
    "S3 of fsspec": (
        lambda: FsspecStore.from_url(
            "s3://bucket/a", storage_options={"key": SECRET, "secret": SECRET}
        ),
        "s3://bucket/a",
    ),
    "memory of fsspec": (lambda: FsspecStore.from_url("memory://box/a"), "memory://box/a"),
    "file of fsspec": (lambda: FsspecStore.from_url("file:///data/a"), "/data/a"),
    "cache of fsspec": (lambda: FsspecStore.from_url("simplecache::memory://a"), "memory://a"),
    "mapper": (signed_mapper, "http://host/a.zarr"),
    "HTTP of obstore": (signed_http, PUBLIC),
    "S3 of obstore": (lambda: ObjectStore(signed_s3()), "s3://bucket/a/b.zarr"),
    "client of obstore": (signed_s3, "s3://bucket/a/b.zarr"),
    "Azure of obstore": (signed_azure, "az://box"),
    "memory of obstore": (lambda: obstore.store.MemoryStore(), "MemoryStore of obstore"),
    "files of obstore": (lambda: obstore.store.LocalStore("/tmp"), "/tmp"),
    "session": (session, "icechunk session on branch 'main'"),
    "store of icechunk": (lambda: session().store, "icechunk session on branch 'main'"),
    "virtual store": (manifest_store, "ManifestStore"),
    "place in a store": (lambda: StorePath(signed_http(), "b/c"), f"{PUBLIC}/b/c"),
    "logging store": (lambda: LoggingStore(signed_http()), PUBLIC),
    "wrapped twice": (lambda: WrapperStore(WrapperStore(signed_http())), PUBLIC),
    "file": (open_file, f"HTTPFile of {PUBLIC}"),
    "file in memory": (lambda: io.BytesIO(SECRET.encode()), "BytesIO"),
    "dict": (lambda: {SECRET: SECRET}, "dict"),
    "anything": (Odd, "Odd"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", NAMES)
def test_names(kind: str) -> None:
    make, name = NAMES[kind]
    assert printable(make()) == name


def test_text_of_others() -> None:
    text = f"cannot reach '{SIGNED}' (after {SIGNED} 3 times)"
    assert without_secrets(text) == f"cannot reach '{PUBLIC}' (after {PUBLIC} 3 times)"


@pytest.mark.parametrize("wrap", ["limited", "prefetched", "write behind"])
def test_our_wrappers_have_the_name_of_what_they_wrap(wrap: str) -> None:
    store = signed_http()
    with Budget("requests").share(1) as share:
        wrapper: Any = {
            "limited": LimitedStore(store, share),
            "prefetched": PrefetchedStore(store, Answers(), closes=False),
            "write behind": WriteBehindStore(store, Answers(), Changes()),
        }[wrap]
        assert str(wrapper) == str(NamedPath(wrapper)) == PUBLIC
        assert repr(wrapper) == repr(NamedPath(wrapper)) == repr(PUBLIC)
        assert str(NamedPath(wrapper) / "a") == f"{PUBLIC}/a"


# --- what a user sees ----------------------------------------------------------------------------


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in contents(stored(samples.numbers())).items():
            server.put(f"a.zarr/{key}", value)
        yield server


def with_password(server: ObjectServer) -> str:
    return server.url.replace("http://", f"http://user:{SECRET}@")


def by_fsspec(url: str) -> Any:
    return url


def by_obstore(url: str) -> Any:
    return obstore.store.HTTPStore.from_url(url, client_options={"allow_http": True})


clients = pytest.mark.parametrize("client", [by_fsspec, by_obstore])


def shown(error: BaseException) -> str:
    """Return what this package adds to an error: notes, and its own lines of the traceback."""
    lines = traceback.format_exception(error)
    ours = [line for line in lines if "/aioxarray/" in line]
    return "\n".join([*getattr(error, "__notes__", []), *ours])


@every_way
@clients
def test_a_failed_open(client: Callable[[str], Any], way: Way, server: ObjectServer) -> None:
    options = {"consolidated": False}
    with pytest.raises(FileNotFoundError) as caught:
        way("open_dataset", client(f"{with_password(server)}/none.zarr"), **options)
    assert SECRET not in shown(caught.value)
    # zarr says what it was given, which is a wrapper of ours.
    assert SECRET not in str(caught.value)
    assert f"{server.url}/none.zarr" in str(caught.value)
    assert f"{server.url}/none.zarr" in shown(caught.value)


@clients
def test_a_failed_load(client: Callable[[str], Any], server: ObjectServer) -> None:
    source = client(f"{with_password(server)}/a.zarr")
    lazy = aioxarray.open_dataset(source, engine="zarr", consolidated=True)
    assert SECRET not in repr(lazy)
    assert SECRET not in repr(lazy["cube"].variable._data)
    with pytest.raises(TimeoutError) as timed_out:
        aioxarray.load(lazy, timeout=0)
    assert SECRET not in str(timed_out.value)
    assert SECRET not in shown(timed_out.value)
    for key in list(server.data):
        if "/c/" in key:
            server.put(key, b"damaged")
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the codec's choice
        aioxarray.load(lazy)
    assert f" of '{server.url}/a.zarr'" in shown(caught.value)
    assert SECRET not in shown(caught.value)


@clients
def test_a_failed_save(client: Callable[[str], Any], server: ObjectServer) -> None:
    source = client(f"{with_password(server)}/a.zarr")
    with pytest.raises(FileExistsError) as caught:
        aioxarray.to_zarr(samples.numbers(), source, mode="w-")
    assert f"while saving to '{server.url}/a.zarr'" in shown(caught.value)
    assert SECRET not in shown(caught.value)


def test_many_files_of_which_one_fails(server: ObjectServer) -> None:
    url = f"{with_password(server)}/none.zarr"
    with pytest.raises(FileNotFoundError) as caught:
        aioxarray.open_mfdataset([url], engine="zarr")
    assert SECRET not in shown(caught.value)
    with warnings.catch_warnings(record=True) as caught_warnings:
        warnings.simplefilter("always")
        aioxarray.open_mfdataset([url], engine="zarr", errors="warn", combine="nested")
    told = [str(each.message) for each in caught_warnings if "Ignoring" in str(each.message)]
    assert told
    assert not any(SECRET in each for each in told)


@every_way
def test_logs(way: Way, server: ObjectServer, caplog: pytest.LogCaptureFixture) -> None:
    url = f"{with_password(server)}/a"
    server.close()
    with caplog.at_level(logging.DEBUG, "aioxarray"):
        with pytest.raises(OSError):  # noqa: PT011
            way("open_dataset", url)
    records = [each for each in caplog.records if each.name == "aioxarray"]
    assert records
    assert not any(SECRET in each.getMessage() for each in records)


def test_the_demo(server: ObjectServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", f"{with_password(server)}/none.zarr?sig={SECRET}"]) == 1
    output, errors = capsys.readouterr()
    assert "cannot open" in errors
    assert SECRET not in output + errors


@every_way
def test_a_url_that_cannot_be_guessed(way: Way) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is a library's choice
        way("open_dataset", f"nowhere://user:{SECRET}@host/a?{SECRET}")
    assert "while opening 'nowhere://host/a'" in shown(caught.value)
    assert SECRET not in shown(caught.value)


# --- errors of requests, of every client ---------------------------------------------------------


def fsspec_http(server: ObjectServer) -> Any:
    url = f"{with_password(server)}/bucket/data"
    return FsspecStore.from_url(url, storage_options={"skip_instance_cache": True})


def s3fs(server: ObjectServer) -> Any:
    options = {
        "key": SECRET,
        "secret": SECRET,
        "token": SECRET,
        "client_kwargs": {"endpoint_url": server.url},
        "config_kwargs": {"retries": {"max_attempts": 0}},
        "skip_instance_cache": True,
    }
    return FsspecStore.from_url("s3://bucket/data", storage_options=options)


def obstore_http(server: ObjectServer) -> Any:
    url = f"{with_password(server)}/bucket/data"
    options: Any = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    return ObjectStore(obstore.store.HTTPStore.from_url(url, **options))


def obstore_s3(server: ObjectServer) -> Any:
    options: Any = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    return ObjectStore(
        obstore.store.S3Store(
            "bucket",
            prefix="data",
            endpoint=with_password(server),
            access_key_id=SECRET,
            secret_access_key=SECRET,
            session_token=SECRET,
            region="us-east-1",
            **options,
        )
    )


def of_icechunk(server: ObjectServer) -> Any:
    storage = icechunk_storage(
        server.url, access_key_id=SECRET, secret_access_key=SECRET, session_token=SECRET
    )
    once = icechunk.StorageSettings(retries=icechunk.StorageRetriesSettings(max_tries=1))
    config = icechunk.RepositoryConfig(storage=once)
    return icechunk.Repository.open(storage, config).writable_session("main").store


FIVE = [fsspec_http, s3fs, obstore_http, obstore_s3, of_icechunk]
SLOW = (of_icechunk, 500)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the objects of a bucket with data: as Zarr, and in a repository of icechunk."""
    root = tmp_path_factory.mktemp("repo")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(root)))
    session = repository.writable_session("main")
    samples.numbers().to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("data")
    files: list[Path] = [each for each in root.rglob("*") if each.is_file()]
    found = {f"bucket/repo/{each.relative_to(root)}": each.read_bytes() for each in files}
    for key, value in contents(stored(samples.numbers())).items():
        found[f"bucket/data/{key}"] = value
    return found


@pytest.fixture
def bucket(objects: dict[str, bytes]) -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in objects.items():
            server.put(key, value)
        yield server


@contextmanager
def closing(store: Any) -> Iterator[None]:
    """Close the session of aiohttp at the end, which fsspec leaves to the garbage collector."""

    async def close() -> None:
        filesystem = getattr(store, "fs", None)
        if (s3 := getattr(filesystem, "_s3creator", None)) is not None:
            await s3.__aexit__(None, None, None)
        elif (session := getattr(filesystem, "_session", None)) is not None:
            await session.close()

    try:
        yield
    finally:
        run_blocking(close)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store with consolidated:RuntimeWarning")
@pytest.mark.matrix(together=2)
@pytest.mark.parametrize("verb", ["open", "load", "save"])
@pytest.mark.parametrize(
    ("client", "fault"),
    # At other statuses, icechunk itself tries again for half a minute.
    [(client, fault) for client in FIVE for fault in (403, 500) if (client, fault) != SLOW],
)
def test_a_failed_request(
    client: Callable[[ObjectServer], Any], verb: str, fault: Any, bucket: ObjectServer
) -> None:
    store = client(bucket)
    if verb == "open":
        bucket.fail("*/manifests/*" if client is of_icechunk else "*", fault)

    def call() -> None:
        if verb == "save":
            bucket.fail("*", fault, method="PUT")
            aioxarray.to_zarr(samples.numbers(), store, group="new", consolidated=False)
        lazy = aioxarray.open_zarr(store)
        bucket.fail("*", fault)
        aioxarray.load(lazy)

    with (
        closing(store),
        config.set({"retry.attempts": 1}),
        pytest.raises(AioxarrayError) as caught,
    ):
        call()
    for text in (str(caught.value), repr(caught.value), shown(caught.value)):
        assert SECRET not in text
    assert SECRET not in repr(caught.value.args)
