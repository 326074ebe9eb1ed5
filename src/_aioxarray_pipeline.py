"""The entry point by which zarr finds ``aioxarray.CodecPipeline``.

zarr loads the pipelines of all installed packages as soon as a program opens its first array,
also those that it does not use. Loading this one must therefore cost nothing, import neither
aioxarray nor xarray, and not fail. So the module lies outside of the package, whose import
brings all of it, and has a class that stands for the pipeline until an array needs it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

from zarr.abc.codec import CodecPipeline

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr.abc.codec import Codec


class _OnFirstUse(CodecPipeline):
    """Stands for the pipeline in zarr's registry while aioxarray is not imported.

    Importing aioxarray puts the pipeline itself in its place.
    """

    @classmethod
    def from_codecs(cls, codecs: Iterable[Codec], **settings: Any) -> Self:
        from aioxarray import CodecPipeline

        # zarr builds each pipeline by this method, and asks nothing else of the class.
        pipeline: Any = CodecPipeline.from_codecs(codecs, **settings)
        return pipeline  # type: ignore[no-any-return]


# zarr finds pipelines by the name of their class.
_OnFirstUse.__module__, _OnFirstUse.__qualname__ = "aioxarray", "CodecPipeline"


def __getattr__(name: str) -> type[CodecPipeline]:
    if name != "pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # zarr registers what it gets here. It must not replace the pipeline itself.
    found = getattr(sys.modules.get("aioxarray"), "CodecPipeline", _OnFirstUse)
    pipeline: type[CodecPipeline] = found
    return pipeline
