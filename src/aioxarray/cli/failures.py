"""Errors that end a command, each told in one line and by an exit code."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from aioxarray._zarr.stores.printable import without_secrets
from aioxarray.errors import AioxarrayError, WrongRequestError

FAILED = 1
"""The exit code if the work failed."""

BAD_INPUT = 2
"""The exit code if the arguments, or the data that they name, have to be others."""

INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C."""

TERMINATED = 128 + signal.SIGTERM
"""The exit code after SIGTERM."""


class CommandError(Exception):
    """A command cannot go on. The message is one line; the exit code is `FAILED`."""

    exit_code = FAILED


class InputError(CommandError):
    """Other arguments are needed; the exit code is `BAD_INPUT`."""

    exit_code = BAD_INPUT


class Terminated(KeyboardInterrupt):
    """SIGTERM has arrived. All that ends on Ctrl-C ends in the same way."""


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, without secrets, after its type if needed."""
    # The text of a KeyError is quoted.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    lines = [line.strip() for line in without_secrets(text).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # The address that follows is on a line of its own.
    lines[0] = re.sub(r"\s*[^.]*, see:$", "", lines[0])
    if isinstance(error, AioxarrayError | FileNotFoundError):
        return lines[0]
    return f"{type(error).__name__.lstrip('_')}: {lines[0]}"


@contextmanager
def naming(action: str, hint: str = "") -> Iterator[None]:
    """Turn an error of the body into a `CommandError` that says which ``action`` failed.

    It is an `InputError`, with ``hint`` at its end, unless the server, the network or this machine
    failed.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        failed = isinstance(error, AioxarrayError) and not isinstance(error, WrongRequestError)
        told = f"cannot {action}: {one_line(error)}"
        if failed or isinstance(error, MemoryError):
            raise CommandError(told) from error
        raise InputError(f"{told}{hint}") from error


@contextmanager
def terminable() -> Iterator[None]:
    """Raise `Terminated` in the body when SIGTERM arrives, as Python does for SIGINT."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread can set handlers.
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
