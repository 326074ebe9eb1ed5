"""Explaining loads before they are made: `explain`."""

from __future__ import annotations

from typing import Any

from aioxarray._xarray.explaining.load_plan import LoadPlan, VariablePlan
from aioxarray._xarray.explaining.survey import survey

__all__ = ["LoadPlan", "VariablePlan", "explain"]


def explain(obj: Any) -> LoadPlan:
    """Return what a load of ``obj`` would do now: its requests, bytes and memory, and why.

    The load itself makes its plan with the same functions, so that the counts are those of a load
    with the present settings. Print the result, or let a notebook show it::

        print(aioxarray.explain(ds.sel(time="2024-02")))

    Parameters
    ----------
    obj
        An xarray Variable, DataArray, Dataset or DataTree, or a (nested) list, tuple or dict of
        them.

    Returns
    -------
    LoadPlan
        The plan: sums, a `VariablePlan` for each variable, ``estimate()`` in seconds, ``table()``
        and ``to_dict()``.

    Raises
    ------
    TypeError
        If ``obj`` holds anything else.

    Notes
    -----
    *Requests:* none. So it is unknown which chunks exist and, if they are compressed, how many
    bytes they have: see ``bytes_are_exact``. Chunks in the cache, or that another load is fetching,
    are not counted. Backends other than Zarr, and dask, do not tell their requests: such counts are
    None, shown as "opaque".

    *Order:* the variables are in the order of ``obj``, as in a load.

    *Memory:* little, however many chunks there are; for selections by arrays of indices, as much as
    zarr's own indexing takes.

    *Cancelling:* not possible. Plans take milliseconds, but those of a million shards, or of 10,000
    variables, take seconds: call it in a thread if an event loop must not wait.

    *Errors:* those of the selection, as in a load.

    See Also
    --------
    load : load the data.
    """
    return survey(obj)
