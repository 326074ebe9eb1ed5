"""Each fault of a server, with each client, ends in the right values or a clear error in time.

These are cells of the matrix that ``make faults`` prints; see `benchmarks.faults`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.faults.cells import WHENS, Cell, cells
from benchmarks.faults.clients import CLIENTS
from benchmarks.faults.runner import CellRunner

# One of each kind: a refusal, a broken connection, a broken body, damaged data.
QUICK = ("503", "reset", "truncate", "flip")


@pytest.fixture(scope="module")
def runner() -> Iterator[CellRunner]:
    with CellRunner() as runner:
        yield runner


def check(runner: CellRunner, cell: Cell) -> None:
    result = runner.run(cell)
    assert result.meets_goal, f"{cell}: {result.verdict}: {result.detail}"


@pytest.mark.matrix(together=0)
@pytest.mark.parametrize("client", CLIENTS)
def test_loads_survive_a_fault(runner: CellRunner, client: str) -> None:
    for fault in QUICK:
        check(runner, Cell(client, fault, "load", "middle"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("when", WHENS)
@pytest.mark.parametrize("client", CLIENTS)
def test_opens_and_saves(runner: CellRunner, client: str, when: str) -> None:
    for cell in cells([client], QUICK, ["open", "save"], [when]):  # type: ignore[list-item]
        check(runner, cell)
