"""The errors of requests that failed for good: one class for each failure, whichever the client."""

from __future__ import annotations

import copy
import itertools
import pickle
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import botocore.exceptions
import numpy as np
import obstore.exceptions
import pytest
import xarray as xr
from zarr.storage import MemoryStore

import aioxarray
from aioxarray import errors
from aioxarray._runtime.loops import run_blocking
from aioxarray._zarr.stores.calls import current_call
from aioxarray._zarr.stores.request import Request
from aioxarray._zarr.stores.retries.errors import failure_of
from aioxarray._zarr.stores.retries.translation import translated
from aioxarray.config import config
from aioxarray.testing import FaultyStore, ObjectServer
from tests.concurrency import clients
from tests.concurrency.sessions import closed_later
from tests.samples import stored

if TYPE_CHECKING:
    from zarr.abc.store import Store

CLIENTS = clients.CLIENTS
# What these clients raise themselves today; the errors of s3fs are builtin ones.
OWN: dict[str, tuple[type[Exception], ...]] = {
    "fsspec_http": (aiohttp.ClientError, OSError),
    "s3fs": (botocore.exceptions.BotoCoreError, OSError),
    "obstore_http": (obstore.exceptions.BaseError,),
    "obstore_s3": (obstore.exceptions.BaseError,),
    # No class can be an OSError, too.
    "icechunk": (OSError,),
}
# The failures, the classes of their errors, and the builtin ones of these.
FAULTS: dict[Any, tuple[type[errors.AioxarrayError], type[Exception]]] = {
    401: (errors.AccessDeniedError, PermissionError),
    403: (errors.AccessDeniedError, PermissionError),
    400: (errors.RefusedError, OSError),
    429: (errors.ThrottledError, ConnectionError),
    500: (errors.ServerUnavailableError, ConnectionError),
    502: (errors.ServerUnavailableError, ConnectionError),
    "reset": (errors.UnreachableError, ConnectionError),
    "truncate": (errors.UnreachableError, ConnectionError),
}


def sample() -> xr.Dataset:
    data = np.random.default_rng(0).random((4, 100))
    ds = xr.Dataset({"v": (("y", "x"), data)})
    ds["v"].encoding["chunks"] = (1, 100)
    return ds


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the objects of a bucket with the sample: as Zarr, and in a repository of icechunk."""
    import icechunk as ice

    root = tmp_path_factory.mktemp("repo")
    repo = ice.Repository.create(ice.local_filesystem_storage(str(root)))
    session = repo.writable_session("main")
    sample().to_zarr(session.store, consolidated=False, zarr_format=3)
    session.commit("data")
    files: list[Path] = [each for each in root.rglob("*") if each.is_file()]
    found = {f"bucket/repo/{each.relative_to(root)}": each.read_bytes() for each in files}
    for key, value in stored(sample(), zarr_format=2)._store_dict.items():
        found[f"bucket/data/{key}"] = value.to_bytes()
    return found


@pytest.fixture
def server(objects: dict[str, bytes]) -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        for key, value in objects.items():
            server.put(key, value)
        yield server


def client_of(name: str, server: ObjectServer) -> Store:
    url = f"{server.url}/bucket/data" if name.endswith("_http") else server.url
    return closed_later(CLIENTS[name](url))


def open_(store: Any) -> Any:
    with warnings.catch_warnings():
        # icechunk has no consolidated metadata.
        warnings.simplefilter("ignore", RuntimeWarning)
        return aioxarray.open_zarr(store)


def load(store: Any) -> Callable[[], Any]:
    ds = open_(store)
    return lambda: aioxarray.load(ds)


def open_again(store: Any) -> Callable[[], Any]:
    return lambda: open_(store)


NEW: dict[str, Any] = {"group": "new", "consolidated": False, "zarr_format": 3}


def save(store: Any) -> Callable[[], Any]:
    return lambda: aioxarray.to_zarr(sample(), store, **NEW)


def append(store: Any) -> Callable[[], Any]:
    save(store)()
    return lambda: aioxarray.to_zarr(sample(), store, **NEW, append_dim="y")


def region(store: Any) -> Callable[[], Any]:
    save(store)()
    part = sample().isel(y=slice(0, 1))
    return lambda: aioxarray.to_zarr(part, store, **NEW, region={"y": slice(0, 1)})


def dask(store: Any) -> Callable[[], Any]:
    ds = open_(store).chunk(y=2)
    return lambda: aioxarray.load(ds)


def tree(store: Any) -> Callable[[], Any]:
    ds = xr.DataTree(open_(store))
    return lambda: aioxarray.load(ds)


def plain(store: Any) -> Callable[[], Any]:
    """Read with zarr itself, which uses aioxarray's pipeline."""
    import zarr

    with zarr.config.set({"codec_pipeline.path": "aioxarray.CodecPipeline"}):
        array: Any = zarr.open_group(store, mode="r")["v"]
    return lambda: array[...]


@contextmanager
def one_attempt_more() -> Iterator[None]:
    with config.set({"retry.attempts": 2, "retry.backoff_s": 0}):
        yield


def failed(call: Callable[[], Any]) -> Any:
    with one_attempt_more(), pytest.raises(errors.AioxarrayError) as caught:
        call()
    return caught.value


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", ()))


def check(error: Any, client: str, fault: Any, store: str) -> None:
    """Check the class, the builtin class, the cause, the message and the notes of an error."""
    kind, builtin = FAULTS[fault]
    assert isinstance(error, kind)
    assert type(error).__name__ == kind.__name__
    assert isinstance(error, builtin)
    assert isinstance(error, OWN[client])
    assert isinstance(error.__cause__, Exception)
    assert not isinstance(error.__cause__, errors.AioxarrayError)
    assert str(error).startswith("could not ")
    assert store in str(error)
    assert store in notes(error)
    # icechunk does not repeat requests whose body breaks off.
    left_out = (client, fault) == ("icechunk", "truncate")
    by_itself = "by itself" in notes(error) and not left_out
    is_final = not isinstance(error, errors.TryAgainError)
    assert error.attempts == (1 if by_itself or is_final else 2)
    assert f"{error.attempts} attempt" in notes(error)


NAMES = {
    "fsspec_http": "/bucket/data'",
    "obstore_http": "/bucket/data'",
    "s3fs": "'s3://bucket/data'",
    "obstore_s3": "'s3://bucket/data'",
    "icechunk": "icechunk session on branch 'main'",
}


def in_turn(names: Iterable[str], first: list[Any], others: list[Any]) -> list[Any]:
    """Return all faults for the ``first`` verbs and two for the ``others``, each with a client."""
    pairs = [(verb, fault) for verb in first for fault in FAULTS]
    pairs += [(verb, fault) for verb in others for fault in (403, "reset")]
    # icechunk retries by itself for half a minute.
    slow = {"icechunk": [pytest.mark.slow]}
    return [
        pytest.param(
            name, verb, fault, id=f"{verb.__name__}-{fault}-{name}", marks=slow.get(name, [])
        )
        for (verb, fault), name in zip(pairs, itertools.cycle(names), strict=False)
    ]


@pytest.mark.parametrize(("client", "verb", "fault"), in_turn(CLIENTS, [load], [dask, tree, plain]))
def test_a_failed_read(
    client: str, fault: Any, verb: Callable[[Any], Callable[[], Any]], server: ObjectServer
) -> None:
    call = verb(client_of(client, server))
    server.fail("*", fault)
    error = failed(call)
    check(error, client, fault, NAMES[client])
    assert "could not read 'v/" in str(error)
    assert "in chunk 'v/" in notes(error)
    if verb is not plain:
        assert "variable 'v'" in notes(error)


@pytest.mark.parametrize(
    ("client", "verb", "fault"),
    in_turn([name for name in CLIENTS if name != "icechunk"], [open_again], []),
)
def test_a_failed_open(
    client: str, fault: Any, verb: Callable[[Any], Callable[[], Any]], server: ObjectServer
) -> None:
    call = verb(client_of(client, server))
    server.fail("*", fault)
    error = failed(call)
    check(error, client, fault, NAMES[client])
    assert "in request for '" in notes(error)
    assert "while opening '" in notes(error)


def test_icechunk_does_not_hide_that_its_snapshot_cannot_be_read(server: ObjectServer) -> None:
    # It answers that there is no group.
    server.fail("*/snapshots/*", 403)
    store = client_of("icechunk", server)
    check(failed(open_again(store)), "icechunk", 403, NAMES["icechunk"])


@pytest.mark.parametrize(
    ("client", "verb", "fault"), in_turn(clients.WRITERS, [save], [append, region])
)
def test_a_failed_save(
    client: str, fault: Any, verb: Callable[[Any], Callable[[], Any]], server: ObjectServer
) -> None:
    if fault == "truncate":
        # The answer to a PUT has no body.
        fault = "reset"
    call = verb(client_of(client, server))
    server.fail("*", fault, method="PUT")
    error = failed(call)
    check(error, client, fault, NAMES[client])
    assert "could not write 'new/v/c/" in str(error)
    assert "in chunk " in notes(error)
    assert "while saving variable 'new/v'" in notes(error)
    assert "while saving to " in notes(error)


def test_a_failed_open_of_many_files(server: ObjectServer) -> None:
    server.fail("*", 403)
    url = f"{server.url}/bucket/data"
    error = failed(lambda: aioxarray.open_mfdataset([url, url], engine="zarr"))
    check(error, "fsspec_http", 403, NAMES["fsspec_http"])


@pytest.mark.parametrize("fault", [403, 500])
def test_a_failed_netcdf_file(fault: Any, server: ObjectServer, tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((2400, 1000))
    xr.Dataset({"v": (("y", "x"), data)}).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    server.put("a.nc", (tmp_path / "a.nc").read_bytes())
    url = f"{server.url}/a.nc"
    with aioxarray.open_dataset(url, engine="h5netcdf") as ds:
        server.fail("*", fault)
        error = failed(lambda: aioxarray.load(ds))
    check(error, "fsspec_http", fault, f"'HTTPFile of {url}'")
    assert "variable 'v'" in notes(error)


def test_the_size_of_a_netcdf_file_is_requested_again(server: ObjectServer, tmp_path: Path) -> None:
    sample().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    server.put("a.nc", (tmp_path / "a.nc").read_bytes())
    url = f"{server.url}/a.nc"
    # fsspec sends HEAD, and then GET.
    server.fail("a.nc", 503, times=2)
    with one_attempt_more(), aioxarray.open_dataset(url, engine="h5netcdf") as ds:
        xr.testing.assert_identical(ds.load(), sample())
    server.fail("a.nc", 503)
    error = failed(lambda: aioxarray.open_dataset(url, engine="h5netcdf"))
    assert isinstance(error, errors.ServerUnavailableError)
    assert not isinstance(error, FileNotFoundError)
    assert error.attempts == 2
    assert f"could not look for '{url}'" in str(error)


def test_a_missing_file_is_missing(server: ObjectServer) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        aioxarray.open_dataset(f"{server.url}/none.nc", engine="h5netcdf")
    assert not isinstance(caught.value, errors.AioxarrayError)


@pytest.mark.parametrize("status", [404, 403, 503])
def test_existence_over_http(status: int, server: ObjectServer) -> None:
    from aioxarray._zarr.stores import grants
    from aioxarray._zarr.stores.limited import LimitedStore

    store = client_of("fsspec_http", server)

    async def exists(key: str) -> bool:
        with grants.requests.share(1) as places:
            return await LimitedStore(store, places).exists(key)

    assert run_blocking(lambda: exists(".zgroup"))
    server.fail("*/.zgroup", status)
    if status == 503:
        error = failed(lambda: run_blocking(lambda: exists(".zgroup")))
        assert isinstance(error, errors.ServerUnavailableError)
    else:
        assert not run_blocking(lambda: exists(".zgroup"))


# --- timeouts ------------------------------------------------------------------------------------


def test_a_timeout_names_the_variable_and_the_chunk(server: ObjectServer) -> None:
    ds = open_(client_of("fsspec_http", server))
    server.fail("*/v/*", "stall")
    with pytest.raises(errors.TimedOutError) as caught:
        aioxarray.load(ds, timeout=2)
    assert isinstance(caught.value, TimeoutError)
    assert "waiting for 'v/" in str(caught.value)
    assert f" of {server.url}/bucket/data" in str(caught.value)
    assert notes(caught.value) == "while waiting for variable 'v'"


def test_a_call_names_the_variables_that_are_computed() -> None:
    import dask
    import dask.array

    found = []

    def look(block: Any) -> Any:
        call = current_call()
        assert call is not None
        found.append((call.state(), call.awaited()))
        return block

    data = dask.array.zeros(4, chunks=4).map_blocks(look, dtype="f8", meta=np.zeros(0))
    ds = xr.Dataset({f"v{i}": ("x", data + i) for i in range(6)})
    with dask.config.set(scheduler="sync"):
        aioxarray.load(ds)
    state, awaited = found[0]
    assert state == "0 of 192 bytes had arrived; waiting for variable 'v0' and 5 more"
    assert awaited == "variable 'v0', variable 'v1', variable 'v2' and 3 more"


# --- the classes ---------------------------------------------------------------------------------


def of_client(error: Exception, kind: Any = "get") -> Any:
    """Return the error that users see for one that a client raised."""
    return translated(error, failure_of(error), Request(kind, MemoryStore(), "v/0"), 1)


def is_each(error: object, *kinds: type[Exception]) -> bool:
    return all(isinstance(error, kind) for kind in kinds)


def response_error(status: int) -> aiohttp.ClientResponseError:
    info: Any = None
    return aiohttp.ClientResponseError(info, (), status=status, message="no")


def test_handlers_of_a_client_still_work() -> None:
    error = of_client(response_error(503))
    assert is_each(error, aiohttp.ClientResponseError, errors.ServerUnavailableError)
    assert (error.status, error.message) == (503, "no")
    assert of_client(response_error(500)).__class__ is error.__class__


def test_an_error_caused_by_another_one_of_these() -> None:
    first = of_client(response_error(503))
    second = RuntimeError("the store's own words")
    second.__cause__ = first
    error = of_client(second)
    assert is_each(error, errors.ServerUnavailableError, RuntimeError)
    assert not is_each(error, aiohttp.ClientResponseError)
    damaged = RuntimeError("the store's own words")
    damaged.__cause__ = errors.DamagedDataError("the checksum is wrong")
    assert of_client(damaged) is damaged


def test_handlers_of_a_users_own_store_still_work() -> None:
    class StoreError(Exception):
        def __init__(self, reason: str, *, code: int) -> None:
            super().__init__(reason)
            self.code = code

    store = FaultyStore(stored(sample()), lambda *_: StoreError("the store is busy", code=503))
    with one_attempt_more(), pytest.raises(StoreError) as caught:
        open_(store)
    assert isinstance(caught.value, errors.ServerUnavailableError)
    assert caught.value.code == 503
    assert "HTTP 503" in str(caught.value)


@pytest.mark.parametrize("make", [lambda: response_error(503), lambda: ConnectionError("cut")])
def test_errors_can_be_pickled_and_copied(make: Callable[[], Exception]) -> None:
    error = of_client(make())
    error.add_note("a note")
    got = pickle.loads(pickle.dumps(error))
    # Another process may not have the client.
    kind = errors.ServerUnavailableError if error.status else errors.UnreachableError
    assert type(got) is kind
    assert (str(got), got.attempts, got.__notes__) == (str(error), 1, ["a note"])
    copied = copy.copy(error)
    assert type(copied) is type(error)
    assert (str(copied), copied.attempts, copied.__notes__) == (str(error), 1, ["a note"])


@pytest.mark.parametrize(
    "error",
    [
        ValueError("cannot decode"),
        KeyError("v/0"),
        FileNotFoundError("v/0"),
        FileExistsError("v/0"),
        OSError(28, "No space left on device"),
        PermissionError(13, "Permission denied", "/data/v/0"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    assert of_client(error) is error


def test_a_missing_file_that_hides_a_failure_is_none() -> None:
    hidden = FileNotFoundError("v/0")
    hidden.__cause__ = response_error(503)
    error = of_client(hidden)
    assert isinstance(error, errors.ServerUnavailableError)
    assert not isinstance(error, FileNotFoundError)


@pytest.mark.parametrize(
    ("kind", "expected"), [("get", errors.DataChangedError), ("set", errors.RefusedError)]
)
def test_what_is_gone_when_it_is_read_has_been_deleted(kind: Any, expected: Any) -> None:
    error = of_client(response_error(410), kind)
    assert isinstance(error, expected)
    assert not isinstance(error, FileNotFoundError)


def test_a_certificate_is_not_trusted() -> None:
    import ssl

    error = of_client(ssl.SSLCertVerificationError("certificate verify failed"))
    assert isinstance(error, errors.UntrustedServerError)
    assert not isinstance(error, errors.TryAgainError)


def every_class() -> list[type[errors.AioxarrayError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [value for value in found if issubclass(value, errors.AioxarrayError)]


def test_each_class_is_a_builtin_one_and_something_to_do() -> None:
    todo = set(errors.AioxarrayError.__subclasses__())
    assert {each.__name__ for each in todo} >= {
        "TryAgainError",
        "AskForLessError",
        "WrongRequestError",
        "ReopenError",
    }
    for each in every_class():
        if each is errors.AioxarrayError or each in todo:
            continue
        assert len([branch for branch in todo if issubclass(each, branch)]) == 1
        builtin = [base for base in each.__mro__ if base.__module__ == "builtins"]
        assert builtin[0] not in (Exception, BaseException, object)
        assert f"        {each.__name__} " in (errors.__doc__ or "")
        assert f" {builtin[0].__name__} " in (errors.__doc__ or "")
