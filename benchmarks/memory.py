"""Benchmark of the peak memory of a read, above the result; each peer in its own process."""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aioxarray.testing import ObjectServer
from benchmarks import peers
from benchmarks.data import Files, quiet
from benchmarks.measuring import Options
from benchmarks.peer_rows import Bound, PeerRow
from benchmarks.peers import OURS, PEERS, Source, Unavailable

TITLE = "Peak of memory above the result's size"
TABLE = PeerRow
# 64 MB plus two chunks of 2 MB for each of the 2 threads (a shard counts as its inner chunks).
GOAL_MB = 64 + 2 * 2 * 2.1


def run(options: Options, files: Files) -> Iterator[PeerRow]:
    """Yield the rows."""
    cases = {
        "local, 4 x 128 chunks of 2 MB, zstd": files.large_chunks,
        "local, 16 shards of 32 MB, inner 256 KB": files.shards,
        "local, 4 x 2048 chunks of 4 KB, zstd": files.small_chunks,
    }
    for what, make in cases.items():
        if options.wants(what):
            yield _row(what, Source(make()))
    what = "HTTP, 4 x 128 chunks of 2 MB, zstd"
    if options.wants(what):
        path = files.large_chunks()
        with ObjectServer(root=files.root, process=True) as server:
            yield _row(what, Source(path, f"{server.url}/{path.name}"))


def _row(what: str, source: Source) -> PeerRow:
    cells: dict[str, float | str] = {}
    for peer in PEERS:
        arguments = [peer.name, str(source.path), *([source.url] if source.url else [])]
        child = subprocess.run(
            [sys.executable, "-m", __name__, *arguments], capture_output=True, text=True
        )
        try:
            cells[peer.name] = float(child.stdout)
        except ValueError:
            if peer is OURS:
                raise RuntimeError(f"{OURS.name} failed: {child.stderr}") from None
            cells[peer.name] = child.stdout.strip() or "it crashed"
    return PeerRow(what, "MB", cells, (Bound(GOAL_MB),))


def _child(name: str, path: str, url: str | None = None) -> float:
    """Read once, and return by how many MB the peak of memory exceeded the result."""
    (peer,) = (peer for peer in PEERS if peer.name == name)
    read = peers.opened(peer, Source(Path(path), url))

    async def main() -> Any:
        result = read()
        return await result if inspect.isawaitable(result) else result

    reset_peak()
    before = kilobytes("VmRSS")
    values = asyncio.run(main())
    peak = kilobytes("VmHWM")
    above: float = ((peak - before) * 1024 - sum(value.nbytes for value in values.values())) / 1e6
    return above


def reset_peak() -> None:
    """Have the peak of memory counted from now on."""
    path = Path("/proc/self/clear_refs")
    if not path.exists():
        raise Unavailable("this operating system does not tell the peak of a while")
    path.write_text("5")


def kilobytes(field: str) -> int:
    for text in Path("/proc/self/status").read_text().splitlines():
        if text.startswith(f"{field}:"):
            return int(text.split()[1])
    raise Unavailable(f"this operating system does not tell {field}")


if __name__ == "__main__":
    with quiet():
        try:
            print(_child(*sys.argv[1:]))
        except Exception as error:
            print(peers.reason(error))
            raise
