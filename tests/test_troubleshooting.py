"""The page on troubleshooting has every class of errors, and quotes messages that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import aioxarray
from aioxarray import errors

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = [
    *re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE),
    *re.findall(r"^\| `([^`]+)` \| [^|]+ \|$", PAGE, re.MULTILINE),
]


@cache
def texts() -> list[str]:
    """Return the texts in the code, with "…" for what is filled in."""
    found = []
    for path in Path(aioxarray.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    str(each.value) if isinstance(each, ast.Constant) else "…"
                    for each in node.values
                ]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def every_class() -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.AioxarrayError)
    }


def test_the_page_has_every_class() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE))
    assert every_class() <= named | {"AioxarrayError"}
    assert "`AioxarrayError`s" in PAGE
    table = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| `.*Error` .*$", PAGE, re.M))))
    assert table == every_class() - {"AioxarrayError"}


def test_the_page_has_something_to_check() -> None:
    assert len(QUOTED) > 20


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_page_quotes_messages_that_exist(quoted: str) -> None:
    for part in re.split(r"…|: \(|\(…", quoted):
        wanted = part.strip(" :()")
        assert not wanted or any(wanted in text for text in texts()), wanted
