"""Additions to xarray's classes: the ``.aio`` accessor, `DataTree.load_async` and `install`.

`aio` is the accessor for static tools.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Unpack, overload

import xarray as xr

from aioxarray import saving
from aioxarray._runtime.loops import run_blocking
from aioxarray._xarray.lazy.loader import Options
from aioxarray.config import Concurrency
from aioxarray.explaining import LoadPlan, explain
from aioxarray.loading import (
    compute,
    compute_async,
    computed,
    load,
    load_async,
    load_into,
)
from aioxarray.progress import Progress
from aioxarray.saving import ZarrKeywords, to_netcdf, to_netcdf_async, to_zarr, to_zarr_async

if TYPE_CHECKING:
    from aioxarray._xarray.compat import ZarrStore

T = TypeVar("T", bound=xr.Dataset | xr.DataArray | xr.DataTree)
M = TypeVar("M", bound=Callable[..., Any])


def _with_signature_of(function: Callable[..., Any]) -> Callable[[M], M]:
    """Give a method the signature of ``function``, to which it passes its arguments."""

    def decorate(method: M) -> M:
        first, *rest = inspect.signature(function).parameters.values()
        own = [first.replace(name="self", annotation=first.empty), *rest]
        method.__signature__ = inspect.Signature(own)  # type: ignore[attr-defined]
        return method

    return decorate


class AioAccessor(Generic[T]):
    """aioxarray's functions as methods: ``await ds.aio.load_async()``.

    Registered for Dataset, DataArray and DataTree. Each method calls the function of the same
    name with the object as its first argument.
    """

    def __init__(self, obj: T) -> None:
        self._obj = obj

    def __repr__(self) -> str:
        verbs = [name for name in vars(AioAccessor) if not name.startswith("_")]
        return f"<aioxarray for a {type(self._obj).__name__}: {', '.join(verbs)}>"

    def load(
        self,
        *,
        concurrency: Concurrency | None = None,
        timeout: float | None = None,
        progress: Progress = None,
        max_bytes: int | str | None = None,
        out: Any = None,
    ) -> T:
        """See `aioxarray.load`."""
        return load(
            self._obj,
            concurrency=concurrency,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
            out=out,
        )

    async def load_async(
        self,
        *,
        concurrency: Concurrency | None = None,
        timeout: float | None = None,
        progress: Progress = None,
        max_bytes: int | str | None = None,
        out: Any = None,
    ) -> T:
        """See `aioxarray.load_async`."""
        return await load_async(
            self._obj,
            concurrency=concurrency,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
            out=out,
        )

    def compute(
        self,
        *,
        concurrency: Concurrency | None = None,
        timeout: float | None = None,
        progress: Progress = None,
        max_bytes: int | str | None = None,
    ) -> T:
        """See `aioxarray.compute`."""
        return compute(
            self._obj,
            concurrency=concurrency,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
        )

    async def compute_async(
        self,
        *,
        concurrency: Concurrency | None = None,
        timeout: float | None = None,
        progress: Progress = None,
        max_bytes: int | str | None = None,
    ) -> T:
        """See `aioxarray.compute_async`."""
        return await compute_async(
            self._obj,
            concurrency=concurrency,
            timeout=timeout,
            progress=progress,
            max_bytes=max_bytes,
        )

    def explain(self) -> LoadPlan:
        """See `aioxarray.explain`."""
        return explain(self._obj)

    @overload
    def to_zarr(
        self,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: Literal[True] = ...,
        **options: Unpack[ZarrKeywords],
    ) -> ZarrStore: ...
    @overload
    def to_zarr(
        self,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: bool,
        **options: Unpack[ZarrKeywords],
    ) -> Any: ...
    # Here, ``to_zarr`` alone is the method above.
    @_with_signature_of(saving.to_zarr)
    def to_zarr(self, store: Any = None, mode: Any = None, **options: Any) -> Any:
        """See `aioxarray.to_zarr`."""
        return to_zarr(self._obj, store, mode, **options)

    @overload
    async def to_zarr_async(
        self,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: Literal[True] = ...,
        **options: Unpack[ZarrKeywords],
    ) -> ZarrStore: ...
    @overload
    async def to_zarr_async(
        self,
        store: Any = ...,
        mode: Any = ...,
        *,
        compute: bool,
        **options: Unpack[ZarrKeywords],
    ) -> Any: ...
    @_with_signature_of(saving.to_zarr_async)
    async def to_zarr_async(self, store: Any = None, mode: Any = None, **options: Any) -> Any:
        """See `aioxarray.to_zarr_async`."""
        return await to_zarr_async(self._obj, store, mode, **options)

    @_with_signature_of(to_netcdf)
    def to_netcdf(self, path: Any = None, mode: str = "w", **options: Any) -> Any:
        """See `aioxarray.to_netcdf`."""
        return to_netcdf(self._obj, path, mode, **options)

    @_with_signature_of(to_netcdf_async)
    async def to_netcdf_async(self, path: Any = None, mode: str = "w", **options: Any) -> Any:
        """See `aioxarray.to_netcdf_async`."""
        return await to_netcdf_async(self._obj, path, mode, **options)


def aio(obj: T) -> AioAccessor[T]:
    """Return ``obj.aio``, with types for editors and type checkers.

    xarray's classes do not declare the accessors that packages register, so that an editor or type
    checker knows nothing of ``ds.aio``. Stubs could not add to these classes, only replace them.

    No request is made.

    Parameters
    ----------
    obj
        A Dataset, DataArray or DataTree.

    Returns
    -------
    AioAccessor
        The accessor of ``obj``.

    Raises
    ------
    TypeError
        If ``obj`` is anything else.
    """
    accessor = getattr(obj, "aio", None)
    if not isinstance(accessor, AioAccessor):
        raise TypeError(
            f"only a Dataset, DataArray or DataTree has methods in .aio, not {type(obj).__name__}"
        )
    return accessor


async def _load_async(self: Any, **kwargs: Any) -> Any:
    """Load this object's data into memory through aioxarray, in place, and return it.

    Parameters
    ----------
    **kwargs
        Passed to ``dask.compute`` for chunked data.

    See Also
    --------
    aioxarray.load_async
    """
    await load_into(self, Options(dask=kwargs))
    return self


def _load(self: Any, **kwargs: Any) -> Any:
    return run_blocking(lambda: _load_async(self, **kwargs))


def _compute(self: Any, **kwargs: Any) -> Any:
    return run_blocking(lambda: computed(self, Options(dask=kwargs)))


def register() -> None:
    """Register the accessor, and add the ``DataTree.load_async`` that xarray lacks."""
    xr.register_dataset_accessor("aio")(AioAccessor)
    xr.register_dataarray_accessor("aio")(AioAccessor)
    xr.register_datatree_accessor("aio")(AioAccessor)
    if not hasattr(xr.DataTree, "load_async"):
        setattr(xr.DataTree, "load_async", _load_async)  # noqa: B010 - mypy knows no such method


_METHODS: dict[str, Callable[..., Any]] = {
    "load": _load,
    "load_async": _load_async,
    "compute": _compute,
}
_CLASSES = (xr.Variable, xr.DataArray, xr.Dataset, xr.DataTree)

_lock = threading.Lock()
_installed = 0
_originals: dict[tuple[type, str], Callable[..., Any]] = {}


class Installation:
    """Handle returned by `install`; ``uninstall()`` or leaving its context undoes it."""

    def __init__(self) -> None:
        self._active = True

    def uninstall(self) -> None:
        """Undo this installation; undoing the last one restores xarray's own methods."""
        global _installed
        with _lock:
            if not self._active:
                return
            self._active = False
            _installed -= 1
            if _installed == 0:
                for (cls, name), original in _originals.items():
                    setattr(cls, name, original)
                _originals.clear()

    def __enter__(self) -> Installation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.uninstall()


def install() -> Installation:
    """Make xarray's own ``load``, ``load_async`` and ``compute`` run through aioxarray.

    This applies to Variable, DataArray, Dataset and DataTree in the whole process, however the
    data was opened, until ``uninstall()`` is called on the result or its context ends::

        with aioxarray.install():
            ds.load()

    Data that xarray loads without these methods (``ds.a.values``, a plot) is read as before.
    """
    global _installed
    with _lock:
        if _installed == 0:
            for cls in _CLASSES:
                for name, method in _METHODS.items():
                    original = getattr(cls, name)
                    _originals[cls, name] = original
                    # Keep the name and the documentation that users know.
                    setattr(cls, name, functools.wraps(original)(_plain(method)))
        _installed += 1
    return Installation()


def _plain(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a new function for each class, so that `functools.wraps` can name it."""
    if method is _load_async:

        async def asynchronous(self: Any, **kwargs: Any) -> Any:
            return await _load_async(self, **kwargs)

        return asynchronous
    return lambda self, **kwargs: method(self, **kwargs)
