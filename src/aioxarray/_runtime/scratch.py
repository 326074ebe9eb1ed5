"""Memory that each thread uses over and over, for what has to be somewhere for a moment."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _Scratch(threading.local):
    """Memory of a thread's own for what has to be somewhere for a moment.

    Fresh memory for each chunk would cost more than decoding into it: the kernel clears it.
    """

    # More than this is not kept.
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


# Bytes of a page of memory. Larger pages begin where these do.
_PAGE = 4096


def _aligned(size: int) -> NDArray[np.uint8]:
    """Return memory that begins with a page.

    The kernel copies from files a quarter as fast, on some processors, to where 1 to 31 bytes
    more of a page lie before than in the file; numpy's own memory mostly has 16.
    """
    memory = np.empty(size + _PAGE, np.uint8)
    first = -memory.ctypes.data % _PAGE
    return memory[first : first + size]


scratch = _Scratch()
