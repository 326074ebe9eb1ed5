"""The process-wide budgets, between tests."""

from __future__ import annotations

import asyncio

from aioxarray._zarr.stores import grants

_BUDGETS = (grants.requests, grants.memory, grants.threads, grants.fetching)
_PATIENCE_S = 60.0


def in_use() -> list[str]:
    """Describe the budgets of which something is in use."""
    return [repr(budget) for budget in _BUDGETS if budget.statistics().in_use]


async def until_free(patience_s: float = _PATIENCE_S) -> None:
    """Wait until nothing is in use of any budget: calls that were given up may end later."""
    for budget in _BUDGETS:
        async with asyncio.timeout(patience_s):
            while budget.statistics().in_use:
                with budget.share(1) as share:
                    # An amount larger than all bounds is admitted when no other hold is left:
                    # first none of the short ones, then none of the long ones.
                    async with share.hold(1 << 60):
                        pass
                    async with share.hold(1 << 60, long=True):
                        pass
