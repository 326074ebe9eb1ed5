"""Types of arguments that several commands have."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from aioxarray.config import Concurrency


def concurrency(text: str) -> Concurrency:
    """Return a limit on requests in flight."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer or 'auto', got {text!r}") from None


def json_object(text: str) -> dict[str, Any]:
    """Return the dict that a text of JSON stands for."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        # The text may hold credentials.
        raise argparse.ArgumentTypeError("must be a JSON object, such as '{\"name\": true}'")
    return options


def positive(text: str) -> int:
    """Return a number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 1 on, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Return a positive number of seconds."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number of seconds, got {text!r}")
    return value
