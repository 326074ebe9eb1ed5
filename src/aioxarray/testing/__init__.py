"""Fakes for testing code that loads and saves through zarr stores."""

from aioxarray.testing._log import LogSnapshot, Request, RequestLog
from aioxarray.testing.clock import DeadlockError, VirtualClock
from aioxarray.testing.server import ObjectServer
from aioxarray.testing.stores import FaultyStore, GatedStore, LatencyStore, RecordingStore

__all__ = [
    "DeadlockError",
    "FaultyStore",
    "GatedStore",
    "LatencyStore",
    "LogSnapshot",
    "ObjectServer",
    "RecordingStore",
    "Request",
    "RequestLog",
    "VirtualClock",
]
