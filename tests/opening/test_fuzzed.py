"""Damaged stores: what plain xarray reads, or an error that names what is damaged.

Metadata documents are changed as JSON (a key less, another type, odd numbers) and as bytes; chunks
and shards as bytes. Never a crash or a hang, and never more memory than the declared sizes.
"""

from __future__ import annotations

import copy
import functools
import json
import random
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import xarray as xr
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

import aioxarray
from aioxarray.testing import RecordingStore

pytestmark = pytest.mark.filterwarnings("ignore")

# More is declared only by a change, and then not loaded.
MOST_BYTES = 1 << 20
PATIENCE_S = 60.0
# What a load may take beside the values: the code that it imports, documents, chunks.
ALLOWANCE = 16 << 20

Contents = dict[str, bytes]


def sample() -> xr.Dataset:
    return xr.Dataset(
        {
            "numbers": (("t", "x"), np.arange(24.0).reshape(4, 6), {"units": "K"}),
            "packed": ("x", np.arange(6.0), {}, {"dtype": "i2", "_FillValue": -1}),
            "text": ("x", np.array(["a", "bc", "", "d", "é", "f"])),
        },
        {"t": np.array(["2001-01-01", "2001-01-02", "2001-01-03", "2001-01-04"], "M8[ns]")},
        {"title": "sample"},
    )


@functools.cache
def stored(zarr_format: int, consolidated: bool) -> Contents:
    store = MemoryStore()
    sample().to_zarr(
        store,
        zarr_format=zarr_format,
        consolidated=consolidated,
        encoding={"numbers": {"chunks": (2, 3)}},
    )
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


CODECS: dict[str, dict[str, Any]] = {
    "none": {"compressors": None},
    "zstd": {},
    "gzip": {"compressors": GzipCodec()},
    "blosc": {"compressors": BloscCodec(cname="lz4")},
    "checksum": {"compressors": [Crc32cCodec()]},
    "shards": {"shards": (4, 6)},
    "raw shards": {"shards": (4, 6), "compressors": None},
    "format 2": {},
}


@functools.cache
def chunked(kind: str) -> Contents:
    store = MemoryStore()
    encoding = {"chunks": (2, 3), **CODECS[kind]}
    sample()[["numbers"]].to_zarr(
        store,
        zarr_format=2 if kind == "format 2" else 3,
        consolidated=False,
        encoding={"numbers": encoding},
    )
    return {key: value.to_bytes() for key, value in store._store_dict.items()}


def store_of(contents: Contents) -> MemoryStore:
    buffer = default_buffer_prototype().buffer
    return MemoryStore({key: buffer.from_bytes(value) for key, value in contents.items()})


# --- changes -------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2**31, 2**62, 2**63, 2**70, -(2**63), 0.5, 1e300,
    float("nan"), float("inf"), "", "x", "NaN", "Infinity", "0x7fc00000", "<f8", "|O", "float32",
    "int8", "string", "zstd", "C", "F", "/", ".", "..", "é", "\0", "a" * 5000, [], [1], [-1], [0],
    [None], ["x"], [2**62], [2, 3], [3, 2], [4, 6, 1], {}, {"a": 1}, {"name": "x"},
    {"name": "bytes", "configuration": {"endian": "middle"}}, nested(50),
]  # fmt: skip


def places(document: Any) -> list[tuple[Any, Any]]:
    """Return all (container, key) in a JSON document."""
    found: list[tuple[Any, Any]] = []
    if isinstance(document, dict | list):
        items = document.items() if isinstance(document, dict) else enumerate(document)
        for key, item in items:
            found.append((document, key))
            found += places(item)
    return found


def change_json(rng: random.Random, data: bytes) -> bytes:
    document = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        where = places(document)
        if not where:
            break
        container, key = rng.choice(where)
        match rng.randrange(4):
            case 0:
                del container[key]
            case 1 if isinstance(container, dict):
                container[rng.choice(["x", "shape", "codecs", "", "consolidated_metadata"])] = (
                    container.pop(key)
                )
            case 2:
                # A part of the document in the place of another.
                other, name = rng.choice(where)
                container[key] = copy.deepcopy(
                    other[name]
                    if (name in other if isinstance(other, dict) else True)
                    and (isinstance(other, dict) or name < len(other))
                    else None
                )
            case _:
                container[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def change_bytes(rng: random.Random, data: bytes) -> bytes:
    if not data:
        return b"x"
    at = rng.randrange(len(data))
    match rng.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data + data[:at]
        case 2:
            return data[at:] + data[:at]
        case 3:
            return rng.randbytes(len(data))
        case 4:
            # Lengths and offsets in headers and in the indexes of shards.
            number = rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1])
            return data[:at] + number.to_bytes(8, "little") + data[at + 8 :]
        case _:
            flipped = bytearray(data)
            for _ in range(rng.choice([1, 1, 2, 8])):
                flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            return bytes(flipped)


def is_document(key: str) -> bool:
    return key.rpartition("/")[2].startswith((".z", "zarr.json"))


# --- the check -----------------------------------------------------------------------------------


def outcome_of(function: Callable[[], xr.Dataset]) -> xr.Dataset | Exception:
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - compared by the caller
        return error


def text_of(error: BaseException | None) -> str:
    """Return all that a user sees of an error and of its causes."""
    parts: list[str] = []
    while error is not None:
        parts += [str(error), *getattr(error, "__notes__", [])]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(parts)


def is_too_large(ds: xr.Dataset) -> bool:
    # Sizes of chunks too: a chunk is decoded as a whole.
    sizes = [each.nbytes for each in ds.variables.values()]
    for each in ds.variables.values():
        shapes = (each.encoding.get("chunks"), each.encoding.get("shards"))
        sizes += [each.dtype.itemsize * int(np.prod([float(n) for n in s])) for s in shapes if s]
    return max(sizes, default=0) > MOST_BYTES


def plainly(contents: Contents, zarr_format: int | None, consolidated: bool | None) -> Any:
    ds = xr.open_zarr(
        store_of(contents), chunks=None, zarr_format=zarr_format, consolidated=consolidated
    )
    return ds if is_too_large(ds) else ds.load()


def ours(contents: Contents, zarr_format: int | None, consolidated: bool | None) -> Any:
    ds = aioxarray.open_zarr(
        RecordingStore(store_of(contents)),
        zarr_format=zarr_format,
        consolidated=consolidated,
        timeout=PATIENCE_S,
    )
    return ds if is_too_large(ds) else aioxarray.load(ds, timeout=PATIENCE_S, max_bytes=MOST_BYTES)


def check(contents: Contents, key: str, zarr_format: int | None, consolidated: bool | None) -> None:
    """Check what is read of a store in which the value of ``key`` was changed."""
    plain = outcome_of(lambda: plainly(contents, zarr_format, consolidated))
    tracemalloc.start()
    try:
        got = outcome_of(lambda: ours(contents, zarr_format, consolidated))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < ALLOWANCE
    if isinstance(got, Exception):
        name = key.partition("/")[0]
        assert not isinstance(got, AssertionError | TimeoutError), text_of(got)
        if not is_document(key):
            assert key in text_of(got), text_of(got)
        else:
            assert isinstance(plain, Exception), text_of(got)
            text = text_of(got)
            # zarr's own error if a group has lost its consolidated metadata names that.
            # So does xarray's for an attribute _FillValue. A wrong dtype shows in a chunk.
            names = [
                key,
                "onsolidated metadata",
                "fill_value",
                f"'{name}/",
                *map(repr, [name, *sample().variables]),
            ]
            assert any(each in text for each in names), text
    else:
        assert not isinstance(plain, Exception), text_of(plain)
        xr.testing.assert_identical(got, plain)


def fuzz_metadata(rng: random.Random, zarr_format: int, consolidated: bool) -> None:
    contents = dict(stored(zarr_format, consolidated))
    documents = [key for key in sorted(contents) if is_document(key)]
    key = rng.choice(documents)
    change = change_json if rng.random() < 0.8 else change_bytes
    contents[key] = change(rng, contents[key])
    check(contents, key, rng.choice([zarr_format, None]), consolidated)


def fuzz_chunk(rng: random.Random, kind: str) -> None:
    contents = dict(chunked(kind))
    chunks = [key for key in sorted(contents) if re.fullmatch(r"numbers/(c/)?\d+[./]\d+", key)]
    key = rng.choice(chunks)
    contents[key] = change_bytes(rng, contents[key])
    check(contents, key, None, False)


metadata = pytest.mark.parametrize(
    ("zarr_format", "consolidated"), [(2, False), (2, True), (3, False), (3, True)]
)


@metadata
def test_changed_metadata(zarr_format: int, consolidated: bool) -> None:
    rng = random.Random(f"{zarr_format} {consolidated}")
    for _ in range(20):
        fuzz_metadata(rng, zarr_format, consolidated)


@pytest.mark.slow
@metadata
@pytest.mark.parametrize("seed", ["a", "b"])
def test_more_changed_metadata(zarr_format: int, consolidated: bool, seed: str) -> None:
    rng = random.Random(f"{seed} {zarr_format} {consolidated}")
    for _ in range(50):
        fuzz_metadata(rng, zarr_format, consolidated)


@pytest.mark.parametrize("kind", CODECS)
def test_changed_chunks(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(8):
        fuzz_chunk(rng, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CODECS)
def test_more_changed_chunks(kind: str) -> None:
    rng = random.Random(f"a {kind}")
    for _ in range(50):
        fuzz_chunk(rng, kind)
