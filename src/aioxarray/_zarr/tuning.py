"""Every threshold that chooses between two ways, or sizes a step, with what it was measured by.

Figures are of 2 cores of a cloud machine, unless they say otherwise. Tests replace a value here to
make a choice certain, so that modules read these as attributes of this module.
"""

from __future__ import annotations

# --- the event loop and threads --------------------------------------------------------------

INLINE_BYTES = 16 << 10
"""Decoding up to this many bytes takes less time than a hop to a thread and back."""

DECODED_PART_BYTES = 1 << 20
"""Numbers are unpacked into an array of the caller in parts of this size, which stay in the CPU's
cache: 250 MB in 0.11 s, and as a whole in 0.21 s."""

BATCH_BYTES = 1 << 20
"""Chunks that have arrived are decoded together, up to this: a hop takes as long as decoding it."""

TURN_S = 0.01
"""How long other work may wait for a thread. The cost of a turn is small in comparison."""

RUN_BYTES = 16 << 20
"""The most bytes of a run of chunks: a hop takes as long as copying some MB."""

READ_RUN_BYTES = 2 << 20
"""The same where a thread takes further runs by itself, and small runs cost nothing."""

LEAST_RUN_BYTES = 2 << 20
"""The fewest bytes of a run, unless that would leave threads without one."""

RUN_CHUNKS = 128
"""The most chunks of a run: progress reports, and other work for the thread, wait for its end."""

LONG_BYTES = 4 << 20
"""Reading, or writing, more bytes than this takes longer than a round trip to most stores."""

MANY_CHUNKS = 10_000
"""From so many chunks on, a call keeps collections of garbage short: see `old_objects`.

Python collects the garbage of the whole process after some 10,000 requests side by side. That takes
50 ms in a process that has imported xarray and dask, and seconds in one with large caches.
"""

RUN_VARIABLES = 64
"""The most small variables that a thread reads in one run, which takes `TURN_S` at most."""

FEW_VARIABLES = 8
"""Fewer small variables of one place are as fast when read one by one."""

FEW_POINTS = 1000
"""Sorting this many points takes less time than a hop to a thread and back."""

SMALL_BLOCK_BYTES = 64 << 10
"""Up to this size, a block of a local array is read without a task and grants of its own."""

SMALL_ANSWER_BYTES = 64 << 10
"""An answer of up to this many bytes takes hardly longer than its latency."""

MEASURED_ANSWERS = 32
"""The number of last small answers of which the shortest tells the latency."""

MEASURED_BYTES = 1 << 20
"""The fewest bytes that tell the bandwidth: fewer fit into the buffers of connections."""

MEASURED_PERIOD_S = 2.0
"""The longest period for which bytes are counted: later ones tell more of the next load."""

REQUEST_SPANS = 1000
"""The most spans of requests that a call makes: each takes about 70 µs."""

SPANS_AT_ONCE = 10
"""Up to this many spans are made on the event loop: more would stall it for over a millisecond."""

# --- small chunks ----------------------------------------------------------------------------

SMALL_CHUNK_BYTES = 8 << 10
"""Chunks up to this size are decoded many by one call; for others, decoding is most of the work.

4096 zstd chunks of 4 KB: from local files 0.24 instead of 0.37 s; from a nearby server 0.58
instead of 0.84 s of CPU.
"""

TOGETHER_BYTES = 256 << 10
"""The decoded bytes of one such call: with the encoded ones, they stay in the CPU cache."""

# --- the engine for small chunks of local files --------------------------------------------

ENGINE_THREADS = 4
"""With fewer threads, TensorStore is as fast as the way of this package.

Of the 17 µs of processor time that a zstd chunk of 4 KB takes, 9 are steps that one thread makes at
a time, with Python's lock. TensorStore takes 18 µs, all without it. For chunks of 16 and 64 KB,
compressed or not, it takes 0.84 to 0.93 of the processor time.
"""

ENGINE_CHUNKS = 2048
"""The fewest chunks for which TensorStore is used: importing and opening it takes 15 ms."""

ENGINE_CHUNK_BYTES = 64 << 10
"""Up to this size, the steps with Python's lock take a good part of the time of a chunk."""

ENGINE_RUN_CHUNKS = 1024
"""The most chunks of a call of TensorStore: cancelling, and other loads, wait for its end."""

ENGINE_RUN_BYTES = 16 << 20
"""The most decoded bytes of such a call, all of which may be in memory at once."""

# --- servers ---------------------------------------------------------------------------------

FETCHERS = 8
"""Threads in blocking calls to one client: more do not make more requests per second.

Where more cores than this decode, there are half as many again as cores, for chunks whose decoding
takes longer than their request.
"""

FEW_CHUNKS = 8
"""Fewer requests than this are as fast with coroutines, however near the server."""

NEARBY_S = 0.005
"""A server is nearby if it answers within this time, plus that for the bytes.

From one on loopback, 8 threads load 4096 small chunks in 1.5 s, and coroutines in 3.5 s. From a
more distant one, hundreds of coroutines make more requests per second than threads.
"""

NEARBY_BYTES_A_SECOND = 100e6
"""The slowest transfer from a nearby server."""

LATE_S = 0.015
"""At the start of a load the I/O loop is busy, and notices an answer later by up to this time."""

FETCHER_PATIENCE_S = 0.1
"""How long a read waits for a thread to fetch in before it uses a coroutine instead."""

SLOW_BYTES_A_SECOND = 1e6
"""A body that may arrive as slowly as this is not overdue."""

HEDGE_SHARE = 0.05
"""The most hedges, as a share of the answers."""

SLOW_SHARE = 0.03
"""The share of answers after which one would be slow: fewer than may be hedged."""

CLEARLY_SLOWER = 1.25
"""A request is slow if it takes longer than those by this factor: latencies vary a little."""

HEDGE_SHARE_IF_SLOW = 0.01
"""The same for answers that took longer than most do: if all are slow, hedges add to the load."""

MOST_HEDGES = 8.0
"""The most hedges that are allowed at once, after many quick answers."""

HEDGES_OF_ONE = 2
"""The most hedges of one request: of a hundred hedges, one is slow, too."""

HEDGE_HISTORY = 512
"""The number of answers that show how long one usually takes."""

MOST_HOSTS = 256
"""The number of servers that are remembered."""

FIRST_IN_FLIGHT = 256
"""Under "auto", the first bound on the requests to a server.

A process makes up to 2500 requests a second, so that is enough for answers within 100 ms. For a
slower server the bound doubles; with half as many, a load of 1000 chunks from a server at 200 ms
would take a third longer.
"""

FOLLOWED_A_SECOND = 5000
"""The requests a second for which the default limit makes room: about what a process can make."""

FOLLOWED_BYTES = 256 << 20
"""Beyond the first 128, so many bytes may be on their way while the bandwidth is unknown."""

FOLLOWED_GAIN = 4
"""The bytes on their way, as a multiple of latency times bandwidth.

The bandwidth was measured with fewer requests, or shared with others: more may arrive.
"""

FOLLOWED_LARGE_BYTES = 1 << 20
"""Fewer than the default are in flight only of objects of at least so many bytes."""

FOLLOWED_LEAST = 16
"""But never fewer than this."""

FOLLOWED_EVERY = 64
"""After so many answers a read looks at the latency again."""

FOLLOWED_PAUSE_S = 60.0
"""How long a server that has refused requests gets the first number of them at most."""

PACE_SLACK_S = 0.005
"""Requests that are paced by a rate catch up on this much time: timers are late by milliseconds."""

# --- files -----------------------------------------------------------------------------------

FIRST_READ_BYTES = 64 << 10
"""The initial size of the first read of a file; a longer file takes a second read."""

LONGEST_FIRST_READ_BYTES = 4 << 20
"""The first read grows with the lengths of the files, up to this."""

COPIED_BYTES = 2 << 20
"""A buffer of this size stays in the CPU cache. A smaller one would release the GIL more often."""

LOCAL_GAP_BYTES = 4 << 10
"""In a local shard, reading a gap of a page between inner chunks costs nothing."""

LOCAL_RANGE_BYTES = 4 << 20
"""The most bytes of a local shard that are read at once."""

# --- the cache -------------------------------------------------------------------------------

CACHE_ENTRY_BYTES = 512
"""The overhead of an entry of the cache, besides the bytes of its array."""

PACE_BYTES = 1 << 20
"""A read yields to the event loop after copying this many bytes from the cache."""

PACE_PART_BYTES = 4 << 10
"""Bytes that each chunk from the cache counts in addition, for the Python code that copies it."""

# --- opening and saving ----------------------------------------------------------------------

PREFETCHED_CHUNKS = 64
"""Indexes with more chunks are not prefetched: the bytes are held until all indexes are made."""

CONTIGUOUS_CHUNK_BYTES = 4 << 20
"""Contiguous values of another format are read in chunks of about this many bytes."""

GATHERED_BYTES = 4 << 20
"""For smaller dask arrays, dask's own way costs less, and frees the blocks within a millisecond."""

SLABBED_BYTES = 512 << 20
"""Larger arrays that dask would decode block by block are decoded in slabs of about `SLAB_BYTES`,
`SLABS_TOGETHER` at a time, which bounds the encoded values that are held beside the result."""

SLAB_BYTES = 32 << 20
SLABS_TOGETHER = 6

FETCHED_BYTES = 16 << 20
"""Blocks that a cluster has computed are fetched together up to this size: distributed reads larger
messages in other threads than the loop's, and a message costs milliseconds."""

FETCHED_TOGETHER = 4
"""So many of these messages are awaited at once. They are beside the result in memory."""

DEFERRED_BYTES = 256 << 10
"""Encoding a smaller variable as a whole costs less than the hops to worker threads."""

SAVED_BLOCK_BYTES = 8 << 20
"""Large enough to outweigh the overhead of a block: a read, a hop to a thread, a call of zarr."""

RECORDED_BLOCK_BYTES = 2 << 20
"""The same for a save that records its blocks: those in flight are lost when it is killed."""

SAVED_PIECES = 256
"""More pieces of a save at once would only wait for the budgets."""

STAGED_PART = 8
"""The blocks of a save may take the setting ``memory`` divided by this.

Their chunks in flight, read or written, come on top.
"""
