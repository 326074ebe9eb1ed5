"""How long loading from a local disk takes, where decoding is the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aioxarray
from benchmarks import data
from benchmarks.data import Files
from benchmarks.measuring import Options, measure, plain_load, plain_load_async
from benchmarks.rows import Row

TITLE = "Time to load from local disk (no goal yet)"


def run(options: Options, files: Files) -> Iterator[Row]:
    """Yield the rows."""
    yield _row("4 variables, {} chunks of 2 MB each", files.large_chunks(), options)
    yield _row("4 variables, {} chunks of 4 KB each", files.small_chunks(), options)


def _row(what: str, path: Path, options: Options) -> Row:
    lazy = data.opened(path)
    expected = plain_load(lazy.copy(deep=False))

    def seconds(way: Callable[[Any], Any]) -> float:
        return measure(way, lazy, expected, options).seconds

    return Row(
        what.format(lazy.sizes["t"]),
        "s",
        seconds(plain_load),
        seconds(plain_load_async),
        seconds(aioxarray.load_async),
    )
