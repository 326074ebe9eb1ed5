"""Requests that fail in a way that may pass are made again: counted at a server that fails."""

from __future__ import annotations

import asyncio
import email.utils
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from datetime import timedelta
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import xarray as xr
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.buffer.cpu import Buffer
from zarr.storage import MemoryStore, ObjectStore

import aioxarray
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.stores import clients as plain
from aioxarray._zarr.stores import grants
from aioxarray._zarr.stores.calls import current_call
from aioxarray._zarr.stores.limited import LimitedStore
from aioxarray._zarr.stores.observing.observers import observed
from aioxarray._zarr.stores.request import Request
from aioxarray._zarr.stores.retries import attempts as retrying
from aioxarray._zarr.stores.retries.attempts import retrying_client
from aioxarray._zarr.stores.retries.errors import transient
from aioxarray.config import config
from aioxarray.errors import ServerUnavailableError, TryAgainError
from aioxarray.testing import FaultyStore, LatencyStore, ObjectServer
from tests import budgets
from tests.concurrency import clients
from tests.concurrency.helpers import PATIENCE_S, lazily, same, written
from tests.concurrency.sessions import closed_later
from tests.concurrency.test_requests import Seen
from tests.samples import stored

if TYPE_CHECKING:
    from zarr.abc.store import Store

BODY = b"abcdefgh" * 100
PART = RangeByteRequest(2, 6)


class Waits:
    """Waits between attempts, which take no time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.meanwhile: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await self.meanwhile()

    def clock(self) -> float:
        return sum(self.seconds)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(retrying, "sleep", waits.sleep)
    monkeypatch.setattr(retrying, "clock", waits.clock)
    return waits


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket/data/a", BODY)
        yield server


def fsspec_http(url: str) -> Store:
    return closed_later(clients.fsspec_http(f"{url}/bucket/data"))


def obstore_http(url: str) -> Store:
    return clients.obstore_http(f"{url}/bucket/data")


def with_retries(url: str, most: int) -> Store:
    """Return a store whose client retries by itself."""
    from obstore.store import HTTPStore

    backoff: Any = {
        "init_backoff": timedelta(milliseconds=1),
        "max_backoff": timedelta(milliseconds=1),
        "base": 2,
    }
    client = HTTPStore(
        f"{url}/bucket/data",
        client_options={"allow_http": True},
        retry_config={
            "max_retries": most,
            "backoff": backoff,
            "retry_timeout": timedelta(seconds=60),
        },
    )
    return ObjectStore(client)


ONCE = [fsspec_http, obstore_http, clients.obstore_s3]
"""Clients that make one attempt."""

over_each_client = pytest.mark.parametrize("client", ONCE, ids=lambda client: client.__name__)

PASSING: list[Any] = [408, 425, 429, 500, 502, 503, 504, "reset", "truncate"]
FINAL = [401, 403, 416]


def get(store: Store, part: RangeByteRequest | None = None, key: str = "a") -> bytes | None:
    """Read a value as this package does."""

    async def read() -> bytes | None:
        with grants.requests.share(2) as places:
            limited = LimitedStore(store, places)
            value = await limited.get(key, default_buffer_prototype(), part)
            return None if value is None else value.to_bytes()

    return run_blocking(read)


def write(store: Store, method: str, *arguments: Any) -> None:
    async def call() -> None:
        with grants.requests.share(2) as places:
            await getattr(LimitedStore(store, places), method)(*arguments)

    run_blocking(call)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


CHUNKS = "*/v/[0-9]*"


# --- what is retried -----------------------------------------------------------------------------


@over_each_client
@pytest.mark.parametrize("effect", PASSING)
@pytest.mark.parametrize("part", [None, PART], ids=["whole", "part"])
def test_a_fault_that_happens_once_is_survived(
    client: Callable[[str], Store], effect: Any, part: RangeByteRequest | None, server: ObjectServer
) -> None:
    server.fail("*a", effect, times=1)
    assert get(client(server.url), part) == (BODY if part is None else BODY[2:6])
    assert server.log.count("GET", "*a") == 2


@over_each_client
@pytest.mark.parametrize("effect", PASSING)
def test_a_fault_that_stays_is_raised_after_as_many_attempts_as_set(
    client: Callable[[str], Store], effect: Any, server: ObjectServer
) -> None:
    server.fail("*a", effect)
    with config.set({"retry.attempts": 3}), pytest.raises(Exception) as caught:  # noqa: PT011
        get(client(server.url))
    # aiohttp itself asks once more after a reset.
    each = 2 if (client, effect) == (fsspec_http, "reset") else 1
    assert server.log.count("GET", "*a") == 3 * each
    assert "3 attempts over" in notes(caught.value)
    assert "attempts exhausted (retry.attempts=3)" in notes(caught.value)


@over_each_client
@pytest.mark.parametrize("status", FINAL)
def test_clear_refusals_are_not_retried(
    client: Callable[[str], Store], status: int, server: ObjectServer, waits: Waits
) -> None:
    server.fail("*a", status)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        get(client(server.url))
    assert server.log.count("GET") == 1
    assert not waits.seconds
    assert "; this error cannot be retried" in notes(caught.value)


@over_each_client
def test_a_missing_key_is_asked_for_once(
    client: Callable[[str], Store], server: ObjectServer
) -> None:
    assert get(client(server.url), key="none") is None
    assert server.log.count("GET") == 1


@over_each_client
def test_a_part_that_is_too_long_is_asked_for_once_more(
    client: Callable[[str], Store], server: ObjectServer
) -> None:
    server.fail("*a", "extend", times=1)
    assert get(client(server.url), PART) == BODY[2:6]
    server.fail("*a", "extend")
    with pytest.raises(OSError, match="20 bytes were received for the range 2 to 6") as caught:
        get(client(server.url), PART)
    assert server.log.count("GET", "*a") == 4
    assert "2 attempts" in notes(caught.value)


def test_an_answer_that_is_not_http_is_retried(server: ObjectServer) -> None:
    # aiohttp finds the bytes that follow an overlong body when it parses the answer.
    server.fail("*a", "overrun", times=1)
    assert get(fsspec_http(server.url)) == BODY
    assert server.log.count("GET", "*a") == 2


@pytest.mark.parametrize("client", ONCE[:2], ids=lambda client: client.__name__)
def test_a_server_that_is_down_is_asked_again(
    client: Callable[[str], Store], server: ObjectServer, waits: Waits
) -> None:
    store = client(server.url)
    server.close()
    with config.set({"retry.attempts": 4}), pytest.raises(Exception) as caught:  # noqa: PT011
        get(store)
    assert len(waits.seconds) == 3
    assert "4 attempts" in notes(caught.value)


@pytest.mark.parametrize("client", ONCE[:2], ids=lambda client: client.__name__)
def test_an_open_hardly_insists_on_a_server_that_never_answered(
    client: Callable[[str], Store], server: ObjectServer
) -> None:
    store = client(server.url)
    server.close()
    with pytest.raises(Exception) as caught:  # noqa: PT011
        aioxarray.open_zarr(store)
    assert "3 attempts" in notes(caught.value)
    assert "the server was never reached" in notes(caught.value)


def boto_error(code: str, status: int) -> OSError:
    """Return an error as s3fs raises it: its text need not say anything."""
    from botocore.exceptions import ClientError
    from s3fs.errors import translate_boto_error

    answer: Any = {
        "Error": {"Code": code, "Message": "no"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "3"}},
    }
    error = translate_boto_error(ClientError(answer, "GetObject"))
    assert isinstance(error, OSError)
    return error


@pytest.mark.parametrize(
    ("code", "status", "cause"),
    [
        ("SlowDown", 503, "SlowDown"),
        ("SlowDown", 400, "SlowDown"),
        ("ServiceUnavailable", 400, "ServiceUnavailable"),
        ("503", 503, "HTTP 503"),
        ("AccessDenied", 403, None),
        ("InvalidRange", 416, None),
        ("404", 404, None),
        ("400", 400, None),
    ],
)
def test_the_words_of_s3(code: str, status: int, cause: str | None) -> None:
    found = transient(boto_error(code, status))
    assert (found and found.cause) == cause
    if found is not None:
        assert found.retry_after == 3


class IcechunkError(Exception):
    """An error of icechunk's, by its name: the real one cannot be made."""

    __module__ = "icechunk"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (IcechunkError("error getting object\n|-> unhandled error (SlowDown)"), "SlowDown"),
        (IcechunkError("x I/O error: streaming error"), "streaming error"),
        (IcechunkError("dispatch failure"), "dispatch failure"),
        (IcechunkError("object not found"), None),
        (ConnectionResetError("cut"), "ConnectionResetError"),
        (TimeoutError(), "TimeoutError"),
        (OSError(5, "a disk's error"), None),
        (ValueError("cannot decode"), None),
        (KeyError("a"), None),
    ],
)
def test_other_errors(error: Exception, cause: str | None) -> None:
    found = transient(error)
    assert (found and found.cause) == cause


def test_a_cause_below_another_error_counts() -> None:
    def raised() -> Exception:
        try:
            raise RuntimeError("reading failed") from ConnectionResetError()
        except RuntimeError as error:
            return error

    found = transient(raised())
    assert found is not None
    assert found.cause == "ConnectionResetError"


# --- when ----------------------------------------------------------------------------------------


@over_each_client
def test_waits_are_random_and_grow_up_to_a_bound(
    client: Callable[[str], Store], server: ObjectServer, waits: Waits
) -> None:
    server.fail("*a", 503)
    policy: Any = {"retry.attempts": 20, "retry.deadline": 1000, "retry.backoff_s": 1}
    with config.set(policy), pytest.raises(TryAgainError):
        get(client(server.url))
    bounds = [min(5.0, 2.0**n) for n in range(19)]
    assert len(waits.seconds) == 19
    assert all(0 <= wait <= bound for wait, bound in zip(waits.seconds, bounds, strict=True))
    assert len(set(waits.seconds)) == 19


def test_the_server_says_when_to_come_back(server: ObjectServer, waits: Waits) -> None:
    server.fail("*a", 429, times=1, retry_after=7)
    assert get(fsspec_http(server.url)) == BODY
    assert waits.seconds == [7.0]


def test_the_server_may_say_it_as_a_date(server: ObjectServer, waits: Waits) -> None:
    when = email.utils.formatdate(time.time() + 20, usegmt=True)
    server.fail("*a", 503, times=1, retry_after=when)
    assert get(fsspec_http(server.url)) == BODY
    assert 10 < waits.seconds[0] <= 20


def test_a_wait_beyond_the_deadline_is_not_begun(server: ObjectServer, waits: Waits) -> None:
    server.fail("*a", 503, retry_after=3600)
    with pytest.raises(Exception, match="503") as caught:
        get(fsspec_http(server.url))
    assert not waits.seconds
    assert "1 attempt: HTTP 503; the server asks to wait 3600 s (retry.deadline=30)" in notes(
        caught.value
    )


@pytest.mark.parametrize(("profile", "seconds"), [("interactive", 30), ("batch", 600)])
def test_attempts_end_with_the_deadline(
    profile: str, seconds: float, server: ObjectServer, waits: Waits
) -> None:
    server.fail("*a", 503, retry_after=29)
    with config.set(retry=profile), pytest.raises(Exception, match="503") as caught:
        get(fsspec_http(server.url))
    assert seconds - 30 <= sum(waits.seconds) <= seconds
    assert len(waits.seconds) == seconds // 30 or len(waits.seconds) == seconds // 29
    assert f"retry.deadline={seconds}" in notes(caught.value)


def test_no_place_is_held_between_attempts(server: ObjectServer, waits: Waits) -> None:
    in_use = []
    states = []

    async def look() -> None:
        in_use.append(grants.requests.in_use)
        call = current_call()
        assert call is not None
        states.append(call.state())

    waits.meanwhile = look
    ds = served(server, fsspec_http)
    server.fail(CHUNKS, 503, times=3)
    xr.testing.assert_identical(aioxarray.compute(ds, concurrency=1), sample())
    assert in_use == [0, 0, 0]
    assert "waiting for 'v/0.0' of http://" in states[0]
    assert "attempt 2 after HTTP 503; " in states[0]


def test_cancelling_ends_the_wait(server: ObjectServer, waits: Waits) -> None:
    begun: Future[None] = Future()

    async def for_ever() -> None:
        begun.set_result(None)
        await asyncio.Event().wait()

    waits.meanwhile = for_ever
    ds = served(server, fsspec_http)
    server.fail(CHUNKS, 503, times=1)

    async def main() -> None:
        task = asyncio.create_task(aioxarray.load_async(ds))
        await asyncio.wrap_future(begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert grants.requests.in_use == 0
    # No chunk is asked for twice.
    keys = [each.key for each in server.log.requests if fnmatch(each.key, CHUNKS)]
    assert len(keys) == len(set(keys))


# --- not multiplied ------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", [503, "reset", "truncate"])
def test_a_client_that_retries_is_left_to_it(
    effect: Any, server: ObjectServer, waits: Waits
) -> None:
    server.fail("*a", effect)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        get(with_retries(server.url, 2))
    assert server.log.count("GET", "*a") == 3
    assert not waits.seconds
    assert "1 attempt: " in notes(caught.value)
    assert "obstore retries by itself" in notes(caught.value)


def test_only_what_its_client_leaves_out_is_added(server: ObjectServer) -> None:
    server.fail("*a", "extend", times=1)
    assert get(with_retries(server.url, 2), PART) == BODY[2:6]
    assert server.log.count("GET", "*a") == 2


def test_s3fs_is_left_to_its_own_retries(server: ObjectServer, waits: Waits) -> None:
    server.fail("*a", 503, code="ServiceUnavailable")
    with pytest.raises(ServerUnavailableError, match="ServiceUnavailable") as caught:
        get(clients.s3fs(server.url), PART)
    # It was made with one attempt.
    assert server.log.count("GET", "*a") == 1
    assert not waits.seconds
    assert "1 attempt: ServiceUnavailable; S3FileSystem retries by itself" in notes(caught.value)


def test_s3fs_does_not_retry_a_head_that_timed_out(server: ObjectServer) -> None:
    # It asks for the size before it reads all.
    server.fail("*a", 408, method="HEAD", times=1)
    assert get(clients.s3fs(server.url)) == BODY
    assert (server.log.count("HEAD", "*a"), server.log.count("GET", "*a")) == (2, 1)


def retrying_obstore(server: ObjectServer) -> Store:
    """Return a store of obstore for S3 that retries by itself."""
    from obstore.store import S3Store

    client = S3Store(
        "bucket",
        prefix="data",
        endpoint=server.url,
        access_key_id="test",
        secret_access_key="test",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    return ObjectStore(client)


def test_obstore_does_not_retry_listings_that_break(server: ObjectServer) -> None:
    store = retrying_obstore(server)

    async def names() -> list[str]:
        with grants.requests.share(2) as places:
            limited = LimitedStore(store, places)
            return [name async for name in limited.list_dir("")]

    server.fail("*", "truncate", method="LIST", times=1)
    assert run_blocking(names) == ["a"]
    assert server.log.count("LIST") == 2


@pytest.mark.parametrize("status", [404, 403])
def test_obstore_does_not_retry_errors_whose_bodies_break(
    server: ObjectServer, status: int
) -> None:
    # An absent key, or one that must not be read: S3 sends a body with each.
    store = retrying_obstore(server)
    if status == 403:
        server.fail("*absent", 403)
    server.fail("*absent", "truncate", times=1)
    if status == 404:
        assert get(store, key="absent") is None
    else:
        with pytest.raises(PermissionError, match="absent"):
            get(store, key="absent")
    assert server.log.count("GET", "*absent") == 2


def test_icechunk_does_not_retry_bodies_that_break(server: ObjectServer) -> None:
    import icechunk

    storage = clients.icechunk_storage(server.url)
    session = icechunk.Repository.create(storage).writable_session("main")
    # More than icechunk stores in its metadata.
    values = xr.Dataset({"v": ("x", np.random.default_rng(0).random(1000))})
    aioxarray.to_zarr(values, session.store, consolidated=False)
    session.commit("values")
    store = icechunk.Repository.open(storage).readonly_session("main").store
    ds = aioxarray.open_zarr(store, consolidated=False)
    server.fail("*", "truncate", times=1)
    xr.testing.assert_equal(aioxarray.load(ds), values)
    assert server.log.failed == 1


def test_clients_that_retry_are_known() -> None:
    import fsspec
    import icechunk
    from obstore.store import HTTPStore
    from zarr.storage import FsspecStore

    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    assert retrying_client(session.store) == "icechunk"
    assert retrying_client(FaultyStore.kth(session.store, 0)) == "icechunk"
    url = "http://127.0.0.1:1"
    assert retrying_client(HTTPStore(url, client_options={"allow_http": True})) == "obstore"
    assert retrying_client(clients.obstore_http(url)) is None
    assert retrying_client(clients.fsspec_http(url)) is None
    filesystem = fsspec.filesystem("s3", anon=True, asynchronous=True, skip_instance_cache=True)
    assert retrying_client(FsspecStore(filesystem, path="bucket")) == "S3FileSystem"
    assert retrying_client(MemoryStore()) is None


def test_stores_made_from_a_url_do_not_retry() -> None:
    from aioxarray._zarr.metadata.opening import _obstore

    store = _obstore("http://127.0.0.1:1/a.zarr", None, read_only=True)
    assert store is not None
    assert retrying_client(store) is None


@pytest.mark.parametrize("effect", [408, 500, 503, "reset"])
def test_a_url_of_s3_is_retried_here(effect: Any, server: ObjectServer) -> None:
    """By s3fs and botocore themselves, there would be 5 to 23 attempts for one request."""
    options = {"key": "a", "secret": "b", "client_kwargs": {"endpoint_url": server.url}}
    for key, value in stored(sample(), zarr_format=3)._store_dict.items():
        server.put(f"bucket/v/{key}", value.to_bytes())
    how: Any = {"storage_options": options, "consolidated": False}
    ds = aioxarray.open_zarr("s3://bucket/v", **how)
    key = "bucket/v/v/c/1/0"
    server.fail(key, effect)
    with config.set({"retry.attempts": 3}), pytest.raises(TryAgainError) as caught:
        aioxarray.load(ds)
    # A whole value is asked for by HEAD, for its size, and GET.
    assert server.log.count("HEAD", key) + server.log.count("GET", key) in (3, 6)
    assert "3 attempts over " in notes(caught.value)
    server.mend()
    server.fail(key, effect, times=1)
    xr.testing.assert_identical(aioxarray.compute(ds), sample())


def test_retries_of_s3fs_that_the_caller_has_set_stay() -> None:
    from aioxarray._zarr.metadata.opening import store_path

    mine: Any = {"anon": True, "config_kwargs": {"retries": {"max_attempts": 2}}}
    given: list[Any] = [mine, {"anon": True}, {"anon": True, "config_kwargs": {"proxies": {}}}]
    for options, name in zip(given, ["S3FileSystem", None, None], strict=True):
        made = partial(store_path, "s3://b/a", mode="r", storage_options=options)
        root = run_blocking(made)
        assert retrying_client(root.store) == name
    import s3fs

    assert s3fs.S3FileSystem.retries > 1
    assert s3fs.S3FileSystem(anon=True, asynchronous=True).retries > 1


# --- writes --------------------------------------------------------------------------------------

VALUE = Buffer.from_bytes(b"new")


@pytest.mark.parametrize("effect", [503, "reset", "lose"])
def test_a_value_whose_answer_was_lost_is_no_conflict(effect: Any, server: ObjectServer) -> None:
    server.fail("*b", effect, method="PUT", times=1)
    write(clients.obstore_s3(server.url), "set", "b", VALUE)
    assert server.data["bucket/data/b"] == b"new"
    assert server.log.count("PUT", "*b") == 2


@pytest.mark.parametrize("effect", [503, "lose"])
def test_a_deletion_is_repeated(effect: Any, server: ObjectServer) -> None:
    server.fail("*a", effect, method="DELETE", times=1)
    write(with_retries(server.url, 0), "delete", "a")
    assert "bucket/data/a" not in server.data
    assert server.log.count("DELETE", "*a") == 2


def test_a_value_that_must_be_new_is_written_once(server: ObjectServer, waits: Waits) -> None:
    server.fail("*b", "lose", method="PUT")
    with pytest.raises(Exception, match="error sending request") as caught:
        write(clients.obstore_s3(server.url), "set_if_not_exists", "b", VALUE)
    assert server.log.count("PUT", "*b") == 1
    assert not waits.seconds
    assert "it is not safe to repeat" in notes(caught.value)


def test_saves_survive_faults() -> None:
    from obstore.store import HTTPStore

    options: Any = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    with ObjectServer() as server:
        server.fail("*", "lose", method="PUT", probability=0.2, seed=1)
        server.fail("*", 503, probability=0.1, seed=2)
        saved: Any = ObjectStore(HTTPStore(server.url, **options))
        with config.set({"retry.attempts": 20}), observed(seen := Seen()):
            aioxarray.to_zarr(sample(), saved, consolidated=False, zarr_format=3)
        assert len(seen.failed_with) > 5
        stored_here = {key: Buffer.from_bytes(value) for key, value in server.data.items()}
    got = xr.load_dataset(MemoryStore(stored_here), engine="zarr", consolidated=False)  # type: ignore[arg-type]
    xr.testing.assert_identical(got, sample())


# --- loads, in coroutines and in threads ---------------------------------------------------------


def sample() -> xr.Dataset:
    data = np.random.default_rng(0).random((40, 10))
    ds = xr.Dataset({"v": (("y", "x"), data)})
    ds["v"].encoding["chunks"] = (1, 10)
    return ds


def served(server: ObjectServer, client: Callable[[str], Store]) -> xr.Dataset:
    """Serve the sample, and open it with a client."""
    for key, value in stored(sample(), zarr_format=2)._store_dict.items():
        server.put(f"bucket/data/{key}", value.to_bytes())
    store: Any = client(server.url)
    # obstore cannot list below the path of an HTTP URL.
    ds: xr.Dataset = aioxarray.open_zarr(store, consolidated=True)
    return ds


@over_each_client
@pytest.mark.parametrize("effect", [503, "reset", "truncate"])
def test_loads_survive_faults(
    client: Callable[[str], Store], effect: Any, server: ObjectServer
) -> None:
    ds = served(server, client)
    server.fail(CHUNKS, effect, probability=0.2, seed=3)
    with config.set({"retry.attempts": 20}), observed(seen := Seen()):
        xr.testing.assert_identical(aioxarray.compute(ds), sample())
    assert not seen.under_way
    if (client, effect) != (fsspec_http, "reset"):  # of which aiohttp hides some
        assert seen.failed_with
        assert sum(seen.counts.values()) == server.log.count("GET", CHUNKS)
    assert all(request.attempt > 1 for request, _ in seen.failed_with)


def test_a_blocking_call_is_retried_by_a_coroutine(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    handed = []
    run_in_place = plain.Held.run_in_place

    def spy(held: plain.Held, ask: Any) -> Any:
        handed.append(held)
        return run_in_place(held, ask)

    monkeypatch.setattr(plain.Held, "run_in_place", spy)
    ds = served(server, obstore_http)
    server.fail(CHUNKS, 503, times=1)
    one = ds.isel(y=slice(0, 8))
    with observed(seen := Seen()):
        xr.testing.assert_identical(aioxarray.compute(one), sample().isel(y=slice(0, 8)))
    assert len(handed) == len(waits.seconds) == len(seen.failed_with) == 1
    assert server.log.count("GET", CHUNKS) == 9
    assert grants.requests.in_use == 0


@pytest.mark.parametrize("client", [fsspec_http, obstore_http])
def test_no_memory_is_held_until_the_next_attempt(
    client: Callable[[str], Store], server: ObjectServer, waits: Waits
) -> None:
    """With obstore, a thread waits for that of its request."""
    ds = served(server, client)
    other = lazily(LatencyStore(written(1, 4), 0.0))
    waits.meanwhile = partial(aioxarray.load_async, other, timeout=PATIENCE_S)
    server.fail(CHUNKS, 503, times=1)
    with config.set(memory=1):
        xr.testing.assert_identical(aioxarray.compute(ds), sample())
    same(other, 1, 4)
    assert len(waits.seconds) == 1


def test_giving_up_ends_the_wait_of_a_blocking_call(server: ObjectServer, waits: Waits) -> None:
    begun: Future[None] = Future()
    ended: Future[None] = Future()

    async def for_ever() -> None:
        begun.set_result(None)
        try:
            await asyncio.Event().wait()
        finally:
            ended.set_result(None)

    waits.meanwhile = for_ever
    ds = served(server, obstore_http)
    # Small chunks of a server nearby are read in threads; the first of them measures how near.
    server.fail("*/v/0.0", 503, times=1)

    async def main() -> None:
        task = asyncio.create_task(aioxarray.load_async(ds))
        await asyncio.wrap_future(begun)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wrap_future(ended)
        # Blocking calls for other chunks go on until the server answers.
        await budgets.until_free()

    asyncio.run(main())


# --- what the error says -------------------------------------------------------------------------


def test_the_error_tells_the_attempts(server: ObjectServer, waits: Waits) -> None:
    ds = served(server, fsspec_http)
    server.fail("*/v/7.0", 403)
    server.fail("*/v/7.0", 429, times=1, retry_after=4)
    server.fail("*/v/7.0", 503, times=2, retry_after=4)
    with pytest.raises(Exception, match="403") as caught:
        aioxarray.load(ds)
    assert (
        "4 attempts over 12.0 s: 2 x HTTP 503, HTTP 429, HTTP 403; this error cannot be retried"
    ) in notes(caught.value)


def test_the_error_shows_no_secret(server: ObjectServer) -> None:
    from zarr.storage import FsspecStore

    host = server.url.removeprefix("http://")
    kind: Any = FsspecStore
    store = kind.from_url(
        f"http://user:hunter2@{host}/bucket/data", storage_options={"skip_instance_cache": True}
    )
    closed_later(store)
    server.fail("*a", 503)
    with config.set({"retry.attempts": 2}), pytest.raises(Exception, match="503") as caught:
        get(store)
    assert "2 attempts" in notes(caught.value)
    assert "hunter2" not in notes(caught.value)


def test_retries_can_be_turned_off(server: ObjectServer, waits: Waits) -> None:
    server.fail("*a", 503, times=1)
    with config.set({"retry.attempts": 1}), pytest.raises(Exception, match="503") as caught:
        get(fsspec_http(server.url))
    assert "1 attempt: HTTP 503; attempts exhausted (retry.attempts=1)" in notes(caught.value)
    assert not waits.seconds


def test_each_attempt_is_observed() -> None:
    class Attempts(Seen):
        def __init__(self) -> None:
            super().__init__()
            self.started_with: list[int] = []

        def started(self, request: Request) -> None:
            super().started(request)
            self.started_with.append(request.attempt)

    store = MemoryStore()
    write(store, "set", "a", VALUE)
    faulty = FaultyStore(store, lambda index, _: ConnectionError() if index < 2 else None)
    with observed(seen := Attempts()):
        assert get(faulty) == b"new"
    assert seen.started_with == [1, 2, 3]
    assert (len(seen.failed_with), len(seen.done_with)) == (2, 1)
