"""Rows that compare aioxarray with all its peers, and their goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from benchmarks.peers import OURS, PEERS, XARRAY
from benchmarks.rows import number


class Named(Protocol):
    """A peer, as rows know it."""

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Relative:
    """Goal: aioxarray's number is at most ``factor`` times the best of ``peers``."""

    peers: tuple[Named, ...]
    factor: float

    def verdict(self, cells: Mapping[str, float | str], unit: str) -> Verdict | None:
        """Return whether it is met; None if no peer has a number."""
        ours = cells[OURS.name]
        others = {p.name: n for p in self.peers if isinstance(n := cells.get(p.name), float)}
        if not others or not isinstance(ours, float):
            return None
        best = min(others, key=lambda name: others[name])
        share = ours / others[best]
        # "8 times as fast" is easier to read than "an eighth of the time".
        if self.factor < 0.7:
            text = f"{1 / share:.1f} times as fast as {best} (>= {1 / self.factor:.3g})"
        else:
            text = f"{share:.2f} of {best} (<= {self.factor:.3g})"
        return Verdict(text, share <= self.factor)


@dataclass(frozen=True)
class Bound:
    """Goal: aioxarray's number is at most ``limit``."""

    limit: float
    why: str = ""

    def verdict(self, cells: Mapping[str, float | str], unit: str) -> Verdict | None:
        """Return whether it is met; None if aioxarray has no number."""
        ours = cells[OURS.name]
        if not isinstance(ours, float):
            return None
        limit = number(self.limit, unit) + (f", {self.why}" if self.why else "")
        return Verdict(f"{number(ours, unit)} (<= {limit})", ours <= self.limit)


Goal = Relative | Bound


@dataclass(frozen=True)
class Verdict:
    """Whether a goal was met, with an explanation."""

    text: str
    met: bool

    def __str__(self) -> str:
        return f"{self.text} {'met' if self.met else 'MISSED'}"


@dataclass(frozen=True)
class PeerRow:
    """Row of the table with a column for each peer.

    Attributes
    ----------
    what
        The row's label: what was done or counted.
    unit
        The unit of all numbers: "s", "ms", "MB" or "" (a count).
    cells
        For each peer, a number or the reason for its absence.
    goals
        The goals for aioxarray's number.
    stall_ms
        The worst stall of the caller's loop during aioxarray's runs, which has its own goal.
    calm_stall_ms
        The same for runs during which a process that only sleeps had no stall.
    """

    COLUMNS: ClassVar[Sequence[str]] = [peer.name for peer in PEERS]
    HEADER: ClassVar[Sequence[str]] = ["", *COLUMNS, "xarray/ours"]
    WIDTHS: ClassVar[Sequence[int]] = (40, *(max(9, len(peer.name)) for peer in PEERS), 11)
    STALL_GOAL_MS: ClassVar[float] = 20.0

    what: str
    unit: str
    cells: Mapping[str, float | str]
    goals: Sequence[Goal] = ()
    stall_ms: float | None = None
    calm_stall_ms: float | None = None
    verdicts: list[Verdict] = field(init=False)

    def __post_init__(self) -> None:
        verdicts = [goal.verdict(self.cells, self.unit) for goal in self.goals]
        found = [verdict for verdict in verdicts if verdict is not None]
        if self.stall_ms is not None:
            calm = self.calm_stall_ms
            undisturbed = "" if calm is None else f", {calm:.0f} ms while the machine is calm"
            text = f"worst stall {self.stall_ms:.0f} ms{undisturbed} (<= {self.STALL_GOAL_MS:.0f})"
            found.append(Verdict(text, self.stall_ms <= self.STALL_GOAL_MS))
        object.__setattr__(self, "verdicts", found)

    def texts(self) -> list[str]:
        """Return the row's cells as strings."""
        numbers = [self._text(self.cells.get(name)) for name in self.COLUMNS]
        return [self.what, *numbers, self._ratio()]

    def below(self) -> list[str]:
        """Return the lines below the row: the goals, and why a peer has no number."""
        missing: dict[str, list[str]] = {}
        for name, why in self.cells.items():
            if isinstance(why, str):
                missing.setdefault(why, []).append(name)
        return [
            *map(str, self.verdicts),
            *(f"{', '.join(names)}: {why}" for why, names in missing.items()),
        ]

    def met(self) -> list[bool]:
        """Return for each goal whether it was met."""
        return [verdict.met for verdict in self.verdicts]

    @property
    def ours(self) -> float:
        """aioxarray's number."""
        ours = self.cells[OURS.name]
        assert not isinstance(ours, str)
        return ours

    def _text(self, cell: float | str | None) -> str:
        if cell is None:
            return ""
        return "-" if isinstance(cell, str) else number(cell, self.unit)

    def _ratio(self) -> str:
        plain = [n for peer in XARRAY if isinstance(n := self.cells.get(peer.name), float)]
        ours = self.cells[OURS.name]
        if not plain or not isinstance(ours, float) or not ours or not self.unit:
            return ""
        return f"{min(plain) / ours:.1f}x"
