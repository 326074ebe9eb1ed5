"""Datasets of the groups of a tree, decoded by xarray but built without its general constructors.

``StoreBackendEntrypoint.open_dataset`` passes decoded variables to constructors for anything that a
user may give. They copy each variable three times, align what has no index, and merge what does not
overlap: for a tree of a thousand groups, that takes longer than all requests.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any

import xarray as xr
import zarr

from aioxarray._xarray.compat import ZarrBackendEntrypoint, close_on_error

if TYPE_CHECKING:
    from aioxarray._xarray.opening.groups.prefetched import PrefetchedZarrStore
    from aioxarray._xarray.opening.groups.templates import Templates


def open_group(
    engine: ZarrBackendEntrypoint,
    place: Any,
    store: PrefetchedZarrStore,
    decoding: Mapping[str, Any],
    templates: Templates | None,
) -> xr.Dataset:
    """Open the group of ``store`` as ``engine`` does. Known documents are not decoded again."""
    arrays = {name: each for name, each in store.members.items() if isinstance(each, zarr.Array)}
    built = None
    if templates is not None and templates.apply_to(arrays.values()):
        with close_on_error(store):
            built = _built(store, arrays, decoding, templates)
    return engine.open_dataset(place, store=store, **decoding) if built is None else built


def _built(
    store: PrefetchedZarrStore,
    arrays: Mapping[str, zarr.Array[Any]],
    decoding: Mapping[str, Any],
    templates: Templates,
) -> xr.Dataset | None:
    """Return the dataset of a group with ``arrays``; None if xarray has to look closer."""
    values = store.prefetched_values
    dropped = decoding.get("drop_variables") or ()
    dropped = {dropped} if isinstance(dropped, str) else set(dropped)
    found = {
        name: templates.variable(array, values)
        for name, array in arrays.items()
        if name not in dropped
    }
    raw = {name: store.open_store_variable(name) for name, each in found.items() if each is None}
    # xarray's methods of a store are untyped.
    given: Any = store
    decoded, attributes, coord_names = xr.conventions.decode_cf_variables(
        raw, given.get_attrs(), **{**decoding, "drop_variables": None}
    )
    for name, variable in decoded.items():
        templates.learn(arrays[str(name)], variable)
    variables = {name: decoded[name] if each is None else each for name, each in found.items()}
    if decoding.get("decode_coords", True):
        for variable in variables.values():
            # The attribute, where decoding has moved it: xarray has seen only some of the names.
            named = variable.encoding.get("coordinates", "").split()
            coord_names.update(name for name in named if name in arrays)
    return _dataset(variables, coord_names, attributes, store)


def _dataset(
    variables: Mapping[str, xr.Variable],
    coord_names: Collection[Hashable],
    attributes: Mapping[Any, Any],
    store: PrefetchedZarrStore,
) -> xr.Dataset | None:
    """Return the dataset of decoded ``variables``, without indexes, in the order of xarray."""
    coords: dict[Hashable, xr.Variable] = {}
    data: dict[Hashable, xr.Variable] = {}
    for name, variable in variables.items():
        is_coord = name in coord_names or variable.dims == (name,)
        (coords if is_coord else data)[name] = variable
    named = {dim for variable in variables.values() for dim in variable.dims}
    if any(name in named and coord.dims != (name,) for name, coord in coords.items()):
        # xarray's constructor says what is wrong.
        return None
    # Private: the constructor for variables that are known to fit. It computes the sizes, and
    # raises the error of the public one if they conflict. Can go when a backend may hand over its
    # variables without copies of them (pydata/xarray#10622).
    dataset = xr.Dataset._construct_direct(
        {**data, **coords}, set(coords), attrs=dict(attributes) or None
    )
    given: Any = store
    dataset.set_close(given.close)
    dataset.encoding = given.get_encoding()
    return dataset
