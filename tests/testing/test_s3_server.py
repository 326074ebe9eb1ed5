"""The object server speaks S3's protocol: real clients list, write, delete and fail as with S3."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xarray as xr

import aioxarray
from aioxarray.testing import ObjectServer
from tests.concurrency import clients
from tests.samples import numbers

SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=test"}


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        yield server


@pytest.fixture(params=["memory", "files"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=None if request.param == "memory" else tmp_path) as server:
        yield server


def ask(
    server: ObjectServer, method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, str | None, Any]:
    """Make a request in S3's protocol: status, ETag, and the document or the bytes."""
    client = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=30)
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    client.request(method, target, body, {**SIGNED, **more})
    with client.getresponse() as answer:
        data = answer.read()
    client.close()
    is_xml = answer.getheader("Content-Type") == "application/xml" and data
    return answer.status, answer.getheader("ETag"), ElementTree.fromstring(data) if is_xml else data


def texts(document: Any, name: str) -> list[str]:
    return [each.text for each in document.iter() if each.tag.rpartition("}")[2] == name]


def obstore_client(server: ObjectServer, **options: Any) -> Any:
    from obstore.store import S3Store

    return S3Store(
        "bucket",
        endpoint=server.url,
        access_key_id="any",
        secret_access_key="any",
        region="any",
        client_options={"allow_http": True},
        **options,
    )


def s3fs_client(server: ObjectServer) -> Any:
    import s3fs

    options = {"endpoint_url": server.url}
    return s3fs.S3FileSystem(
        key="any", secret="any", client_kwargs=options, skip_instance_cache=True
    )


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("name", clients.WRITERS)
def test_clients_save_open_and_load(server: ObjectServer, name: str) -> None:
    ds = numbers()
    if name == "icechunk":
        import icechunk

        storage = clients.icechunk_storage(server.url)
        session = icechunk.Repository.create(storage).writable_session("main")
        aioxarray.to_zarr(ds, session.store, consolidated=False)
        session.commit("first")
    else:
        aioxarray.to_zarr(ds + 1, clients.CLIENTS[name](server.url), consolidated=False)
        # Deletes what is there: a listing, and deletes of many keys at once.
        store = clients.CLIENTS[name](server.url)
        aioxarray.to_zarr(ds, store, mode="w", consolidated=False)
    got = aioxarray.open_zarr(clients.CLIENTS[name](server.url), consolidated=False)
    xr.testing.assert_identical(aioxarray.load(got), ds)
    assert server.log.failed == 0


def test_listings_are_complete_whatever_the_pages(either: ObjectServer) -> None:
    names = [*sorted(f"a/{i % 3}/ä&{i}" for i in range(25)), "b"]
    for name in names:
        either.put(f"bucket/{name}", b"x")
    either.put("other/a/0", b"x")
    pages, token = [], ""
    while True:
        _, _, page = ask(either, "GET", f"/bucket?list-type=2&max-keys=10&prefix=a%2F{token}")
        pages.append(texts(page, "Key"))
        if texts(page, "IsTruncated") == ["false"]:
            break
        token = f"&continuation-token={texts(page, 'NextContinuationToken')[0]}"
    assert [len(page) for page in pages] == [10, 10, 5]
    assert [name for page in pages for name in page] == names[:-1]
    assert either.log.count("LIST", "bucket/a/") == 3
    found = obstore_client(either).list_with_delimiter("a/")
    assert (sorted(found["common_prefixes"]), found["objects"]) == (["a/0", "a/1", "a/2"], [])
    assert sorted(s3fs_client(either).find("bucket")) == [f"bucket/{name}" for name in names]


def test_many_objects_are_deleted_at_once(either: ObjectServer) -> None:
    import obstore

    for i in range(20):
        either.put(f"bucket/a/{i}", b"x")
    obstore.delete(obstore_client(either), [f"a/{i}" for i in range(10)])
    assert len(either.data) == 10
    s3fs_client(either).rm("bucket/a", recursive=True)
    assert dict(either.data) == {}
    assert {each.method for each in either.log.requests} >= {"POST"}
    assert either.log.count("DELETE") == 0
    # What is not there is deleted, too.
    assert ask(either, "DELETE", "/bucket/a/0")[0] == 204


def test_large_objects_arrive_in_parts(server: ObjectServer) -> None:
    import obstore

    data = bytes(range(256)) * (12 << 12)
    obstore.put(obstore_client(server), "a", data, chunk_size=5 << 20)
    assert server.data["bucket/a"] == data
    assert server.log.count("PUT", "bucket/a") == 3
    status, _, created = ask(server, "POST", "/bucket/b?uploads")
    upload = texts(created, "UploadId")[0]
    assert ask(server, "PUT", f"/bucket/b?partNumber=1&uploadId={upload}", b"x")[0] == status == 200
    assert ask(server, "DELETE", f"/bucket/b?uploadId={upload}")[0] == 204
    status, _, error = ask(server, "POST", f"/bucket/b?uploadId={upload}")
    assert (status, texts(error, "Code")) == (404, ["NoSuchUpload"])
    assert "bucket/b" not in server.data


def test_objects_are_copied(either: ObjectServer) -> None:
    either.put("bucket/a/ä", b"x")
    status, _, copied = ask(either, "PUT", "/bucket/b", x_amz_copy_source="/bucket/a/%C3%A4")
    assert (status, either.data["bucket/b"]) == (200, b"x")
    assert texts(copied, "ETag")
    status, _, missing = ask(either, "PUT", "/bucket/c", x_amz_copy_source="bucket/none")
    assert (status, texts(missing, "Code")) == (404, ["NoSuchKey"])


def test_writes_can_have_conditions(either: ObjectServer) -> None:
    status, first, _ = ask(either, "PUT", "/bucket/a", b"1", If_None_Match="*")
    assert status == 200
    assert first
    status, _, error = ask(either, "PUT", "/bucket/a", b"other", If_None_Match="*")
    assert (status, texts(error, "Code")) == (412, ["PreconditionFailed"])
    # As S3, with or without quotes.
    status, second, _ = ask(either, "PUT", "/bucket/a", b"22", If_Match=first.strip('"'))
    assert status == 200
    assert ask(either, "PUT", "/bucket/a", b"other", If_Match=first)[0] == 412
    assert ask(either, "PUT", "/bucket/none", b"other", If_Match=first)[0] == 412
    assert dict(either.data) == {"bucket/a": b"22"}
    assert ask(either, "GET", "/bucket/a", If_None_Match=str(second))[0] == 304
    assert ask(either, "GET", "/bucket/a", If_Match=first)[0] == 412
    assert ask(either, "GET", "/bucket/a", If_Match=str(second))[2] == b"22"


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "AccessDenied"), (404, "NoSuchKey"), (500, "InternalError"), (503, "SlowDown")],
)
def test_errors_have_codes_of_s3(server: ObjectServer, status: int, code: str) -> None:
    server.put("bucket/a", b"x")
    server.fail("bucket/a", status, retry_after=3 if status == 503 else None)
    answered, _, error = ask(server, "GET", "/bucket/a")
    assert (answered, texts(error, "Code"), texts(error, "Key")) == (status, [code], ["bucket/a"])
    server.fail("bucket/", status, method="LIST", code="Other")
    answered, _, error = ask(server, "GET", "/bucket?list-type=2")
    assert (answered, texts(error, "Code")) == (status, ["Other"])
    assert ask(server, "HEAD", "/bucket/a")[::2] == (status, b"")


def test_clients_see_errors_of_s3(server: ObjectServer) -> None:
    import obstore
    from botocore.exceptions import ClientError

    server.put("bucket/a", b"x")
    server.fail("*", 403)
    with pytest.raises(PermissionError) as denied:
        s3fs_client(server).ls("bucket")
    assert isinstance(denied.value.__cause__, ClientError)
    assert denied.value.__cause__.response["Error"]["Code"] == "AccessDenied"
    with pytest.raises(obstore.exceptions.PermissionDeniedError, match="AccessDenied"):
        obstore.get(obstore_client(server), "a")


def test_a_body_in_chunks_with_checksums_is_put_together(server: ObjectServer) -> None:
    body = (
        b"5;chunk-signature=0\r\nhello\r\n4\r\n you\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"
    )
    assert ask(server, "PUT", "/bucket/a", body, Content_Encoding="aws-chunked")[0] == 200
    assert server.data["bucket/a"] == b"hello you"
