"""Building a tree from datasets that nobody else holds, without the copies that xarray makes."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr

from aioxarray._xarray.compat import NodePath, datatree_from_dict_with_io_cleanup


def tree_of(groups: Mapping[str, xr.Dataset]) -> xr.DataTree:
    """Return the tree of ``groups``, as xarray's Zarr engine builds it; closes them on an error.

    ``DataTree.from_dict`` copies each node once more, and walks to it from the root.
    """
    by_path = {NodePath("/") / path: dataset for path, dataset in groups.items()}
    if not all(path.parent in by_path for path in by_path):
        return datatree_from_dict_with_io_cleanup(groups)
    nodes: dict[NodePath, xr.DataTree] = {}
    try:
        # Parents first: a group is aligned with what it inherits.
        for path in sorted(by_path, key=lambda path: len(path.parts)):
            # Private: the public ways, ``from_dict`` and the setter of ``children``, copy each node
            # twice. This checks the same. Can go when they do not (pydata/xarray#9640).
            node = nodes[path] = xr.DataTree(name=path.name or None)
            node._set_node_data(by_path[path])
            if path.name:
                node._set_parent(nodes[path.parent], path.name)
    except Exception:
        for dataset in groups.values():
            dataset.close()
        raise
    return nodes[NodePath("/")]
