"""Verdicts on how a call with a fault ended."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from aioxarray import errors
from benchmarks.faults.cells import FAULTS, Cell
from benchmarks.faults.clients import BUCKET

Verdict = Literal["right", "clear error", "vague", "wrong", "hang", "leak", "not run"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

# What a handler can catch without knowing the client. A plain OSError says no more than the type
# of a client does.
_KINDS = (ConnectionError, FileNotFoundError, PermissionError, TimeoutError, ValueError)

_ATTEMPTS = re.compile(r"\b\d+ attempts?\b|\battempt \d+\b|retries by itself")
_PLACE = re.compile(rf"{BUCKET}|/data|127\.0\.0\.1|no-such-host|icechunk session")


@dataclass
class Result:
    """How a cell ended.

    Attributes
    ----------
    verdict
        The verdict.
    detail
        What was wrong, left behind or unclear; the error in words.
    seconds
        How long the call took.
    requests
        The number of requests at the server.
    """

    cell: Cell
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0
    requests: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON's types."""
        return {**self.cell._asdict(), **{k: v for k, v in asdict(self).items() if k != "cell"}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Result:
        """Return the result of which `to_json` returned ``values``."""
        cell = Cell(*(values.pop(name) for name in Cell._fields))
        return cls(cell, **values)

    @property
    def meets_goal(self) -> bool:
        """Whether it is as it should be."""
        fault = FAULTS[self.cell.fault]
        if self.verdict == "clear error":
            return fault.is_final or (self.cell.when == "always" and not fault.is_harmless)
        return self.verdict == "right"


def of_error(cell: Cell, error: BaseException) -> tuple[Verdict, str]:
    """Return whether an error is clear, and what it says or lacks."""
    text = "\n".join([str(error), *getattr(error, "__notes__", ())])
    said = f"{type(error).__module__}.{type(error).__qualname__}: {' | '.join(text.split(chr(10)))}"
    lacks = []
    is_ours = any(kind.__module__ == errors.__name__ for kind in type(error).__mro__)
    if not is_ours and not isinstance(error, _KINDS):
        lacks.append("type")
    if not _PLACE.search(text):
        lacks.append("place")
    if not FAULTS[cell.fault].is_final and not _ATTEMPTS.search(text):
        lacks.append("attempts")
    if lacks:
        return "vague", f"no {', '.join(lacks)} in {said}"
    return "clear error", said
