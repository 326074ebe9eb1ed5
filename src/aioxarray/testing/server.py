"""Loopback server for objects, HTTP and S3, with latency, bandwidth, faults and counters.

It runs in a thread or in its own process. ``python -m aioxarray.testing --latency-s 0.05 --root
DIRECTORY`` starts one from the command line.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import threading
from collections.abc import MutableMapping, Sequence
from concurrent.futures import Future
from typing import Self

from aioxarray.testing._gate import Gate
from aioxarray.testing._log import RequestLog
from aioxarray.testing._serving.faults import Effect, Fault
from aioxarray.testing._serving.hosts import HOST, Host, ProcessHost, ThreadHost, make_site, serve
from aioxarray.testing.latency import Latency, latency_from_json

__all__ = ["ObjectServer"]


class ObjectServer:
    """HTTP/1.1 server for objects on 127.0.0.1, at a free port.

    It answers GET (whole or with one range), HEAD, PUT and DELETE, with ETags and the conditions
    If-Match and If-None-Match. Directories are listed as a page of links, for fsspec, and by
    PROPFIND, for obstore. Connections are kept alive.

    It is also an S3 server for path-style requests: the first part of a key is the bucket, and
    every bucket exists. Listings (ListObjectsV2), bulk deletes, copies and multipart uploads work
    with s3fs, obstore and icechunk; errors are XML documents with S3's codes. Signatures are not
    checked. The log and the rules of `fail` know a listing as the method "LIST", with bucket and
    prefix as the key.

    Parameters
    ----------
    latency_s : float, Exponential, Mixed or callable, optional
        Delay of each answer in seconds, a distribution, or a function that returns the delay of
        the next answer (not for a server in another process). It can be changed while the server
        runs.
    root : path, optional
        Serve the files of this directory. By default, objects are in memory.
    process : bool, optional
        Serve from another process, so that the server does not hold the GIL of the process under
        test. It starts in about the time that ``import zarr`` takes, and ends with this process.
    bytes_per_s : float, optional
        Bandwidth for bodies, sent and received, of all clients together: an answer is sent when
        all bodies before it, and its own, have been transferred. 0: no limit.

    Examples
    --------
    >>> import urllib.request
    >>> with ObjectServer() as server:
    ...     server.put("a/b", b"hello")
    ...     with urllib.request.urlopen(f"{server.url}/a/b") as answer:
    ...         answer.read()
    ...     server.log.count("GET")
    b'hello'
    1

    How s3fs, obstore and icechunk reach a bucket of it::

        s3fs.S3FileSystem(key="any", secret="any", client_kwargs={"endpoint_url": server.url})
        obstore.store.S3Store(
            "bucket", endpoint=server.url, region="any", access_key_id="any",
            secret_access_key="any", client_options={"allow_http": True},
        )
        icechunk.s3_storage(
            bucket="bucket", prefix="repo", endpoint_url=server.url, allow_http=True,
            force_path_style=True, region="any", access_key_id="any", secret_access_key="any",
        )
    """

    def __init__(
        self,
        latency_s: Latency = 0.0,
        root: str | os.PathLike[str] | None = None,
        process: bool = False,
        bytes_per_s: float = 0.0,
    ) -> None:
        self._initial_latency_s = latency_s
        self._bytes_per_s = bytes_per_s
        self._root = root
        self._process = process
        self._host: Host | None = None

    def start(self) -> Self:
        """Start the server; ``with`` does the same."""
        if self._host is not None:
            raise RuntimeError("the server has been started already")
        if self._process:
            self._host = ProcessHost(self._initial_latency_s, self._bytes_per_s, self._root)
        else:
            self._host = ThreadHost(
                make_site(self._initial_latency_s, self._bytes_per_s, self._root, alone=False)
            )
        return self

    def hold(self, glob: str = "*") -> None:
        """Hold the answers to requests for matching keys from now on, until `release`.

        Not available for a server in another process.
        """
        host = self._running
        if not isinstance(host, ThreadHost):
            raise TypeError("only a server in this process can hold requests")
        if host.site.gate is None:
            host.site.gate = Gate(glob)
        else:
            host.site.gate.set_open(glob, False)

    def release(self, glob: str = "*") -> None:
        """Answer matching requests, both held and future ones."""
        self._gate.set_open(glob, True)

    @property
    def waiting(self) -> tuple[str, ...]:
        """The keys whose requests are held now, in order of arrival."""
        return self._gate.waiting

    async def requested(self, glob: str = "*", count: int = 1) -> None:
        """Wait until ``count`` requests for matching keys have arrived since the first `hold`."""
        await self._gate.arrival(glob, count)

    def wait_requested(self, glob: str = "*", timeout_s: float = 30.0, count: int = 1) -> None:
        """Block this thread until ``count`` requests for matching keys have arrived.

        Raises TimeoutError after ``timeout_s`` seconds.
        """
        self._gate.wait_arrival(glob, count, timeout_s)

    async def deserted(self) -> None:
        """Wait until no request is held: all were answered, or their clients disconnected."""
        await self._gate.departure()

    @property
    def _gate(self) -> Gate:
        host = self._running
        if not isinstance(host, ThreadHost) or host.site.gate is None:
            raise RuntimeError("nothing is held: call `hold` first")
        return host.site.gate

    def fail(
        self,
        glob: str,
        effect: int | Effect | None = 500,
        *,
        method: str = "*",
        after: int = 0,
        times: int | None = None,
        probability: float = 1.0,
        seed: int = 0,
        retry_after: float | str | None = None,
        code: str | None = None,
        above: int | None = None,
        above_per_s: float | None = None,
    ) -> None:
        """Let requests for matching keys fail from now on.

        Parameters
        ----------
        glob : str
            The keys. Of several rules for a request, the latest that strikes decides.
        effect : int, str or None, optional
            What happens:

            - a number: the answer is this HTTP status, with a body for clients of S3 only;
            - ``"reset"``: the connection is reset, and nothing is read, stored or deleted;
            - ``"lose"``: what was requested is done, then the connection is reset;
            - ``"stall"``: no answer ever comes, and nothing is read, stored or deleted;
            - ``"stall-body"``: what was requested is done, but only half of the body ever comes, or
              half of the headers if there is no body;
            - ``"truncate"``: the connection closes after half of the body;
            - ``"extend"``: the body is 16 bytes longer than it should be, and its announced
              length too;
            - ``"overrun"``: 16 bytes more than were announced follow the body;
            - ``"flip"``: one bit in the middle of the body is wrong;
            - None: the answer is as it should be.
        method : str, optional
            Glob of the HTTP verbs.
        after : int, optional
            The number of matching requests that are answered first; those that fail by a later
            rule do not count.
        times : int, optional
            The number of requests that fail; by default, all.
        probability : float, optional
            The share of the remaining requests that fail, at random.
        seed : int, optional
            The seed of the random numbers: the same requests fail in every run.
        retry_after : float or str, optional
            The header "Retry-After" of a status: seconds, or a date.
        code : str, optional
            The code of a status for clients of S3; by default "SlowDown" for 503, "InternalError"
            for 500, and so on.
        above : int, optional
            Only requests fail that arrive while the server is at work on this many others.
        above_per_s : float, optional
            Only requests fail that exceed this many a second; as many may come at once.

        Examples
        --------
        >>> import urllib.error, urllib.request
        >>> with ObjectServer() as server:
        ...     server.put("a", b"hello")
        ...     server.fail("a", 503, times=1, retry_after=2)
        ...     for _ in range(2):
        ...         try:
        ...             with urllib.request.urlopen(f"{server.url}/a") as answer:
        ...                 answer.read()
        ...         except urllib.error.HTTPError as error:
        ...             error.close()
        ...             error.code, error.headers["Retry-After"]
        (503, '2')
        b'hello'
        """
        wait = None if retry_after is None else str(retry_after)
        self._running.fail(
            Fault(
                glob,
                effect,
                method,
                after,
                times,
                probability,
                seed,
                wait,
                code,
                above,
                above_per_s,
            )
        )

    def mend(self) -> None:
        """Forget all rules of `fail`. Stalled requests stay without an answer."""
        self._running.mend()

    def close(self) -> None:
        """Disconnect all clients and stop. Objects in memory are lost."""
        host, self._host = self._host, None
        if host is not None:
            host.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = "not running" if self._host is None else self.url
        return f"<ObjectServer: {where}>"

    @property
    def _running(self) -> Host:
        if self._host is None:
            raise RuntimeError("the server is not running: use `with ObjectServer() as server`")
        return self._host

    @property
    def url(self) -> str:
        """The server's URL, without a trailing slash."""
        return f"http://{HOST}:{self._running.port}"

    @property
    def log(self) -> RequestLog:
        """The requests, by HTTP verb and key, and how many were in flight.

        A request counts as completed when its answer is handed to the connection, and as
        cancelled if the client disconnected before that. Objects in memory without latency are
        served at once, so no two requests are in flight together. Each access asks the server
        process, if there is one.
        """
        return self._running.log

    @property
    def data(self) -> MutableMapping[str, bytes]:
        """The objects. Reading and changing them here is neither delayed nor counted."""
        return self._running.data

    def put(self, key: str, data: bytes) -> None:
        """Store an object; neither delayed nor counted."""
        self.data[key] = data

    @property
    def latency_s(self) -> Latency:
        """Delay of each answer in seconds, or its distribution; can be set."""
        return self._running.latency_s

    @latency_s.setter
    def latency_s(self, latency: Latency) -> None:
        self._running.latency_s = latency


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the server from the command line until interrupted; prints the port first."""
    parser = argparse.ArgumentParser(prog="python -m aioxarray.testing", description=__doc__)
    parser.add_argument(
        "--latency-s",
        type=latency_from_json,
        default=0.0,
        help='seconds, or as {"kind": "Exponential", "mean_s": 0.05}',
    )
    parser.add_argument("--bytes-per-s", type=float, default=0.0, help="0: no limit")
    parser.add_argument("--root", default=None, help="a directory; without it, in memory")
    parser.add_argument("--until-stdin-ends", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    async def run() -> None:
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        started: Future[int] = Future()
        started.add_done_callback(lambda port: print(port.result(), flush=True))  # noqa: T201

        def wait_for_parent() -> None:
            # The pipe closes however the parent ends, so no server outlives it.
            while os.read(0, 4096):
                pass
            loop.call_soon_threadsafe(stop.set)

        if options.until_stdin_ends:
            threading.Thread(target=wait_for_parent, daemon=True).start()
        site = make_site(options.latency_s, options.bytes_per_s, options.root, alone=True)
        await serve(site, started, stop)

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass
