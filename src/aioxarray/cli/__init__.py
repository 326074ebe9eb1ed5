"""Command line: ``python -m aioxarray`` and the command ``aioxarray``.

It is built on argparse: the commands need no package that aioxarray does not need itself.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

import aioxarray
from aioxarray.cli import bench, completion, copy, demo, info
from aioxarray.cli.failures import (
    BAD_INPUT,
    FAILED,
    INTERRUPTED,
    TERMINATED,
    CommandError,
    Terminated,
    one_line,
    terminable,
)

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments. None: those of the process.

    Returns
    -------
    int
        The exit code: 0; 1 if the command failed, or 2 if it needs other arguments, with a line on
        standard error; 130 after Ctrl-C, 143 after SIGTERM. (Arguments that cannot be parsed end
        the process with 2, as `argparse` does.)
    """
    arguments = _parser().parse_args(argv)
    try:
        with terminable(), warnings.catch_warnings():
            # Warnings about stores and data types that no specification covers yet.
            warnings.simplefilter("ignore")
            arguments.run(arguments)
            sys.stdout.flush()
    except CommandError as error:
        return _told(str(error), error.exit_code)
    except Terminated:
        return TERMINATED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has read enough. Python would complain when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if arguments.traceback:
            raise
        return _told(f"{one_line(error)} (--traceback shows where)", FAILED)
    return 0


def _told(text: str, exit_code: int) -> int:
    print(f"aioxarray: {text}", file=sys.stderr)
    return exit_code


class _Parser(argparse.ArgumentParser):
    """A parser that tells errors in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="aioxarray", description=aioxarray.__doc__.split("\n")[0])
    parser.add_argument("--version", action="version", version=f"aioxarray {aioxarray.__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an unexpected error comes from"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    info.add_parser(commands)
    copy.add_parser(commands)
    bench.add_parser(commands)
    demo.add_parser(commands)
    completion.add_parser(commands)
    return parser
