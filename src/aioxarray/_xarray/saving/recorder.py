"""Recording what xarray's own ``to_zarr`` would write, and where, without writing it.

xarray decides what is stored, under which names, in which encoding, and what is refused. All its
requests go to a store that keeps them (`aioxarray._zarr.metadata.write_behind`). xarray's public
functions write at once, so this module repeats the steps between their arguments and that store.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import xarray as xr
import zarr

from aioxarray._xarray.compat import (
    DATAARRAY_NAME,
    DATAARRAY_VARIABLE,
    ZarrStore,
    _choose_default_mode,
    _validate_dataset_names,
    dump_to_store,
)
from aioxarray._xarray.saving.deferred import encoded_or_deferred
from aioxarray._zarr.metadata.opening import replace_store

if TYPE_CHECKING:
    from zarr.abc.store import Store


@dataclass(frozen=True)
class ZarrOptions:
    """The arguments of xarray's ``to_zarr`` for a Dataset, DataArray or DataTree."""

    mode: Any = None
    group: str | None = None
    encoding: Mapping[Any, Any] | None = None
    write_inherited_coords: bool = False
    compute: bool = True
    consolidated: bool | None = None
    append_dim: Any = None
    region: Any = None
    safe_chunks: bool = True
    align_chunks: bool = False
    storage_options: dict[str, Any] | None = None
    zarr_format: Any = None
    write_empty_chunks: bool | None = None
    chunkmanager_store_kwargs: Mapping[str, Any] | None = None
    resume: bool = False

    @property
    def chosen_mode(self) -> Any:
        """The mode that was given or, without it, the one that xarray chooses."""
        return _choose_default_mode(mode=self.mode, append_dim=self.append_dim, region=self.region)

    @property
    def consolidates(self) -> bool:
        """Whether consolidated metadata is written, if the store supports it."""
        return self.chosen_mode != "r+" and self.consolidated is not False


@dataclass(frozen=True)
class Write:
    """A write of the values ``source`` to ``region`` of ``target``.

    With ``fresh``, the store has no chunks of ``target`` yet.
    """

    source: Any
    target: zarr.Array[Any]
    region: tuple[slice, ...]
    fresh: bool = False

    @property
    def nbytes(self) -> int:
        return int(self.source.size) * self.target.dtype.itemsize

    def bytes_of(self, block: tuple[slice, ...]) -> int:
        """Return the bytes of a block of the region."""
        count = int(math.prod(part.stop - part.start for part in block))
        return count * int(self.target.dtype.itemsize)


@dataclass
class RecordingWriter:
    """A replacement for xarray's writer that records what is to be written, and writes nothing."""

    writes: list[Write] = field(default_factory=list)

    def add(self, source: Any, target: zarr.Array[Any], region: Any = None) -> None:
        """Record values that xarray would write, or have dask write, now."""
        given = tuple(region or ()) or (slice(None),) * target.ndim
        bounds = [each.indices(size) for each, size in zip(given, target.shape, strict=True)]
        self.writes.append(Write(source, target, tuple(slice(*each) for each in bounds)))


class RecordingZarrStore(ZarrStore):
    """xarray's Zarr store, which encodes large variables only when they are written."""

    __slots__ = ()

    def encode_variable(self, variable: xr.Variable, name: Any = None) -> xr.Variable:
        # xarray's method is untyped.
        encode: Any = super().encode_variable
        return encoded_or_deferred(variable, lambda part: encode(part, name=name))


@dataclass(frozen=True)
class SavedNode:
    """A dataset to write to the group at ``path``, relative to the group of the save (".")."""

    path: str
    dataset: xr.Dataset
    encoding: Mapping[Any, Any]


def as_nodes(obj: Any, options: ZarrOptions) -> list[SavedNode]:
    """Return the datasets to write, as shallow copies whose variables can be given other data.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        If ``obj`` has the wrong type or names that cannot be stored, or an option does not apply
        to it.
    """
    if isinstance(obj, xr.DataTree):
        nodes = _tree_nodes(obj, options)
    elif options.write_inherited_coords:
        raise TypeError("write_inherited_coords is an argument for a DataTree only")
    else:
        nodes = [SavedNode(".", _as_dataset(obj).copy(deep=False), options.encoding or {})]
    for node in nodes:
        _validate_dataset_names(node.dataset)
        for name in node.dataset.variables:
            if "/" in str(name):
                raise ValueError(
                    f"the name {name!r} has a slash, which stands between groups in Zarr: the "
                    "variable would not be found again. Rename it, or save a DataTree."
                )
        for variable in node.dataset.variables.values():
            if variable.size == 0 and variable.chunks is not None:
                # As xarray does: chunks of length 0 cannot be stored, and there is nothing to
                # compute.
                variable.load()
    return nodes


def _tree_nodes(tree: xr.DataTree, options: ZarrOptions) -> list[SavedNode]:
    if options.group is not None:
        raise NotImplementedError("specifying a root group for the tree has not been implemented")
    if options.append_dim is not None:
        raise NotImplementedError(
            "specifying ``append_dim`` with ``DataTree.to_zarr`` has not been implemented"
        )
    encoding = options.encoding or {}
    if unknown := set(encoding) - set(tree.groups):
        raise ValueError(f"unexpected encoding group name(s) provided: {unknown}")
    nodes = []
    for path, node in tree.subtree_with_keys:
        dataset = node.to_dataset(inherit=options.write_inherited_coords or node is tree)
        nodes.append(SavedNode(path, dataset.copy(deep=False), encoding.get(node.path) or {}))
    return nodes


def _as_dataset(obj: Any) -> xr.Dataset:
    if isinstance(obj, xr.Dataset):
        return obj
    if not isinstance(obj, xr.DataArray):
        raise TypeError(
            f"only a Dataset, DataArray or DataTree can be saved, not {type(obj).__name__}"
        )
    if obj.name is None:
        return obj.to_dataset(name=DATAARRAY_VARIABLE)
    if obj.name in obj.coords or obj.name in obj.dims:
        dataset = obj.to_dataset(name=DATAARRAY_VARIABLE)
        dataset.attrs[DATAARRAY_NAME] = obj.name
        return dataset
    return obj.to_dataset()


@dataclass(frozen=True)
class Recorded:
    """The result of recording a ``to_zarr``.

    Attributes
    ----------
    store
        The store that ``to_zarr`` returns.
    writes
        The values to write.
    consolidates
        Whether closing xarray's own store would consolidate its metadata.
    """

    store: ZarrStore
    writes: Sequence[Write]
    consolidates: bool

    def replace_store(self, store: Store) -> None:
        """Make ``self.store`` use ``store`` itself instead of the stand-in."""
        for node in (self.store.zarr_group, *self.store._members.values()):
            replace_store(node, store)
        # The caller may write to it, and nothing would write the values that it defers. It has
        # the slots of its base class and no more.
        self.store.__class__ = ZarrStore

    def returned(self) -> ZarrStore:
        """Return ``self.store`` as xarray returns its own, to be written to and closed."""
        self.store._consolidate_on_close = self.consolidates
        return self.store


def record(nodes: Sequence[SavedNode], place: Any, options: ZarrOptions) -> Recorded:
    """Have xarray write ``nodes`` to ``place``, a stand-in for a store, and record the values.

    xarray raises its own exceptions here for anything that it cannot write.
    """
    mode = options.chosen_mode
    root = RecordingZarrStore.open_group(
        store=place,
        mode=mode,
        group=options.group,
        consolidated=options.consolidated if mode == "r+" else False,
        consolidate_on_close=options.consolidates,
        append_dim=options.append_dim,
        write_region=options.region,
        safe_chunks=options.safe_chunks,
        align_chunks=options.align_chunks,
        zarr_format=options.zarr_format,
        write_empty=options.write_empty_chunks,
    )
    # Consolidate once at the end rather than for each group.
    consolidates, root._consolidate_on_close = root._consolidate_on_close, False
    writer = RecordingWriter()
    for node in nodes:
        store = root if node.path == "." else root.get_child_store(node.path)
        dataset = store._validate_and_autodetect_region(node.dataset)
        store._validate_encoding(options.encoding or {})
        dump_to_store(dataset, store, writer, encoding=node.encoding)
    if consolidates:
        zarr.consolidate_metadata(
            root.zarr_group.store, zarr_format=root.zarr_group.metadata.zarr_format
        )
    return Recorded(root, writer.writes, consolidates)
