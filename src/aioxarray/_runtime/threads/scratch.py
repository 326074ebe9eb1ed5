"""Scratch memory that each thread reuses for temporary data."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Scratch(threading.local):
    """Thread-local buffers for temporary data, one for each purpose.

    New memory for each chunk would cost more than decoding into it, because the kernel clears it.
    """

    # Larger buffers are not kept.
    KEPT = 8 << 20

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def __call__(self, purpose: str, size: int) -> NDArray[np.uint8]:
        kept = self._kept.get(purpose)
        if kept is None or kept.size < size:
            kept = _aligned(size)
            if size <= self.KEPT:
                self._kept[purpose] = kept
        return kept[:size]


# The smallest page size of common systems, in bytes.
_PAGE = 4096


def _aligned(size: int) -> NDArray[np.uint8]:
    """Return memory that begins at a page boundary.

    On some CPUs, the kernel copies from files at a quarter of the speed if the destination's offset
    in a page exceeds that in the file by 1 to 31 bytes. numpy's memory usually has an offset of 16.
    """
    memory = np.empty(size + _PAGE, np.uint8)
    first = -memory.ctypes.data % _PAGE
    return memory[first : first + size]


scratch = _Scratch()
