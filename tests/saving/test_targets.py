"""Parts of chunked data that are handed over when their save has ended."""

from __future__ import annotations

import asyncio
import gc
import warnings

import pytest

from aioxarray._runtime.budget import Budget
from aioxarray._xarray.dask.targets import Intake
from aioxarray.progress import Meter


@pytest.mark.anyio
async def test_a_part_that_comes_after_the_end_is_refused_and_leaves_nothing_behind() -> None:
    async def write() -> None:
        raise AssertionError("nothing is written after the end")

    with Budget("bytes").share(10) as staged, warnings.catch_warnings():
        # What is not awaited warns when it is collected.
        warnings.simplefilter("error")
        async with asyncio.TaskGroup() as tasks:
            intake = Intake(tasks, staged, Meter(None, 1))
        with pytest.raises(asyncio.CancelledError):
            await intake.take(write, 1)
        gc.collect()
        assert staged.in_use == 0
