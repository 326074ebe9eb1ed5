"""What one load grants to the reads of its arrays: places, threads, a way to report."""

from __future__ import annotations

from dataclasses import dataclass

from aioxarray._runtime.budget import Share
from aioxarray._runtime.threads import Pool


@dataclass(frozen=True)
class Reading:
    """What the reads of one load share.

    Attributes
    ----------
    requests
        Places for store requests in flight.
    memory
        Places for bytes of chunks that are fetched or decoded.
    decoders
        The threads that decode.
    decoder_count
        How many of them one array may use at once.
    """

    requests: Share
    memory: Share
    decoders: Pool
    decoder_count: int
