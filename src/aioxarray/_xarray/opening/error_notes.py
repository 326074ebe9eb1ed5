"""Notes added to the errors of opens and saves: the place, what was tried, and possible fixes.

The errors keep the types and messages that xarray and the libraries below it gave them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aioxarray._xarray.compat import BackendEntrypoint, plugins
from aioxarray._xarray.opening.guessing import guess_engine, missing_engines
from aioxarray._xarray.opening.packages import how_to_install, missing_package
from aioxarray._zarr.stores.printable import printable
from aioxarray.errors import did_you_mean


@dataclass(frozen=True)
class Attempt:
    """An input, and the engine that is to open it.

    Attributes
    ----------
    source
        The input as the user gave it.
    engine
        The engine, by name or class.
    options
        Arguments for the engine.
    said_by
        If the engine was guessed, the name of the argument that overrides it.
    """

    source: Any
    engine: str | type[BackendEntrypoint]
    options: Mapping[str, Any]
    said_by: str | None

    @property
    def engine_name(self) -> str:
        """The name of the engine, or of its class."""
        return self.engine if isinstance(self.engine, str) else self.engine.__name__

    @contextlib.contextmanager
    def error_notes(self) -> Iterator[None]:
        """Add notes to an error raised in the body: the input, the engine, what to install."""
        try:
            yield
        except Exception as error:
            name = self.engine_name
            group = self.options.get("group")
            place = f"group {group!r} of {printable(self.source)!r}" if group else None
            note = f"while opening {place or repr(printable(self.source))} with engine {name!r}"
            if self.said_by is not None:
                note = f"{note}, which was guessed: {self.said_by}= names another"
            if not any(each.startswith(note) for each in getattr(error, "__notes__", ())):
                error.add_note(note)
            with_options = self.options.get("storage_options")
            _note_missing(error, by_obstore=name == "zarr" and not with_options)
            raise

    def check_names(self, caller: str, method: str, own: Collection[str] = ()) -> None:
        """Raise TypeError for the first option that is no argument of the engine.

        Parameters
        ----------
        caller
            The function that the user called, for the message.
        method
            The method of the engine that will be called.
        own
            The names of arguments of the caller, which the engine need not have.
        """
        engine = plugins.get_backend(self.engine)
        parameters: dict[str, Any] = dict(inspect.signature(getattr(engine, method)).parameters)
        if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            if not type(engine).__module__.startswith("xarray."):
                return
            # xarray's own engines pass these on to ``open_dataset``.
            parameters |= inspect.signature(engine.open_dataset).parameters
        for name in self.options:
            if name not in {*own, *parameters, *_TAKEN_BY_XARRAY}:
                raise TypeError(
                    f"{caller}() got an unexpected keyword argument {name!r} for engine "
                    f"{self.engine_name!r}{did_you_mean(name, [*parameters, *own])}"
                )


# Options that xarray's functions consume themselves, although no signature lists them.
_TAKEN_BY_XARRAY = frozenset({"overwrite_encoded_chunks"})


def guess_engine_with_notes(
    source: Any, options: Mapping[str, Any]
) -> str | type[BackendEntrypoint]:
    """Guess the engine for ``source``; an error gets notes on the input and what to install."""
    try:
        return guess_engine(source, options)
    except Exception as error:
        _add_note(error, f"while looking for an engine for {printable(source)!r}")
        if isinstance(error, ValueError):
            _add_note(error, how_to_install(missing_engines(source)))
        raise


@contextlib.contextmanager
def error_note(note: str, *, by_obstore: bool = False) -> Iterator[None]:
    """Add ``note`` to an error raised in the body, and an install hint if a package is missing.

    ``by_obstore`` is passed to `how_to_install`.
    """
    try:
        yield
    except Exception as error:
        _add_note(error, note)
        _note_missing(error, by_obstore=by_obstore)
        raise


def _note_missing(error: Exception, *, by_obstore: bool) -> None:
    package = missing_package(error)
    if package is not None and "pip install" not in str(error):
        _add_note(error, how_to_install([package], by_obstore=by_obstore))


def _add_note(error: BaseException, note: str) -> None:
    """Add ``note`` to ``error`` once, even if the error is raised again or passes here twice."""
    if note and note not in getattr(error, "__notes__", ()):
        error.add_note(note)
