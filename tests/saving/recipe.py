"""The recipe of `docs/guides/clusters.md`: a template, and then its regions by rank.

``python -m tests.saving.recipe SOURCE TARGET`` fills the part of the rank in the environment.
"""

from __future__ import annotations

import os
import sys

import aioxarray

ENCODING = {"v": {"chunks": (5, 10), "shards": (10, 20)}}


def template(source: str, target: str) -> None:
    """Write everything but the values."""
    later = aioxarray.open_zarr(source)[["v"]].chunk(y=10, x=20)
    aioxarray.to_zarr(later, target, encoding=ENCODING, compute=False, resume=True)


def fill(source: str, target: str, rank: int, size: int) -> int:
    """Write the values of one part; return the number of its regions."""
    ds = aioxarray.open_zarr(source)[["v"]]
    regions = aioxarray.blocks(aioxarray.open_zarr(target), "shards").shard(rank, size).regions()
    for region in regions:
        part = ds.isel(region).drop_vars(list(ds.coords)).chunk()
        aioxarray.to_zarr(part * 2, target, region=region, resume=True)
    return len(regions)


if __name__ == "__main__":
    rank = int(os.environ.get("SLURM_ARRAY_TASK_ID", os.environ.get("RANK", "0")))
    size = int(os.environ.get("SLURM_ARRAY_TASK_COUNT", os.environ.get("SIZE", "1")))
    _, source, target = sys.argv
    fill(source, target, rank, size)
