"""Test doubles for code that reads and writes zarr stores.

The stores wrap any other store and compose: `RecordingStore` counts requests, `LatencyStore`
delays them, `GatedStore` holds them until the test releases them, and `FaultyStore` fails them or
damages their bytes. `VirtualClock` skips waiting and measures it exactly, `ObjectServer` is a real
HTTP and S3 server with latency (`Exponential` and `Mixed` are distributions), bandwidth, counters
and faults by rule, and `StallMonitor` measures how long an event loop was blocked.

Two dependent round trips, counted by the clock and at the store:

>>> import asyncio
>>> from zarr.core.buffer import default_buffer_prototype
>>> from zarr.storage import MemoryStore
>>> store = RecordingStore(LatencyStore(MemoryStore(), latency_s=1.0))
>>> async def main():
...     prototype = default_buffer_prototype()
...     await store.get("zarr.json", prototype)
...     await asyncio.gather(*(store.get(f"a/c/{i}", prototype) for i in range(100)))
>>> clock = VirtualClock()
>>> clock.run(main)
>>> clock.elapsed_s
2.0
>>> store.log.count("get", "a/c/*"), store.log.most_in_flight
(100, 100)
"""

from aioxarray.testing._log import LogSnapshot, Request, RequestLog
from aioxarray.testing.clock import DeadlockError, VirtualClock
from aioxarray.testing.latency import Exponential, Mixed
from aioxarray.testing.server import ObjectServer
from aioxarray.testing.stalls import StallMonitor
from aioxarray.testing.stores import FaultyStore, GatedStore, LatencyStore, RecordingStore

__all__ = [
    "DeadlockError",
    "Exponential",
    "FaultyStore",
    "GatedStore",
    "LatencyStore",
    "LogSnapshot",
    "Mixed",
    "ObjectServer",
    "RecordingStore",
    "Request",
    "RequestLog",
    "StallMonitor",
    "VirtualClock",
]
