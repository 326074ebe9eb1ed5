"""The requests of an open by phase, with the plan of a load of what was opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from aioxarray._tracing.recording import covered, most_in_a_row
from aioxarray._xarray.explaining.rendering import counted, html_table, lined_up, size

if TYPE_CHECKING:
    from aioxarray._xarray.explaining.load_plan import LoadPlan
    from aioxarray._zarr.stores.observing.records import RequestRecord

_HEADINGS = ("phase", "requests", "missing", "fetched", "round trips", "in flight")
_TEXTS = (0,)


@dataclass(frozen=True)
class OpenPhase:
    """The requests of one phase of an open.

    Attributes
    ----------
    name : str
        "metadata" or "index": the values of indexes, and the first and last times.
    requests : int
        All requests, with those that were made again.
    missing : int
        Those of them for values that are not there.
    bytes_fetched : int
        The bytes that they brought.
    round_trips : int
        The most of them of which each was asked for after the one before had ended.
    seconds : float
        The time during which at least one was in flight.
    """

    name: str
    requests: int
    missing: int
    bytes_fetched: int
    round_trips: int
    seconds: float


@dataclass(frozen=True)
class OpenPlan:
    """The requests that an open made, and what a load of its result would do.

    Attributes
    ----------
    source : str
        The name of the source, without credentials.
    phases : tuple of OpenPhase
        The requests by phase. Phases can overlap.
    total : OpenPhase
        All requests.
    seconds : float
        The time that the open took.
    is_opaque : bool
        Whether no request was seen: the library that reads the source does not tell.
    notes : tuple of str
        Sentences about requests that are not counted.
    load : LoadPlan
        The plan of a load of everything that was opened, as `explain` returns it.
    """

    source: str
    phases: tuple[OpenPhase, ...]
    total: OpenPhase
    seconds: float
    is_opaque: bool
    notes: tuple[str, ...]
    load: LoadPlan

    @property
    def requests(self) -> int | None:
        """The number of requests of the open; None if they are opaque."""
        return None if self.is_opaque else self.total.requests

    @property
    def round_trips(self) -> int | None:
        """The most requests that waited for each other; None if they are opaque."""
        return None if self.is_opaque else self.total.round_trips

    @property
    def bytes_fetched(self) -> int | None:
        """The bytes that the requests brought; None if they are opaque."""
        return None if self.is_opaque else self.total.bytes_fetched

    def table(self) -> pd.DataFrame:
        """Return a table with a row for each phase."""
        return pd.DataFrame(map(asdict, self.phases), columns=list(vars(self.total))).set_index(
            "name"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as dicts, lists, texts and numbers, ready for JSON."""
        return {
            "source": self.source,
            "requests": self.requests,
            "round_trips": self.round_trips,
            "bytes_fetched": self.bytes_fetched,
            "seconds": self.seconds,
            "phases": list(map(asdict, self.phases)),
            "notes": list(self.notes),
            "load": self.load.to_dict(),
        }

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._headline()}>"

    def __str__(self) -> str:
        lines = [self._headline()]
        if self.phases:
            lines += ["", *lined_up([_HEADINGS, *map(_cells, self.phases)], _TEXTS)]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join([*lines, "", f"A load of everything: {self.load}"])

    def _repr_html_(self) -> str:
        rows = list(map(_cells, self.phases))
        opened = html_table(self._headline(), _HEADINGS, rows, _TEXTS, self.notes)
        return f"{opened}<p>A load of everything:</p>{self.load._repr_html_()}"

    def _headline(self) -> str:
        took = f"open of {self.source} in {self.seconds:.3g} s"
        if self.is_opaque:
            return f"{took}: opaque requests"
        total = self.total
        trips = counted(total.round_trips, "round trip")
        fetched = size(total.bytes_fetched)
        return f"{took}: {counted(total.requests, 'request')}, {trips}, {fetched} fetched"


def open_plan(
    source: str,
    records: Sequence[RequestRecord],
    seconds: float,
    notes: tuple[str, ...],
    load: LoadPlan,
) -> OpenPlan:
    """Return the plan of an open that took ``seconds`` and made the recorded requests."""
    names = dict.fromkeys(each.phase for each in records)
    phases = [_phase(name, [each for each in records if each.phase == name]) for name in names]
    total = _phase("total", records)
    return OpenPlan(source, tuple(phases), total, seconds, not records, notes, load)


def _phase(name: str, records: Sequence[RequestRecord]) -> OpenPhase:
    return OpenPhase(
        name,
        requests=len(records),
        missing=sum(
            each.kind == "get" and each.outcome == "done" and not each.nbytes for each in records
        ),
        bytes_fetched=sum(each.nbytes for each in records),
        round_trips=most_in_a_row((each.asked, each.ended) for each in records),
        seconds=covered((each.begun, each.ended) for each in records),
    )


def _cells(each: OpenPhase) -> tuple[str, ...]:
    return (
        each.name,
        f"{each.requests:,}",
        f"{each.missing:,}",
        size(each.bytes_fetched),
        f"{each.round_trips:,}",
        f"{each.seconds:.3g} s",
    )
