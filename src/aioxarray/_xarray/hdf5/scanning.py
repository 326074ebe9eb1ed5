"""A quick look at everything in an HDF5 file that its metadata in xarray depends on.

It tells whether two netCDF4 files have the same layout, in a tenth of the time that h5netcdf and
xarray take to find out what the layout is.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NamedTuple, TypeAlias

import h5netcdf.attrs
import numpy as np
from h5py import h5, h5a, h5d, h5ds, h5g, h5i, h5l, h5o, h5p, h5s, h5t

from aioxarray._xarray.hdf5.files import MetadataCachingFile

# Attributes that are part of the layout: those from which h5netcdf takes dimensions and variables.
# Private: the names that h5netcdf hides from its users.
_OF_LAYOUT = frozenset(name.encode() for name in h5netcdf.attrs._HIDDEN_ATTRS)
_PLAIN = frozenset({h5t.INTEGER, h5t.FLOAT, h5t.STRING})

# The type, the shape and the bytes of an attribute.
RawAttribute: TypeAlias = tuple[bytes, tuple[int, ...] | None, Hashable]


class Scan(NamedTuple):
    """The layout and the attributes of a file.

    Attributes
    ----------
    layout
        All that decides about names, dimensions, shapes, types, chunks and filters. Files with
        equal layouts differ, as h5netcdf shows them, only in values and attributes.
    attributes
        The other attributes, by the name of their variable; those of the file are under None.
    """

    layout: Hashable
    attributes: dict[str | None, dict[str, RawAttribute]]


class _UnusualError(Exception):
    """The file has something whose equality is not decided here: a group, a link, a type."""


def scan(file: MetadataCachingFile) -> Scan | None:
    """Return what is in ``file``; None if something in it is unusual. In HDF5's lane."""
    try:
        return _scan(file)
    except _UnusualError:
        return None


def _scan(file: MetadataCachingFile) -> Scan:
    group = h5g.open(file.id, b"/")
    # In the order in which h5netcdf finds them.
    names = list(group)
    objects = {}
    for name in names:
        is_hard = group.links.get_info(name).type == h5l.TYPE_HARD
        if not is_hard or name.startswith(b"_nc4_non_coord_"):
            raise _UnusualError
        found = objects[name] = h5o.open(group, name)
        if not isinstance(found, h5d.DatasetID):
            raise _UnusualError
    file.open_objects.update((name.decode(), each) for name, each in objects.items())
    # References are addresses.
    addresses = {h5o.get_info(each).addr: name for name, each in objects.items()}
    hidden, shown = _attributes(group, group.get_create_plist(), addresses)
    layout: list[Hashable] = [hidden]
    attributes: dict[str | None, dict[str, RawAttribute]] = {None: shown}
    for name, found in objects.items():
        created = found.get_create_plist()
        hidden, shown = _attributes(found, created, addresses)
        layout.append((name, *_shape_and_type(found), _storage(created), _scales(found), hidden))
        attributes[name.decode()] = shown
    return Scan(tuple(layout), attributes)


def _shape_and_type(found: Any) -> tuple[Hashable, ...]:
    space, kind = found.get_space(), found.get_type()
    if space.get_simple_extent_type() == h5s.NULL or not _is_plain(kind) or kind.committed():
        raise _UnusualError
    return (
        space.get_simple_extent_dims(),
        space.get_simple_extent_dims(1),
        kind.encode(),
    )


def _is_plain(kind: Any) -> bool:
    is_string = kind.get_class() == h5t.STRING
    return kind.get_class() in _PLAIN and not (is_string and kind.is_variable_str())


def _storage(created: Any) -> Hashable:
    chunked = created.get_layout() == h5d.CHUNKED
    filters = [created.get_filter(index) for index in range(created.get_nfilters())]
    return created.get_layout(), created.get_chunk() if chunked else None, tuple(filters)


def _scales(found: Any) -> Hashable:
    """Return the names of the scales of each dimension."""
    scales: list[Hashable] = []
    for axis in range(found.rank):
        names: list[bytes] = []
        if not h5ds.get_num_scales(found, axis):
            # h5netcdf makes up a dimension, or finds a scale's own.
            if not h5ds.is_scale(found):
                raise _UnusualError
        else:
            h5ds.iterate(found, axis, lambda scale, names=names: names.append(h5i.get_name(scale)))
        if None in names:
            raise _UnusualError
        scales.append(tuple(names))
    return tuple(scales)


def _attributes(
    parent: Any, created: Any, addresses: dict[int, bytes]
) -> tuple[Hashable, dict[str, RawAttribute]]:
    """Return the attributes that are part of the layout, and the others, in h5py's order."""
    names: list[bytes] = []
    by_creation = created.get_attr_creation_order() & h5p.CRT_ORDER_TRACKED
    order = h5.INDEX_CRT_ORDER if by_creation else h5.INDEX_NAME
    h5a.iterate(parent, lambda name, *_: names.append(name), index_type=order)
    hidden: list[Hashable] = []
    shown: dict[str, RawAttribute] = {}
    for name in names:
        if name == b"DIMENSION_LIST":
            # Its references are in the scales.
            hidden.append(name)
        elif name == b"REFERENCE_LIST":
            hidden.append((name, _references(h5a.open(parent, name), addresses)))
        elif name in _OF_LAYOUT:
            hidden.append((name, _raw(h5a.open(parent, name))))
        else:
            shown[name.decode()] = _raw(h5a.open(parent, name))
    return tuple(hidden), shown


def _raw(attribute: Any) -> RawAttribute:
    kind, space = attribute.get_type(), attribute.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return kind.encode(), None, None
    shape = space.get_simple_extent_dims()
    if _is_plain(kind):
        # Without conversion, which takes longer than the rest.
        values = np.empty(shape, f"V{kind.get_size()}")
        attribute.read(values, mtype=kind)
        return kind.encode(), shape, values.tobytes()
    if kind.get_class() != h5t.STRING:
        raise _UnusualError
    strings = np.empty(shape, attribute.dtype)
    attribute.read(strings)
    return kind.encode(), shape, tuple(strings.flat)


def _references(attribute: Any, addresses: dict[int, bytes]) -> Hashable:
    """Return the names of the variables that a scale is attached to, with the axis of each."""
    kind = attribute.get_type()
    if kind.get_class() != h5t.COMPOUND or kind.get_nmembers() != 2:
        raise _UnusualError
    values = np.empty(attribute.shape, f"V{kind.get_size()}")
    attribute.read(values, mtype=kind)
    # An address and the index of an axis, with padding between and after them.
    size = kind.get_size()
    at, axis_at = kind.get_member_offset(0), kind.get_member_offset(1)
    axis_size = kind.get_member_type(1).get_size()
    raw = values.tobytes()
    found = []
    for start in range(0, len(raw), size):
        address = int.from_bytes(raw[start + at : start + at + 8], "little")
        if address not in addresses:
            raise _UnusualError
        axis = raw[start + axis_at : start + axis_at + axis_size]
        found.append((addresses[address], axis))
    return tuple(found)
