"""The plan of a load, as a value: `LoadPlan`, with a `VariablePlan` for each variable."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aioxarray._xarray.explaining.rendering import as_html, as_text, headline

if TYPE_CHECKING:
    import pandas as pd

_COUNTS = (
    "chunks",
    "shards",
    "shared",
    "tasks",
    "requests",
    "ranges",
    "bytes_wanted",
    "bytes_fetched",
    "round_trips",
    "memory",
)

# The attributes that only tell where a variable is from.
_PLACE = ("label", "arrays")


@dataclass(frozen=True)
class VariablePlan:
    """The part of a load that reads one variable.

    A count is None if it is opaque: only the library or the scheduler that reads the variable knows
    it, or it depends on stored values of any length, or on a codec that only zarr decodes.

    Attributes
    ----------
    name : str
        The name of the variable; with its group in a tree, as in "/group/t2m", and with its place
        in a list, tuple or dict, as in "[0] t2m".
    way : str
        How it is read: "memory" (nothing is read), "inline", "threads", "first answer",
        "coroutines", "tensorstore", "zarr", "together", "thread", "asynchronous" or "dask";
        several, with commas, if the arrays that it is joined from differ.
    reason : str
        The meaning of ``way``, and why it was chosen.
    chunks, shards : int or None
        The chunks that the selection touches, inner chunks of shards if there are these; and the
        shards. For dask, the blocks of the array.
    shared : int
        Chunks for which the load makes no request for this variable: the cache has them, or
        another load, or another variable of this one, fetches them at the same time.
    tasks : int or None
        The tasks of the dask graph; 0 for other data.
    requests, ranges : int or None
        The requests to the store, and those of them for a part of a value.
    bytes_wanted : int or None
        The bytes of the selected values, in the stored dtype.
    bytes_fetched : int or None
        The bytes that the requests move.
    requests_are_exact : bool
        Whether ``requests`` and ``ranges`` are exact, if all chunks exist. If False, they are the
        most that can be: neighbours in a shard are fetched with one request.
    bytes_are_exact : bool
        The same for ``bytes_fetched``, where compressed chunks count with their decoded size, and
        the little that compression adds to data that it cannot compress.
    round_trips : int or None
        The requests that wait for one another: two if the index of a shard has to be read first.
    memory : int or None
        The most bytes that the load of this variable holds besides its result.
    advice : tuple of str
        Sentences about a layout that costs much.
    label : str
        The name of the variable in errors.
    arrays : tuple of (str, str)
        The Zarr arrays that it is read from: each its store, without credentials, and its path.
    """

    name: str
    way: str
    reason: str
    chunks: int | None = 0
    shards: int | None = 0
    shared: int = 0
    tasks: int | None = 0
    requests: int | None = 0
    ranges: int | None = 0
    bytes_wanted: int | None = 0
    bytes_fetched: int | None = 0
    requests_are_exact: bool = True
    bytes_are_exact: bool = True
    round_trips: int | None = 0
    memory: int | None = 0
    advice: tuple[str, ...] = ()
    label: str = ""
    arrays: tuple[tuple[str, str], ...] = ()

    @property
    def over_read(self) -> float | None:
        """The bytes fetched for each byte wanted; None if unknown, or if nothing is wanted."""
        if not self.bytes_wanted or self.bytes_fetched is None:
            return None
        return self.bytes_fetched / self.bytes_wanted


@dataclass(frozen=True)
class LoadPlan:
    """The requests, bytes and memory of a load, from `explain`, which makes no request.

    A sum is None if it is opaque for one of the variables. The text and the HTML then show the sum
    of the others.

    Attributes
    ----------
    variables : tuple of VariablePlan
        The variables, also those in memory.
    memory : int or None
        The most bytes that the load holds besides its result, within the setting ``memory``. The
        temporary arrays of decoding (scale factors, fill values) do not count.
    concurrency : int or None
        The limit on requests in flight; None for no limit.
    latency : float or None
        The seconds that the shortest of the last small answers of the server has taken; None if
        there was none, or no server.
    bandwidth : float or None
        The bytes that the server has sent in a second when it last sent many; None if it has not.
    """

    variables: tuple[VariablePlan, ...]
    memory: int | None
    concurrency: int | None
    latency: float | None = None
    bandwidth: float | None = None

    @property
    def requests(self) -> int | None:
        """The requests to stores."""
        return _sum(each.requests for each in self.variables)

    @property
    def bytes_wanted(self) -> int | None:
        """The bytes of the selected values, in their stored dtypes."""
        return _sum(each.bytes_wanted for each in self.variables)

    @property
    def bytes_fetched(self) -> int | None:
        """The bytes that the requests move."""
        return _sum(each.bytes_fetched for each in self.variables)

    @property
    def requests_are_exact(self) -> bool:
        """Whether ``requests`` is exact, if all chunks exist; otherwise it is the most."""
        return all(each.requests_are_exact for each in self.variables)

    @property
    def bytes_are_exact(self) -> bool:
        """Whether ``bytes_fetched`` is exact, if all chunks exist; otherwise it is the most."""
        return all(each.bytes_are_exact for each in self.variables)

    @property
    def round_trips(self) -> int | None:
        """The requests that wait for one another: variables are read side by side."""
        trips = [each.round_trips for each in self.variables]
        return None if None in trips else max((trip or 0 for trip in trips), default=0)

    @property
    def advice(self) -> tuple[str, ...]:
        """Sentences about layouts that cost much, each with the name of its variable."""
        return tuple(f"{each.name}: {text}" for each in self.variables for text in each.advice)

    @property
    def connection(self) -> tuple[float, float]:
        """The latency and the bandwidth that `estimate` takes by default."""
        latency = 0.05 if self.latency is None else self.latency
        return latency, 125e6 if self.bandwidth is None else self.bandwidth

    def estimate(
        self, latency: float | None = None, bandwidth: float | str | None = None
    ) -> float | None:
        """Return the seconds that the requests of the load would take.

        Decoding comes on top, as far as it does not happen while other requests are in flight.

        Parameters
        ----------
        latency
            The seconds from a request to the first byte of its answer. None for those that were
            measured, the attribute ``latency``; or for 0.05 if there were none.
        bandwidth
            The bits or bytes that arrive each second, as in "1Gbit/s" or "100MB/s"; or a number, of
            bytes. None for those that were measured, the attribute ``bandwidth``; or for "1Gbit/s".

        Returns
        -------
        float or None
            The seconds; None if something in the plan is opaque.

        Raises
        ------
        TypeError, ValueError
            If ``latency`` is negative or ``bandwidth`` not positive, or they are nothing of the
            kind.
        """
        usual_latency, usual_bandwidth = self.connection
        latency = usual_latency if latency is None else latency
        bandwidth = usual_bandwidth if bandwidth is None else bandwidth
        if isinstance(latency, bool) or not isinstance(latency, int | float):
            raise TypeError(f"latency must be a number of seconds, got {latency!r}")
        if not 0 <= latency < math.inf:
            raise ValueError(f"latency must be a number of seconds from 0 on, got {latency!r}")
        rate = _bytes_per_second(bandwidth)
        requests, trips, fetched = self.requests, self.round_trips, self.bytes_fetched
        if requests is None or trips is None or fetched is None:
            return None
        rounds = trips if self.concurrency is None else -(-requests // self.concurrency)
        return max(trips, rounds) * latency + fetched / rate

    def table(self) -> pd.DataFrame:
        """Return a table with a row for each variable; opaque counts are missing values."""
        import pandas as pd

        rows = [self._row(each) for each in self.variables]
        names = [field.name for field in dataclasses.fields(VariablePlan)]
        columns = [name for name in names if name not in _PLACE] + ["over_read"]
        table = pd.DataFrame(rows, columns=columns).set_index("name")
        return table.astype({**dict.fromkeys(_COUNTS, "Int64"), "over_read": "float64"})

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as dicts, lists, texts and numbers, ready for JSON."""
        return {
            "requests": self.requests,
            "round_trips": self.round_trips,
            "bytes_wanted": self.bytes_wanted,
            "bytes_fetched": self.bytes_fetched,
            "requests_are_exact": self.requests_are_exact,
            "bytes_are_exact": self.bytes_are_exact,
            "memory": self.memory,
            "concurrency": self.concurrency,
            "latency": self.latency,
            "bandwidth": self.bandwidth,
            "advice": list(self.advice),
            "variables": [self._row(each) for each in self.variables],
        }

    @staticmethod
    def _row(variable: VariablePlan) -> dict[str, Any]:
        row = {name: value for name, value in vars(variable).items() if name not in _PLACE}
        return {**row, "advice": list(variable.advice), "over_read": variable.over_read}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {headline(self)}>"

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def _bytes_per_second(bandwidth: float | str) -> float:
    if isinstance(bandwidth, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*((?i:[kmg]i?)?)(bit|B)(?:/s|ps)\s*", bandwidth)
        if match is None:
            raise ValueError(
                "bandwidth must be a text like '1Gbit/s' or '100MB/s', or a number of bytes per "
                f"second; got {bandwidth!r}"
            )
        rate = float(match[1]) * _UNITS[match[2].lower()] / (8 if match[3] == "bit" else 1)
    elif isinstance(bandwidth, bool) or not isinstance(bandwidth, int | float):
        raise TypeError(
            "bandwidth must be a text like '1Gbit/s', or a number of bytes per second; "
            f"got {bandwidth!r}"
        )
    else:
        rate = bandwidth
    if not rate > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth!r}")
    return rate
