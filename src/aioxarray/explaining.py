"""Explaining loads before they are made, and opens: `explain` and `explain_open`."""

from __future__ import annotations

from functools import partial
from typing import Any

from aioxarray import opening
from aioxarray._runtime.loops import blocking
from aioxarray._runtime.workers import in_worker
from aioxarray._tracing.open_plan import OpenPhase, OpenPlan, open_plan
from aioxarray._xarray.explaining.load_plan import LoadPlan, VariablePlan
from aioxarray._xarray.explaining.survey import survey
from aioxarray._xarray.opening.calls import close
from aioxarray._zarr.stores.identity import libraries, unwrapped
from aioxarray._zarr.stores.observing.observers import observed_here
from aioxarray._zarr.stores.observing.records import Recorder, now
from aioxarray._zarr.stores.printable import printable
from aioxarray.streaming import Stream

__all__ = ["LoadPlan", "OpenPhase", "OpenPlan", "VariablePlan", "explain", "explain_open"]


def explain(obj: Any) -> LoadPlan:
    """Return what a load of ``obj`` would do now: its requests, bytes and memory, and why.

    The load itself makes its plan with the same functions, so that the counts are those of a load
    with the present settings. Print the result, or let a notebook show it::

        print(aioxarray.explain(ds.sel(time="2024-02")))

    Parameters
    ----------
    obj
        An xarray Variable, DataArray, Dataset or DataTree, or a (nested) list, tuple or dict of
        them; or a `Stream` of a list or another sequence of them, for the plan of one epoch.

    Returns
    -------
    LoadPlan
        The plan: sums, a `VariablePlan` for each variable, ``estimate()`` in seconds, ``table()``
        and ``to_dict()``.

    Raises
    ------
    TypeError
        If ``obj`` holds anything else, or is a stream whose pieces are not known: those of an
        iterator, or functions that open.

    Notes
    -----
    *Requests:* none. So it is unknown which chunks exist and, if they are compressed, how many
    bytes they have: see ``bytes_are_exact``. Chunks in the cache, or that another load is fetching,
    are not counted. Backends other than Zarr, and dask, do not tell their requests: such counts are
    None, shown as "opaque".

    *Order:* the variables are in the order of ``obj``, as in a load.

    *Streams:* each chunk counts once for all pieces of the epoch. Those that do not fit into
    ``ahead``, or whose pieces are more than 256 apart, are fetched again. ``memory`` is ``ahead``
    with the chunks in flight.

    *Memory:* little, however many chunks there are; for selections by arrays of indices, as much as
    zarr's own indexing takes.

    *Cancelling:* not possible. Plans take milliseconds, but those of a million shards, or of 10,000
    variables, take seconds: call it in a thread if an event loop must not wait.

    *Errors:* those of the selection, as in a load.

    See Also
    --------
    load : load the data.
    """
    if isinstance(obj, Stream):
        return obj._explain()
    return survey(obj)


_OPENERS = (
    "open_dataset",
    "open_dataarray",
    "open_datatree",
    "open_groups",
    "open_mfdataset",
    "open_zarr",
)
# A bound on the memory of the records.
_MOST_RECORDS = 1_000_000


async def observed_open_async(
    source: Any, *, opener: str = "open_dataset", **options: Any
) -> tuple[Any, OpenPlan]:
    """Open ``source`` as `explain_open_async` does, and return what was opened, and the plan."""
    if opener not in _OPENERS:
        names = ", ".join(map(repr, _OPENERS))
        raise ValueError(f"opener must be one of {names}; got {opener!r}")
    recorder = Recorder(_MOST_RECORDS)
    begun = now()
    with observed_here(recorder):
        opened = await getattr(opening, f"{opener}_async")(source, **options)
    seconds = now() - begun
    try:
        load = await in_worker(partial(survey, opened))
    except BaseException:
        await in_worker(partial(close, opened))
        raise
    notes: tuple[str, ...] = ()
    if "icechunk" in libraries(unwrapped(source)):
        notes = ("icechunk fetches its manifests and snapshots itself: these are not counted",)
    return opened, open_plan(printable(source), recorder.requests, seconds, notes, load)


async def explain_open_async(
    source: Any, *, opener: str = "open_dataset", **options: Any
) -> OpenPlan:
    """Return the requests of an open, by phase, and the plan of a load of its result.

    The contents of a store are only known from its metadata, so ``source`` is opened, with the
    requests of an open, and closed again; no other data is loaded. The result shows where the time
    of the open went: the requests by phase, and how many of them had to wait for each other::

        print(aioxarray.explain_open("https://host/data.zarr"))

    Parameters
    ----------
    source
        As in the function that opens.
    opener
        The name of the function of aioxarray that opens: "open_dataset", "open_dataarray",
        "open_datatree", "open_groups", "open_mfdataset" or "open_zarr".
    **options
        Passed to that function.

    Returns
    -------
    OpenPlan
        ``requests``, ``round_trips``, ``bytes_fetched``, ``seconds``, ``phases``, ``table()``,
        ``to_dict()``; and ``load``, a `LoadPlan`.

    Raises
    ------
    ValueError
        If ``opener`` is none of these names.

    Notes
    -----
    *Requests:* those of the open. Requests that a library makes without telling are not counted: if
    there are no others, ``requests`` is None, shown as "opaque". icechunk makes some of its own
    beside those that are counted.

    *Order:* the phases are in the order in which they began. Round trips are those that were
    observed: on a store in memory or in local files, and under a low limit, requests that do not
    need each other follow each other, too, and are counted.

    *Memory:* that of the open, and 0.5 kB for each request. Only the last million requests count.

    *Cancelling:* as in an open; what was opened is closed.

    *Errors:* those of the open.

    See Also
    --------
    explain : the plan of a load of what is open already.
    trace : the requests of any calls.
    """
    opened, plan = await observed_open_async(source, opener=opener, **options)
    await in_worker(partial(close, opened))
    return plan


explain_open = blocking(explain_open_async)
observed_open = blocking(observed_open_async)
