"""Pieces of xarray data for PyTorch: as tensors of a stream, and as a dataset for DataLoaders.

`tensors` hands out the pieces of a stream of this process as tensors; `IterableBlocks` is a dataset
whose pieces the workers of a DataLoader, and the ranks of a training, share. Needs the extra
``torch``.
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401 - only to say what is missing
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        "aioxarray.torch needs PyTorch: pip install 'aioxarray[torch]'", name="torch"
    ) from error

from aioxarray.torch.conversion import as_tensors
from aioxarray.torch.dataset import IterableBlocks
from aioxarray.torch.handing import Tensors, tensors

__all__ = ["IterableBlocks", "Tensors", "as_tensors", "tensors"]
