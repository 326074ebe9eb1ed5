"""An S3 server on loopback, and how fsspec reaches it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def s3_server(bucket: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Serve an empty bucket; give the filesystem that has it, and the options that make one."""
    # Both take long to import, and most runs of tests need neither.
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    options: dict[str, Any] = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        # A filesystem of the test's own, and not one that another test has bound to a loop.
        "skip_instance_cache": True,
    }
    filesystem = s3fs.S3FileSystem(**options)
    filesystem.mkdir(bucket)
    try:
        yield filesystem, options
    finally:
        server.stop()
