"""Bytes that have arrived on the TCP connections of this process, as the kernel counts them.

A client tells nothing of a body until all of it is there. This shows, whichever client it is,
whether a server still sends.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Mapping

# ``tcpi_bytes_acked`` and ``tcpi_bytes_received`` of ``struct tcp_info`` in <linux/tcp.h>, since
# Linux 4.1.
_MOVED = struct.Struct("=QQ")
_MOVED_AT = 120

Connection = tuple[str, int, int]
"""The address and the port of the other end, and the port of this one."""


def moved_bytes() -> Mapping[Connection, int] | None:
    """Return the bytes received, and sent and acknowledged, on each connection of this process.

    None if this system does not tell. Takes about 10 us a descriptor.
    """
    # A socket object of Python would give a default timeout to descriptors of other libraries.
    if sys.platform != "linux" or socket.getdefaulttimeout() is not None:
        return None
    moved: dict[Connection, int] = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            # A duplicate, so that closing it leaves the other library's descriptor alone.
            with socket.socket(fileno=os.dup(int(name))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                (host, port), (_, here) = connection.getpeername()[:2], connection.getsockname()[:2]
                size = _MOVED_AT + _MOVED.size
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
        except OSError:
            # Closed meanwhile, not connected, or not TCP.
            continue
        if len(info) == size:
            moved[plain_address(host), port, here] = sum(_MOVED.unpack_from(info, _MOVED_AT))
    return moved


def plain_address(host: str) -> str:
    """Return an IP address in the form in which equal ones are equal."""
    return host.removeprefix("::ffff:")
