"""``aioxarray info``: the contents of data, and the requests that a load of it would make."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from aioxarray._xarray.explaining.rendering import connection_text, counted
from aioxarray._xarray.lazy.sizes import size_text
from aioxarray.cli import selecting, sources
from aioxarray.cli.contents import as_text, contents
from aioxarray.cli.failures import InputError, naming
from aioxarray.cli.selecting import Selection
from aioxarray.cli.sources import Source
from aioxarray.explaining import LoadPlan, OpenPlan, explain

if TYPE_CHECKING:
    import xarray as xr


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="show what data contains, and what a load of a part of it would request",
        description="Shows the dimensions, variables, attributes, chunks and codecs of all groups, "
        "and the requests that the open took. Only metadata and coordinates are read.",
    )
    sources.add_arguments(parser)
    selecting.add_arguments(parser)
    parser.add_argument(
        "--group-filter",
        metavar="PATTERN",
        help="only the groups of a Zarr store that match, such as '/*/sweep_0', and those above",
    )
    parser.add_argument(
        "--plan",
        action="store_true",
        help="show the requests, bytes and memory of a load of the selection, without loading it",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print what the data contains."""
    selection = Selection.of(arguments)
    source = Source.of(arguments)
    with source.groups(arguments.group_filter) as (groups, opened):
        if selection:
            groups = _selected(groups, selection, source)
        # The files of a repository belong to all of its commits.
        sized = None if selection or source.snapshot else source.location
        described = contents(groups, sized)
        plan = None
        if arguments.plan:
            with naming("make a plan of the load"):
                plan = explain(groups if len(groups) > 1 else next(iter(groups.values())))
    if arguments.json:
        print(json.dumps(_as_json(described, source, opened, plan), indent=2))
        return
    print(_headline(described, source, opened))
    print(as_text(described))
    if plan is not None:
        print(f"\nA load: {plan}\n{_estimate(plan)}")


def _selected(
    groups: dict[str, xr.Dataset], selection: Selection, source: Source
) -> dict[str, xr.Dataset]:
    path, dataset = next(iter(groups.items()))
    others = [each for each in groups if each != path]
    if others and not dataset.variables:
        raise InputError(
            f"the outermost group of {source.name} has no variables to select from: choose one "
            f"with --group; there are {', '.join(others[:20])}"
        )
    return {path: selection.of_dataset(dataset)}


def _headline(described: dict[str, Any], source: Source, opened: OpenPlan) -> str:
    size, stored = described["bytes"], described["bytes_stored"]
    sizes = "size unknown" if size is None else size_text(size)
    if stored is not None:
        sizes += f" ({size_text(stored)} stored)"
    requests, trips, fetched = opened.requests, opened.round_trips, opened.bytes_fetched
    took = f"opened in {opened.seconds:.3g} s"
    if requests is not None and trips is not None and fetched is not None:
        took += (
            f": {counted(requests, 'request')}, {counted(trips, 'round trip')}, "
            f"{size_text(fetched)} fetched"
        )
    return f"{source.name}: {sizes}\n{took}\n"


def _estimate(plan: LoadPlan) -> str:
    seconds = plan.estimate()
    if seconds is None:
        return "The time of the load cannot be estimated: parts of it are opaque."
    return f"It takes about {seconds:.3g} s at {connection_text(*plan.connection)}."


def _as_json(
    described: dict[str, Any], source: Source, opened: OpenPlan, plan: LoadPlan | None
) -> dict[str, Any]:
    document = {
        "source": source.name,
        "open": {
            "requests": opened.requests,
            "round_trips": opened.round_trips,
            "bytes_fetched": opened.bytes_fetched,
            "seconds": opened.seconds,
        },
        **described,
    }
    if plan is not None:
        document["plan"] = {**plan.to_dict(), "seconds": plan.estimate()}
    return document
