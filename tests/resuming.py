"""A process that takes the pieces of a stream and is killed, for `test_resumed_streams`.

It is forked from a server that has this module imported, so that many of them start soon.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioxarray

if TYPE_CHECKING:
    import xarray as xr

STEPS, EPOCHS = 120, 2


@dataclass
class Record:
    """The record of a consumer: its pieces, and the state that it goes on from.

    Attributes
    ----------
    state
        Of `Stream.state_dict`; None before the first piece.
    pieces
        For each piece that was taken, its place along "t" and a hash of its values.
    """

    state: dict[str, Any] | None = None
    pieces: list[tuple[int, str]] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Record:
        """Return the record in ``path``; an empty one if there is none."""
        if not path.exists():
            return cls()
        found = json.loads(path.read_text())
        return cls(found["state"], [(t, digest) for t, digest in found["pieces"]])

    def write(self, path: Path) -> None:
        """Write the record so that a reader finds this one or the one before, whole."""
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps(asdict(self)))
        os.replace(beside, path)


def described(piece: xr.Dataset) -> tuple[int, str]:
    """Return the place of a loaded piece, and a hash of its values."""
    return int(piece["t"][0]), hashlib.sha256(piece["v"].values.tobytes()).hexdigest()


def streamed(
    url: str, ordered: bool, state: dict[str, Any] | None
) -> aioxarray.Stream[tuple[int, str]]:
    """Return the stream of the pieces at ``url``, which goes on from ``state``."""
    blocks = aioxarray.blocks(aioxarray.open_zarr(url), {"t": 1}).shuffle(3, buffer=8)
    stream = aioxarray.stream(
        blocks, ahead="1MiB", ordered=ordered, transform=described, epochs=EPOCHS
    )
    if state is not None:
        stream.load_state_dict(state)
    return stream


def take(url: str, ordered: bool, path: Path, told: Connection) -> None:
    """Take the pieces that no process before has taken, and write down each; tell each step."""
    record = Record.read(path)
    with streamed(url, ordered, record.state) as pieces:
        told.send("entered")
        for piece in pieces:
            told.send("taken")
            record.pieces.append(piece)
            record.state = pieces.state_dict()
            record.write(path)
            told.send("written")
    told.send("ended")
