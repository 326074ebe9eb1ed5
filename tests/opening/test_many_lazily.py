"""Lazy arrays over many files (``chunks=None``): values and types are those of plain xarray.

Plain xarray is asked twice: for dask arrays, and to combine what is loaded.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from xarray.core import indexing
from zarr.storage import MemoryStore

import aioxarray
from aioxarray._xarray.opening.combining import combine_by_coords, combine_nested
from aioxarray._xarray.opening.placeholders import CannotCombineLazily
from aioxarray.testing import RecordingStore
from tests.opening.helpers import Way, own_ways
from tests.oracle import assert_same, lazy

NESTED: dict[str, Any] = {"data_vars": "all", "compat": "override", "coords": "minimal"}


class Held(xr.backends.BackendArray):  # type: ignore[misc, unused-ignore]
    """A backend's array over values in memory."""

    def __init__(self, values: np.ndarray[Any, Any]) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, key: Any) -> Any:
        return indexing.apply_indexer(indexing.as_indexable(self.values), key)


def lazily(ds: xr.Dataset) -> xr.Dataset:
    """Return ``ds`` with lazy data in all but its indexes."""
    new = ds.copy()
    for name in set(ds.variables) - set(ds.xindexes):
        variable = ds.variables[name]
        held: Any = indexing.LazilyIndexedArray(Held(variable.to_numpy()))
        # Private: `xarray.open_dataset` does the same. The public ways load it.
        new.variables[name]._data = held
    return new


def outcome(function: Any) -> Any:
    """Return what ``function`` returns, or the type of what it raises."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - compared with another's
        return type(error)


def assert_same_outcome(got: Any, plain: Any) -> None:
    if isinstance(plain, type) or isinstance(got, type):
        assert got is plain
    else:
        assert_same(got.load(), plain.load())


# --- types --------------------------------------------------------------------------------------

NUMBERS = "i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 >i4 >f8"
TYPES: dict[str, np.ndarray[Any, Any]] = {
    "U1": np.array(["a", "é"]),
    "U4": np.array(["abcd", "日本"]),
    "S1": np.array([b"a", b"b"]),
    "S4": np.array([b"abcd", b"c"]),
    "objects": np.array(["abc", ""], dtype=object),
    "strings": np.array(["abc", "defgh"], dtype=np.dtypes.StringDType()),
    "bool": np.array([True, False]),
    "M8[s]": np.array(["2001-01-01", "2002-02-02"], dtype="M8[s]"),
    "M8[ns]": np.array(["2001-01-01", "2002-02-02"], dtype="M8[ns]"),
    "m8[s]": np.array([1, 2], dtype="m8[s]"),
    "m8[ns]": np.array([1, 2], dtype="m8[ns]"),
    "structured": np.array([(1, 2.0), (3, 4.0)], dtype=[("a", "i4"), ("b", "f8")]),
    **{name: np.array([1, 2]).astype(name) for name in NUMBERS.split()},
}


@pytest.mark.parametrize("first", TYPES)
def test_each_type_meets_each_other_as_in_memory(first: str) -> None:
    for second in TYPES:
        parts = [
            xr.Dataset({"data": ("n", TYPES[each])}, {"coord": ("n", TYPES[each])})
            for each in (first, second)
        ]
        plain = outcome(lambda parts=parts: xr.combine_nested(parts, "n", **NESTED))
        parts = [lazily(each) for each in parts]
        got = outcome(lambda parts=parts: combine_nested(parts, "n", NESTED))
        assert_same_outcome(got, plain)


TEXTS = {"U1", "U4", "S1", "S4", "objects", "strings"}
STORED = ["U1", "U4", "S1", "S4", "objects", "strings", "bool", "M8[s]", "i2", "f4"]
FORMATS = [
    "h5netcdf",
    "scipy",
    "zarr 3",
    # Much as the others.
    pytest.param("netcdf4", marks=pytest.mark.slow),
    pytest.param("zarr 2", marks=pytest.mark.slow),
]


def saved(ds: xr.Dataset, form: str, path: Path) -> str:
    """Save ``ds`` in one of the formats; return where."""
    if form.startswith("zarr"):
        ds.to_zarr(path, zarr_format=3 if form == "zarr 3" else 2)
    else:
        engine: Any = form
        ds.to_netcdf(path, engine=engine)
    return str(path)


@pytest.mark.matrix(together=0)
@pytest.mark.filterwarnings("ignore:The data type:UserWarning:zarr")
@pytest.mark.filterwarnings("ignore:The dtype:UserWarning:zarr")
@pytest.mark.parametrize("form", FORMATS)
def test_types_of_files_meet_as_plain_xarrays_do(form: str, tmp_path: Path) -> None:
    # All pairs in two files: opening many of them would take long.
    pairs = [
        pair
        for pair in itertools.product(STORED, repeat=2)
        # numpy joins dates with nothing but dates, and Zarr's texts of any length with texts.
        if len({*pair}) == 1
        or not {*pair} & {"M8[s]", "objects", "strings"}
        or not {*pair} - {"U1", "U4", "objects", "strings"}
    ]
    paths = []
    for side in range(2):
        of_side = {f"{a}_{b}".replace("[s]", ""): ("n", TYPES[(a, b)[side]]) for a, b in pairs}
        texts = {name: each for name, each in of_side.items() if not {*name.split("_")} - TEXTS}
        ds = xr.Dataset(of_side, {f"coord_{name}": each for name, each in texts.items()})
        paths.append(saved(ds, form, tmp_path / str(side)))
    options: dict[str, Any] = {"engine": form.split()[0]}
    parts = [xr.load_dataset(path, **options) for path in paths]
    in_memory = xr.combine_nested(parts, "n", combine_attrs="override")
    options |= {"combine": "nested", "concat_dim": "n"}
    with xr.open_mfdataset(paths, **options) as plain:
        expected = plain.load()
    with aioxarray.open_mfdataset(paths, chunks=None, **options) as got:
        assert lazy(got)
        got.load()
        assert {name: each.dtype for name, each in got.variables.items()} == {
            name: each.dtype for name, each in in_memory.variables.items()
        }
        xr.testing.assert_identical(got, in_memory)
        assert_same(got, expected)


# --- indexes that differ, variables that are missing --------------------------------------------


def stored(ds: xr.Dataset) -> MemoryStore:
    store = MemoryStore()
    ds.to_zarr(store, consolidated=False)
    return store


def piece(number: int, x: Sequence[int], **more: Any) -> xr.Dataset:
    """Return a part of a dataset, with a variable of each type that missing values change."""
    size = len(x)
    values = np.arange(2 * size).reshape(2, size) + 100 * number
    return xr.Dataset(
        {
            "number": (("y", "x"), values, {"units": "K"}),
            "small": ("x", values[0].astype("i2")),
            "flag": ("x", values[0] % 2 == 0),
            "text": ("x", np.array(["abcdefgh"[: number + 1]] * size, dtype=f"U{number + 1}")),
            "when": ("x", values[0].astype("M8[s]").astype("M8[ns]")),
            "single": ((), np.float32(number)),
            **more,
        },
        {"x": np.asarray(x, dtype="i8"), "label": ("x", np.array(["z" * (number + 1)] * size))},
    )


def at(number: int, x: Sequence[int], **more: Any) -> xr.Dataset:
    """Return a part that has a dimension ``t`` of its own."""
    part = piece(number, x, **more)
    times = xr.Dataset(coords={"t": np.arange(2) + 2 * number})
    return part.expand_dims(t=2).drop_vars("label").merge(times)


UNEQUAL = [piece(0, [1, 2, 3]), piece(1, [2, 3, 4, 5]), piece(2, [0, 3])]
ROWS = [at(0, [1, 2, 3]), at(1, [2, 3, 4]), at(2, [0, 3])]
EXTRA = {"extra": ("x", np.arange(3, dtype="u1"), {"of": "some"}), "note": ("x", ["p", "q", "r"])}
SOME = [piece(0, [1, 2, 3]), piece(1, [1, 2, 3], **EXTRA), piece(2, [1, 2, 3], **EXTRA)]
GRID = [[at(0, [1, 2]), at(0, [3, 4])], [at(1, [1, 2]), at(1, [4, 5])]]
ALL = {"coords": "all", "data_vars": "all"}
# Those of which each way to join indexes is tried.
ALIGNED = {"a new dimension", "an existing dimension", "by coordinates", "missing variables"}

COMBINED: dict[str, tuple[Any, dict[str, Any]]] = {
    "a new dimension": (UNEQUAL, {"concat_dim": "new", **ALL}),
    "a new dimension with labels": (
        UNEQUAL,
        {"concat_dim": [xr.DataArray([7, 8, 9], dims="new", name="new")], **ALL},
    ),
    "an existing dimension": (ROWS, {"concat_dim": "t"}),
    "an existing dimension for all": (
        [each.assign(fixed=("x", np.arange(each.sizes["x"]))) for each in ROWS],
        {"concat_dim": "t", **ALL},
    ),
    "without a value in common": ([piece(0, [1, 2]), piece(1, [3])], {"concat_dim": "new", **ALL}),
    "without a value": ([piece(0, [1, 2]), piece(1, [])], {"concat_dim": "new", **ALL}),
    "a number that becomes an index": (
        [each.assign_coords(run=10 * n) for n, each in enumerate(UNEQUAL)],
        {"concat_dim": "run", **ALL},
    ),
    "a variable that becomes an index": (
        [each.assign(run=10 * n) for n, each in enumerate(UNEQUAL)],
        {"concat_dim": "run", **ALL},
    ),
    "missing variables": (SOME, {"concat_dim": "new", **ALL}),
    "missing variables at the end": (SOME[::-1], {"concat_dim": "new", **ALL}),
    "missing variables, by default": (
        SOME,
        {"concat_dim": "new", "coords": "minimal", "compat": "override"},
    ),
    "missing variables along a dimension": (
        [ROWS[0], *(each.assign(extra=each.small, note=each.text) for each in ROWS[1:])],
        {"concat_dim": "t"},
    ),
    "missing variables without the dimension": (
        [ROWS[0], *(each.assign(fixed=each.small[0]) for each in ROWS[1:])],
        {"concat_dim": "t", "data_vars": "minimal", "coords": "minimal", "compat": "override"},
    ),
    "missing variables, all wanted": (
        [ROWS[0], *(each.assign(fixed=each.small[0]) for each in ROWS[1:])],
        {"concat_dim": "t", "data_vars": "all"},
    ),
    "missing variables, one wanted": (
        [*(each.assign(fixed=each.small[0]) for each in ROWS[1:]), ROWS[0]],
        {"concat_dim": "t", "data_vars": ["fixed"]},
    ),
    "missing and empty": (
        [piece(0, []), piece(1, [], none=("x", np.empty(0, "i2")), text2=("x", np.empty(0, "U2")))],
        {"concat_dim": "new", **ALL},
    ),
    "a missing coordinate": (
        [UNEQUAL[0], UNEQUAL[1].drop_vars("label")],
        {"concat_dim": "new", **ALL},
    ),
    "a grid": (GRID, {"concat_dim": ["t", "x"]}),
    "a grid of new dimensions": (
        [[UNEQUAL[0], UNEQUAL[1]], [UNEQUAL[2], SOME[1]]],
        {"concat_dim": ["a", "b"], **ALL},
    ),
    "a merge": (
        [UNEQUAL[0], UNEQUAL[1][["small"]].rename(small="other")],
        {"concat_dim": None, "compat": "override"},
    ),
    "a merge, then a dimension": (
        [
            [each.drop_vars("label"), each.drop_vars("label").rename(x="w")]
            for each in (UNEQUAL[0], UNEQUAL[2])
        ],
        {"concat_dim": ["new", None], "compat": "override", "coords": "minimal"},
    ),
    "a dimension of merged ones": (
        [[ROWS[0], ROWS[2]], [ROWS[1][["small"]].rename(small="other")] * 2],
        {"concat_dim": [None, "x"], "compat": "override", "coords": "minimal"},
    ),
    "lists of other lengths": ([[UNEQUAL[0]], UNEQUAL[:2]], {"concat_dim": ["a", "b"]}),
    "too many dimensions": (UNEQUAL, {"concat_dim": ["a", "b"]}),
    "by coordinates": (ROWS, {"combine": "by_coords", "compat": "override", "coords": "minimal"}),
    "by coordinates, other variables": (
        [at(0, [1, 2]), at(1, [1, 2])[["small"]].rename(small="other"), at(2, [1, 2])],
        {"combine": "by_coords", "compat": "override", "coords": "minimal"},
    ),
    "by coordinates, a grid": (
        [each for row in GRID for each in row],
        {"combine": "by_coords", "compat": "override", "coords": "minimal"},
    ),
}


def in_memory(source: Any, options: dict[str, Any]) -> Any:
    """Combine the loaded datasets of the stores of ``source``."""

    def loaded(source: Any) -> Any:
        if isinstance(source, list):
            return [loaded(each) for each in source]
        return xr.load_dataset(source, engine="zarr", consolidated=False)

    how = {"combine_attrs": "override", **options}
    by_coords = how.pop("combine") == "by_coords"
    function: Any = xr.combine_by_coords if by_coords else xr.combine_nested
    # A copy: xarray fills in empty variables with arrays that cannot be written.
    return function(loaded(source), **how).copy(deep=True)


@functools.cache
def stores_of(name: str) -> Any:
    def stores(source: Any) -> Any:
        return [stores(each) for each in source] if isinstance(source, list) else stored(source)

    return stores(COMBINED[name][0])


JOINS = ["outer", "inner", "left", "right", "exact", "override"]


@pytest.mark.matrix(together=0)
@pytest.mark.filterwarnings("ignore:In a future version of xarray:FutureWarning")
@pytest.mark.filterwarnings("ignore:The data type:UserWarning:zarr")
@pytest.mark.filterwarnings("ignore:Numcodecs codecs:UserWarning")
@pytest.mark.parametrize(
    ("name", "join"),
    [
        (name, join)
        for name in COMBINED
        for join in (JOINS if name in ALIGNED else ("outer", "inner"))
    ],
)
def test_other_indexes_and_missing_variables_combine_lazily(name: str, join: str) -> None:
    options = {"combine": "nested", **COMBINED[name][1], "join": join}
    stores = stores_of(name)
    opening = {"engine": "zarr", "consolidated": False, **options}
    got = outcome(lambda: aioxarray.open_mfdataset(stores, chunks=None, **opening))
    if not isinstance(got, type):
        assert lazy(got)
        got.load()
    assert_same_outcome(got, outcome(lambda: in_memory(stores, options)))
    with_dask = outcome(lambda: xr.open_mfdataset(stores, **opening).load().copy(deep=True))
    if with_dask is not NotImplementedError:
        # Which is dask's answer to positions in an array without values.
        assert_same_outcome(got, with_dask)


# --- what takes values --------------------------------------------------------------------------


@pytest.mark.matrix(together=2)
@own_ways
@pytest.mark.filterwarnings("ignore:In a future version of xarray:FutureWarning")
@pytest.mark.parametrize(
    "compat", ["identical", "equals", "broadcast_equals", "no_conflicts", "override"]
)
@pytest.mark.parametrize("combine", ["nested", "by_coords", "merge"])
def test_comparing_is_refused_and_names_the_variable(combine: str, compat: str, way: Way) -> None:
    parts = [at(n, [1, 2]).assign_coords(area=("x", [5.0, 6.0])) for n in range(2)]
    options: dict[str, Any] = {"compat": compat, "coords": "minimal", "data_vars": "minimal"}
    options["combine"] = "by_coords" if combine == "by_coords" else "nested"
    if combine == "merge":
        parts = [parts[0][["small"]], parts[0][["text"]]]
        options["concat_dim"] = None
    elif combine == "nested":
        options["concat_dim"] = "t"
    opening = {"engine": "zarr", "consolidated": False, **options}
    stores = [stored(each) for each in parts]
    with xr.open_mfdataset(stores, **opening) as plain:
        expected = plain.load()
    if compat == "override":
        assert_same(way("open_mfdataset", stores, chunks=None, **opening).load(), expected)
        return
    with pytest.raises(CannotCombineLazily, match=r"comparing the variable 'area'") as refused:
        way("open_mfdataset", stores, chunks=None, **opening)
    # The ways out lead out.
    assert "compat='override'" in str(refused.value)
    assert "preprocess=lambda ds: ds.assign({'area': ds['area'].load()})" in str(refused.value)
    assert "drop_variables='area'" in str(refused.value)

    def preprocess(ds: xr.Dataset) -> xr.Dataset:
        return ds.assign({"area": ds["area"].load()})

    opening["chunks"] = None
    got = way("open_mfdataset", stores, preprocess=preprocess, **opening)
    assert lazy(got)
    xr.testing.assert_identical(got.load(), expected)
    got = way("open_mfdataset", stores, drop_variables="area", **opening)
    xr.testing.assert_identical(got.load(), expected.drop_vars("area"))


def test_combining_has_no_fill_value() -> None:
    stores = [stored(each) for each in UNEQUAL]
    options: dict[str, Any] = {"engine": "zarr", "combine": "nested", "concat_dim": "new"}
    options |= {"fill_value": 0, "consolidated": False}
    plain = outcome(lambda: xr.open_mfdataset(stores, **options))
    got = outcome(lambda: aioxarray.open_mfdataset(stores, chunks=None, **options))
    assert got is plain is TypeError


# --- requests -----------------------------------------------------------------------------------


@own_ways
def test_filled_in_values_are_not_requested(way: Way) -> None:
    parts = [
        xr.Dataset({"v": (("x", "y"), np.arange(8.0).reshape(4, 2) + 10 * n)}, {"x": x})
        for n, x in enumerate(([0, 1, 2, 3], [2, 3, 4, 5], [8, 9, 10, 11]))
    ]
    stores = [MemoryStore() for _ in parts]
    for ds, store in zip(parts, stores, strict=True):
        ds.to_zarr(store, encoding={"v": {"chunks": (2, 2)}})
    recording = [RecordingStore(store) for store in stores]
    options: dict[str, Any] = {"engine": "zarr", "combine": "nested", "concat_dim": "new"}
    options["join"] = "outer"
    expected = xr.combine_nested(parts, concat_dim="new", join="outer")
    selections: list[tuple[dict[str, Any], list[int]]] = [
        ({"x": slice(0, 4)}, [2, 1, 0]),
        ({"x": slice(4, 6), "new": [0, 1]}, [0, 1, 0]),
        ({"x": 2}, [1, 1, 0]),
        ({"x": [1, 9]}, [1, 0, 1]),
        ({"x": slice(6, 8)}, [0, 0, 1]),
        ({"x": slice(4, 6), "new": 0}, [0, 0, 0]),
        ({"x": slice(None, None, -1), "new": slice(1, None)}, [0, 2, 2]),
        ({}, [2, 2, 2]),
    ]
    for selection, requests in selections:
        got = way("open_mfdataset", recording, chunks=None, **options)
        for each in recording:
            each.log.clear()
        part = aioxarray.load(got.isel(selection))
        assert [each.log.count("get", "v/c/*") for each in recording] == requests, selection
        xr.testing.assert_identical(part, expected.isel(selection))


@own_ways
def test_values_of_indexes_are_read_while_files_are_opened(way: Way) -> None:
    stores = [stored(piece(n, [1, 2]).assign_coords(run=n)) for n in range(3)]
    recording = [RecordingStore(store) for store in stores]
    options: dict[str, Any] = {"engine": "zarr", "combine": "nested", "concat_dim": "run"}
    options |= {"consolidated": False, "coords": "all"}
    got = way("open_mfdataset", recording, chunks=None, **options)
    assert list(got.indexes["run"]) == [0, 1, 2]
    for each in recording:
        assert each.log.count("get", "run/c") == 1
        assert each.log.count("get", "number/c/*") == 0
    assert "['run']" not in lazy(got)


# --- any datasets -------------------------------------------------------------------------------


@st.composite
def parts(draw: st.DrawFn) -> list[xr.Dataset]:
    """Draw datasets with different indexes, variables, types and orders of dimensions."""
    kinds = ["U1", "U4", "bool", "M8[ns]", "i2", "i8", "f4", "c8", "objects"]
    result = []
    for _ in range(draw(st.integers(1, 3))):
        indexes = {
            dim: draw(st.lists(st.integers(0, 4), min_size=0, max_size=3, unique=True))
            for dim in ("x", "y")
        }
        ds = xr.Dataset(coords=indexes)
        for name in draw(st.sets(st.sampled_from("abc"))):
            dims = draw(st.sampled_from(["", "x", "y", "xy", "yx"]))
            shape = [len(indexes[dim]) for dim in dims]
            values = np.resize(TYPES[draw(st.sampled_from(kinds))], shape)
            ds[name] = (tuple(dims), values, {"of": draw(st.integers(0, 1))})
        result.append(ds)
    return result


@settings(max_examples=25)
@given(parts(), st.sampled_from(JOINS), st.sampled_from(["new", "x", None]), st.booleans())
def test_any_datasets_combine_as_in_memory(
    datasets: list[xr.Dataset], join: Any, dim: str | None, by_coords: bool
) -> None:
    options: dict[str, Any] = {"join": join, "compat": "override", "coords": "minimal"}
    options |= {"data_vars": "all", "combine_attrs": "drop_conflicts"}
    lazily_held = [lazily(each) for each in datasets]
    if by_coords:
        plain = outcome(lambda: xr.combine_by_coords(datasets, **options))
        got = outcome(lambda: combine_by_coords(lazily_held, options))
    else:
        plain = outcome(lambda: xr.combine_nested(datasets, dim, **options))
        got = outcome(lambda: combine_nested(lazily_held, dim, options))
    if isinstance(plain, type) or isinstance(got, type):
        assert got is plain
    else:
        xr.testing.assert_identical(got.load(), plain)
        assert [each.dtype for each in got.variables.values()] == [
            each.dtype for each in plain.variables.values()
        ]
