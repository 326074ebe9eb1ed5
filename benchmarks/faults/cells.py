"""The cells of the matrix: which fault strikes which requests of which call."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from aioxarray.testing import Mixed, ObjectServer
from aioxarray.testing._serving.faults import Effect
from benchmarks.faults.clients import CLIENTS, READERS

Verb = Literal["load", "open", "save"]
When = Literal["first", "middle", "last", "always"]

VERBS: tuple[Verb, ...] = get_args(Verb)
WHENS: tuple[When, ...] = get_args(When)
ONCE: tuple[When, ...] = ("first", "middle", "last")

# The keys of chunks that have a checksum: in Zarr and in icechunk.
CHUNKS = {"icechunk": "*/chunks/*"}


@dataclass(frozen=True)
class Fault:
    """A fault of the server or of the network.

    Attributes
    ----------
    effect
        What `ObjectServer.fail` takes; None for a fault that is no rule.
    is_final
        Whether the same request would fail again, so that even one such answer may end a call.
    only_chunks
        Whether it strikes chunks only: anything else has no checksum.
    retry_after
        The seconds in the header "Retry-After".
    above
        Only requests above this number in flight fail.
    port
        The port to use instead of the server's; None for the server's.
    host
        The host to use instead of the server's.
    latency_s
        The latency of the server.
    whens
        The positions of the requests that fail; faults of the whole server are there always.
    verbs
        The calls that can meet it.
    """

    effect: int | Effect | None = None
    is_final: bool = False
    only_chunks: bool = False
    retry_after: float | None = None
    above: int | None = None
    port: int | None = None
    host: str | None = None
    latency_s: float | Mixed = 0.0
    whens: tuple[When, ...] = WHENS
    verbs: tuple[Verb, ...] = VERBS

    @property
    def is_harmless(self) -> bool:
        """Whether calls succeed even if it is there always."""
        return self.above is not None or self.latency_s != 0


_ALWAYS: tuple[When, ...] = ("always",)

FAULTS: dict[str, Fault] = {
    "403": Fault(403, is_final=True),
    "404": Fault(404, is_final=True),
    "408": Fault(408),
    "429": Fault(429),
    "500": Fault(500),
    "502": Fault(502),
    "503": Fault(503),
    "503 retry-after": Fault(503, retry_after=1),
    "504": Fault(504),
    "reset": Fault("reset"),
    "lose": Fault("lose"),
    "truncate": Fault("truncate"),
    "extend": Fault("extend", only_chunks=True, verbs=("load",)),
    "overrun": Fault("overrun"),
    "flip": Fault("flip", only_chunks=True, verbs=("load",)),
    "stall": Fault("stall"),
    "stall-body": Fault("stall-body"),
    # Nothing listens at this port, which is never given to servers.
    "refused": Fault(port=1, whens=_ALWAYS, verbs=("open", "save")),
    "dns": Fault(host="no-such-host.invalid", whens=_ALWAYS, verbs=("open", "save")),
    "503 above 4": Fault(503, above=4, latency_s=0.01, whens=_ALWAYS),
    "slow answers": Fault(latency_s=Mixed(0.002, 1.0, 0.02), whens=_ALWAYS),
}


class Cell(NamedTuple):
    """One call with one fault."""

    client: str
    fault: str
    verb: Verb
    when: When

    def __str__(self) -> str:
        return f"{self.client}, {self.fault}, {self.verb}, {self.when}"

    def glob(self) -> str:
        """Return the keys whose requests can fail."""
        only_chunks = FAULTS[self.fault].only_chunks
        return CHUNKS.get(self.client, "*/c/*") if only_chunks else "*"

    def strike(self, server: ObjectServer, count: int) -> None:
        """Let the server fail from now on; ``count`` is the number of matching requests."""
        fault = FAULTS[self.fault]
        server.latency_s = fault.latency_s
        if fault.effect is None:
            return
        after = {"first": 0, "middle": count // 2, "last": max(0, count - 1), "always": 0}
        server.fail(
            self.glob(),
            fault.effect,
            after=after[self.when],
            times=None if self.when == "always" else 1,
            retry_after=fault.retry_after,
            above=fault.above,
        )


def cells(
    clients: Iterable[str] = (),
    faults: Iterable[str] = (),
    verbs: Iterable[Verb] = (),
    whens: Iterable[When] = (),
) -> Iterator[Cell]:
    """Iterate over the possible cells; without arguments, over all."""
    every = itertools.product(
        tuple(clients) or tuple(CLIENTS),
        tuple(faults) or tuple(FAULTS),
        tuple(verbs) or VERBS,
        tuple(whens) or WHENS,
    )
    for cell in itertools.starmap(Cell, every):
        fault = FAULTS[cell.fault]
        if cell.verb not in fault.verbs or cell.when not in fault.whens:
            continue
        if cell.verb == "save" and cell.client in READERS:
            continue
        # Its users open a repository before aioxarray gets to see it.
        if cell.client == "icechunk" and (fault.port or fault.host):
            continue
        if cell.fault == "404" and cell.client != "icechunk" and not _shows(cell):
            continue
        yield cell


def _shows(cell: Cell) -> bool:
    """Return whether a 404 can be told from what Zarr takes for an absent array or chunk."""
    return cell.verb == "save" or (cell.verb == "open" and cell.when == "always")
