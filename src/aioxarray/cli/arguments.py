"""Types of arguments that several commands have."""

from __future__ import annotations

import argparse
import json
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
    """Return options for the client of a store."""
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict):
        # The text may hold credentials.
        raise argparse.ArgumentTypeError("must be a JSON object, such as '{\"anon\": true}'")
    return options
