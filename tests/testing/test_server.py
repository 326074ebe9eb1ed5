"""The object server speaks HTTP as clients expect it, and counts what they ask for."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import MemoryStore, ObjectStore

from aioxarray.testing import ObjectServer, Request
from aioxarray.testing._serving.hosts import HOST, ThreadHost, make_site
from aioxarray.testing._serving.objects import MemoryObjects
from aioxarray.testing._serving.site import Site

if TYPE_CHECKING:
    from zarr.core.buffer import Buffer

ALPHABET = b"abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(params=["memory", "directory"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectServer]:
    with ObjectServer(root=None if request.param == "memory" else tmp_path) as server:
        yield server


def port(server: ObjectServer) -> int:
    return int(server.url.rpartition(":")[2])


class Client:
    """One kept-alive connection."""

    def __init__(self, server: ObjectServer) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port(server), timeout=30)

    def __call__(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.connection.close()


def requesting(server: ObjectServer, headers: str = "") -> socket.socket:
    """Return a client whose request for ``a`` the server is handling, and has not answered."""
    client = socket.create_connection(("127.0.0.1", port(server)))
    client.sendall(f"GET /a HTTP/1.1\r\n{headers}Expect: 100-continue\r\n\r\n".encode())
    with client.makefile("rb") as answer:
        assert answer.readline() + answer.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
    return client


def leave(client: socket.socket) -> None:
    """Disconnect, and wait until the server has noticed it, and hung up too."""
    with client:
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""


def test_objects_come_and_go(server: ObjectServer) -> None:
    with Client(server) as client:
        status, _, body = client("GET", "/a/b")
        assert (status, body) == (404, b"")
        assert client("PUT", "/a/b", ALPHABET)[0] == 201
        status, headers, body = client("GET", "/a/b?version=1")
        assert (status, body) == (200, ALPHABET)
        assert headers["accept-ranges"] == "bytes"
        head = client("HEAD", "/a/b")
        assert head == (200, headers, b"")
        assert headers["content-length"] == "26"

        assert client("PUT", "/a/b", b"other")[0] == 201
        status, changed, body = client("GET", "/a/b")
        assert body == b"other"
        assert changed["etag"] != headers["etag"]

        assert client("DELETE", "/a/b")[0] == 204
        assert client("DELETE", "/a/b")[0] == 404
        assert client("COPY", "/")[0] == 405
    assert [r.method for r in server.log.requests[:3]] == ["GET", "PUT", "GET"]
    assert server.log.count(key="a/b") == server.log.completed - 1
    assert server.log.most_in_flight == 1
    times = server.log.snapshot().times
    assert len(times) == len(server.log.requests)
    flat = [time for pair in times for time in pair if time is not None]
    assert flat == sorted(flat)
    assert len(flat) == 2 * len(times)


@pytest.mark.parametrize(
    ("header", "part", "status", "body"),
    [
        ("bytes=0-3", RangeByteRequest(0, 4), 206, b"abcd"),
        ("bytes=24-99", RangeByteRequest(24, 100), 206, b"yz"),
        ("bytes=20-", OffsetByteRequest(20), 206, b"uvwxyz"),
        ("bytes=-2", SuffixByteRequest(2), 206, b"yz"),
        ("bytes=-99", SuffixByteRequest(99), 206, ALPHABET),
        ("bytes=26-30", RangeByteRequest(26, 31), 416, b""),
        ("bytes=26-", OffsetByteRequest(26), 416, b""),
        ("bytes=-0", SuffixByteRequest(0), 416, b""),
        ("bytes=3-1", None, 200, ALPHABET),
        ("bytes=0-1,4-5", None, 200, ALPHABET),
        ("bytes=-", None, 200, ALPHABET),
        ("items=0-1", None, 200, ALPHABET),
    ],
)
def test_ranges(server: ObjectServer, header: str, part: Any, status: int, body: bytes) -> None:
    server.put("a", ALPHABET)
    with Client(server) as client:
        answer = client("GET", "/a", Range=header)
    assert (answer[0], answer[2]) == (status, body)
    if status == 206:
        start = ALPHABET.index(body)
        assert answer[1]["content-range"] == f"bytes {start}-{start + len(body) - 1}/26"
    if status == 416:
        assert answer[1]["content-range"] == "bytes */26"
    assert server.log.requests == (Request("GET", "a", part),)


def test_keys_are_unquoted_and_stay_in_the_directory(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    with ObjectServer(root=tmp_path / "root") as server, Client(server) as client:
        server.put("a b/ü", b"x")
        assert client("GET", "/a%20b/%C3%BC")[2] == b"x"
        for path in ("/../secret", "/%2e%2e/secret", "/a%20b/../../secret", "//etc/passwd"):
            assert client("GET", path)[0] == 404
            assert client("PUT", path, b"bad")[0] == 400
        assert client("GET", "/../")[0] == 404
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_data_is_a_mapping(server: ObjectServer) -> None:
    server.data.update({"a/0": b"0", "a/1": b"1", "b": b"2"})
    assert dict(server.data) == {"a/0": b"0", "a/1": b"1", "b": b"2"}
    assert len(server.data) == 3
    del server.data["a/0"]
    assert "a/0" not in server.data
    with pytest.raises(KeyError):
        del server.data["a/0"]
    assert server.log.requests == ()


def test_directories_are_listed_for_fsspec(server: ObjectServer) -> None:
    server.data.update({"z/a/0 1": b"0", "z/a/1": b"1", "z/b": b"2", "zz": b"3"})
    files = fsspec.filesystem("http", use_listings_cache=False)
    for url in (f"{server.url}/z", f"{server.url}/z/"):
        assert files.ls(url, detail=False) == [f"{server.url}/z/a/", f"{server.url}/z/b"]
    assert files.find(f"{server.url}/z/a") == [f"{server.url}/z/a/0%201", f"{server.url}/z/a/1"]
    server.put("z/c", b"4")
    assert f"{server.url}/z/c" in files.ls(f"{server.url}/z", detail=False)
    with pytest.raises(FileNotFoundError):
        files.ls(f"{server.url}/nothing")
    with Client(server) as client:
        status, headers, body = client("HEAD", "/z/")
        assert (status, body) == (200, b"")
        assert headers["content-type"].startswith("text/html")


def test_two_requests_sent_at_once_are_answered_in_order() -> None:
    with ObjectServer(latency_s=0.001) as server:
        server.data.update({"a": b"first", "b": b"second"})
        with socket.create_connection(("127.0.0.1", port(server))) as client:
            client.sendall(
                b"GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\nGET /a HTTP"
            )
            got = b"".join(iter(lambda: client.recv(4096), b""))
        assert got.count(b"HTTP/1.1 200 OK") == 2
        assert got.index(b"first") < got.index(b"second")
        assert server.log.most_in_flight == 1


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"nonsense\r\n\r\n", b"HTTP/1.1 400 "),
        (b"PUT /a HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"HTTP/1.1 411 "),
        (b"GET /a HTTP/1.0\r\n\r\n", b"HTTP/1.1 404 "),
    ],
)
def test_requests_that_cannot_be_parsed_are_refused_and_closed(sent: bytes, answer: bytes) -> None:
    with ObjectServer() as server:
        with socket.create_connection(("127.0.0.1", port(server))) as client:
            client.sendall(sent)
            got = b"".join(iter(lambda: client.recv(4096), b""))
        assert got.startswith(answer)


def test_200_clients_at_once() -> None:
    async def get(server: ObjectServer, i: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port(server))
        writer.write(b"GET /%d HTTP/1.1\r\nConnection: close\r\n\r\n" % i)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer.partition(b"\r\n\r\n")[2]

    async def get_all(server: ObjectServer) -> list[bytes]:
        return await asyncio.gather(*(get(server, i) for i in range(200)))

    with ObjectServer(latency_s=0.01) as server:
        bodies = [bytes([i]) * 100_000 for i in range(200)]
        server.data.update({str(i): body for i, body in enumerate(bodies)})
        assert asyncio.run(get_all(server)) == bodies
        assert server.log.completed == 200
        assert server.log.in_flight == 0


def test_in_flight_is_exact_and_a_client_that_leaves_cancels() -> None:
    with ObjectServer(latency_s=3600.0) as server:
        server.hold()
        clients = [requesting(server) for _ in range(200)]
        server.wait_requested(count=200)
        assert server.log.in_flight == 200
        for client in clients:
            leave(client)
        assert server.log.in_flight == 0
        assert (server.log.most_in_flight, server.log.cancelled) == (200, 200)
        server.release()
        server.latency_s = 0.0
        with Client(server) as client_2:
            assert client_2("GET", "/a")[0] == 404
        server.log.clear()
        assert server.log.most_in_flight == 0


def dataset() -> xr.Dataset:
    return xr.Dataset({"a": (("y", "x"), np.arange(24.0).reshape(4, 6))}, {"x": np.arange(6)})


def stored() -> dict[str, bytes]:
    values: dict[str, Buffer] = {}
    dataset().to_zarr(MemoryStore(values), encoding={"a": {"chunks": (2, 3)}})
    return {f"data/{key}": value.to_bytes() for key, value in values.items()}


@pytest.mark.parametrize("process", [False, True], ids=["thread", "process"])
def test_xarray_reads_through_fsspec_and_obstore(process: bool) -> None:
    obstore = pytest.importorskip("obstore.store")
    with ObjectServer(process=process) as server:
        server.data.update(stored())
        url = f"{server.url}/data"
        assert server.log.requests == ()
        xr.testing.assert_identical(xr.open_zarr(url, chunks=None).load(), dataset())
        assert server.log.count("GET", "data/a/c/*") == 4

        server.log.clear()
        http_store = obstore.HTTPStore.from_url(url, client_options={"allow_http": True})
        lazy = xr.open_zarr(ObjectStore(http_store, read_only=True), chunks=None)
        xr.testing.assert_identical(lazy.load(), dataset())
        assert server.log.count("GET", "data/a/c/*") == 4
        assert server.log.failed == server.log.cancelled == server.log.in_flight == 0


def test_zarr_writes_and_lists_through_fsspec(server: ObjectServer) -> None:
    group = zarr.open_group(f"{server.url}/tree", mode="w")
    group.create_array("a", data=np.arange(6), chunks=(3,))
    group.create_group("g")
    assert "tree/a/c/1" in server.data
    read = zarr.open_group(
        f"{server.url}/tree",
        mode="r",
        use_consolidated=False,
        storage_options={"use_listings_cache": False},
    )
    assert {name for name, _ in read.members()} == {"a", "g"}
    np.testing.assert_array_equal(read["a"], np.arange(6))


def test_obstore_writes_and_reads_parts(server: ObjectServer) -> None:
    obstore = pytest.importorskip("obstore")
    store = obstore.store.HTTPStore.from_url(server.url, client_options={"allow_http": True})
    obstore.put(store, "a/b", ALPHABET)
    assert bytes(obstore.get_range(store, "a/b", start=2, end=5)) == b"cde"
    assert bytes(obstore.get(store, "a/b", options={"range": {"suffix": 2}}).bytes()) == b"yz"
    assert obstore.head(store, "a/b")["size"] == 26
    with pytest.raises(FileNotFoundError):
        obstore.get(store, "a/c")
    obstore.delete(store, "a/b")
    assert dict(server.data) == {}


def test_obstore_lists(server: ObjectServer) -> None:
    obstore = pytest.importorskip("obstore")
    keys = ["a/b/c", "a/ü&", "a/z", "ab"]
    server.data.update(dict.fromkeys(keys, ALPHABET))
    store = obstore.store.HTTPStore.from_url(server.url, client_options={"allow_http": True})

    def paths(listed: Any) -> list[str]:
        return sorted(each["path"] for each in listed)

    assert paths(obstore.list(store).collect()) == sorted(keys)
    assert paths(obstore.list(store, "a").collect()) == sorted(keys[:3])
    level = obstore.list_with_delimiter(store, "a")
    assert paths(level["objects"]) == sorted(keys[1:3])
    assert level["common_prefixes"] == ["a/b"]
    assert {each["size"] for each in level["objects"]} == {26}
    assert paths(obstore.list(store, "none").collect()) == []


def test_the_line_carries_bytes_one_after_the_other() -> None:
    site = Site(MemoryObjects(), 0.0, bytes_per_s=100.0, off_loop=False)
    assert [site.carried_at(50, now=10.0), site.carried_at(100, now=10.1)] == [10.5, 11.5]
    assert site.carried_at(100, now=20.0) == 21.0
    unlimited = Site(MemoryObjects(), 0.0, bytes_per_s=0.0, off_loop=False)
    assert unlimited.carried_at(1 << 40, now=3.0) == 3.0


def test_answers_come_over_a_slow_line() -> None:
    with ObjectServer(bytes_per_s=1e6) as slow, Client(slow) as client:
        assert client("PUT", "/a", ALPHABET * 1000)[0] == 201
        assert client("GET", "/a")[2] == ALPHABET * 1000
        assert slow.log.completed == 2


def test_a_process_serves_and_reports(tmp_path: Path) -> None:
    with ObjectServer(latency_s=3600.0, root=tmp_path, process=True) as server:
        server.data.update({"a/ü": ALPHABET, "b": b"2"})
        assert (tmp_path / "a" / "ü").read_bytes() == ALPHABET
        assert dict(server.data) == {"a/ü": ALPHABET, "b": b"2"}
        assert len(server.data) == 2
        with pytest.raises(KeyError):
            server.data["c"]
        with pytest.raises(KeyError):
            del server.data["c"]
        with pytest.raises(OSError, match="400"):
            server.put("../c", b"")
        del server.data["b"]
        assert "b" not in server.data

        clients = [requesting(server, "Range: bytes=0-1\r\n") for _ in range(3)]
        # The server process handles the next request, for its log, after these.
        assert server.log.in_flight == 3
        for client in clients:
            leave(client)
        assert server.log.cancelled == 3
        assert list(server.log.requests) == [Request("GET", "a", RangeByteRequest(0, 2))] * 3
        assert server.latency_s == 3600.0
        server.latency_s = 0.0
        server.log.clear()
        with Client(server) as client_2:
            assert client_2("GET", "/a/%C3%BC", Range="bytes=-1")[2] == b"z"
        assert list(server.log.requests) == [Request("GET", "a/ü", SuffixByteRequest(1))]
        assert server.log.completed == server.log.most_in_flight == 1


def test_requests_are_held_until_they_are_released_or_given_up() -> None:
    with ObjectServer() as server:
        server.put("a", b"1")
        server.put("b", b"2")
        server.hold("a")
        address = server.url.removeprefix("http://")
        client, other = (http.client.HTTPConnection(address) for _ in range(2))
        client.request("GET", "/a")
        server.wait_requested("a")
        other.request("GET", "/b")
        assert other.getresponse().read() == b"2"
        assert (server.waiting, server.log.in_flight) == (("a",), 1)
        client.close()
        asyncio.run(server.deserted())
        other.request("GET", "/a")
        server.wait_requested("a", count=2)
        server.release()
        assert other.getresponse().read() == b"1"
        assert server.waiting == ()
        other.close()


def test_holding_needs_a_server_in_this_process() -> None:
    with ObjectServer() as server, pytest.raises(RuntimeError, match="nothing is held"):
        server.release()
    with ObjectServer(process=True) as server, pytest.raises(TypeError, match="in this process"):
        server.hold()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process the Unix way")
def test_the_process_ends_with_its_parent() -> None:
    code = (
        "from aioxarray.testing import ObjectServer; import time\n"
        "server = ObjectServer(process=True).start()\n"
        "print(server.url, flush=True)\n"
        "time.sleep(3600)"
    )
    source = str(Path(sys.modules[ObjectServer.__module__].__file__ or "").parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": source},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        host, _, number = parent.stdout.readline().strip().rpartition(":")
        address = (host.removeprefix("http://"), int(number))
        with socket.create_connection(address) as client:
            parent.send_signal(signal.SIGKILL)
            assert client.recv(1) == b""  # the server has hung up


def test_use_before_and_after_serving_is_refused() -> None:
    server = ObjectServer()
    assert "not running" in repr(server)
    with pytest.raises(RuntimeError, match="not running"):
        server.put("a", b"")
    with server:
        assert server.url in repr(server)
        with pytest.raises(RuntimeError, match="started already"):
            server.start()
    server.close()
    with pytest.raises(RuntimeError, match="not running"):
        _ = server.url


def test_a_connection_that_is_just_being_accepted_is_closed() -> None:
    host: Any = ThreadHost(make_site(0.0, 0.0, None, alone=False))
    clients: list[socket.socket] = []

    def connect() -> None:
        clients.append(socket.create_connection((HOST, host.port), timeout=60))
        # The loop is told to stop in the round in which it accepts the connection.
        host._loop.call_soon(host._stop.set)

    host._loop.call_soon_threadsafe(connect)
    host._thread.join()
    with clients[0] as client:
        assert client.recv(1) == b""
