"""Numpydoc docstrings as Markdown: references become links, and RST's blocks those of Markdown.

The docstrings are written for ``help()``, in the few forms of reStructuredText that read well as
plain text. The site's builder knows Markdown only.
"""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any

import griffe

import aioxarray
import aioxarray.testing
from aioxarray import errors
from aioxarray.accessors import AioAccessor

_RULE = re.compile(r"^(\s*)(=+)((?: =+)+)$")


def _anchors() -> dict[str, str]:
    """Return the names that docstrings refer to, with the anchors of the reference."""
    found = {name: f"aioxarray.{name}" for name in aioxarray.__all__}
    found |= {name: f"aioxarray.testing.{name}" for name in aioxarray.testing.__all__}
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.AioxarrayError):
            found[name] = f"aioxarray.errors.{name}"
    found |= {f"aioxarray.{name}": f"aioxarray.{name}" for name in aioxarray.__all__}
    found["AioAccessor"] = f"{AioAccessor.__module__}.AioAccessor"
    return found


ANCHORS = _anchors()


def _table(lines: list[str], start: int) -> tuple[list[str], int]:
    """Return the simple table that begins at ``start`` as Markdown, and the line after it."""
    rule = lines[start].strip()
    indent = len(lines[start]) - len(lines[start].lstrip())
    begins = [match.start() for match in re.finditer(r"=+", rule)]
    rows: list[list[str]] = []
    end = start + 1
    rules = 1
    while end < len(lines) and rules < 3:
        line = lines[end][indent:]
        if re.fullmatch(r"=+(?: +=+)*", line.strip()) and line.strip():
            rules += 1
        else:
            bounds = [*begins[1:], None]
            cells = [line[a:b].strip() for a, b in zip(begins, bounds, strict=True)]
            if not rows or (cells[0] and not rows[-1][0].endswith(",")):
                rows.append(cells)
            else:  # a continued row
                rows[-1] = [
                    f"{old} {new}".strip() for old, new in zip(rows[-1], cells, strict=True)
                ]
        end += 1
    pad = " " * indent
    shown = [f"{pad}| {' | '.join(row)} |" for row in rows]
    shown.insert(1, f"{pad}|{'---|' * len(begins)}")
    return ["", *shown, ""], end


def as_markdown(text: str) -> str:
    """Return a docstring with Markdown in place of reStructuredText."""
    lines = text.split("\n")
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if _RULE.match(line) and out and out[-1].strip() == "":
            table, at = _table(lines, at)
            out += table
            continue
        if line.rstrip().endswith("::"):
            out.append(line.rstrip()[:-1] if line.strip() != "::" else "")
            indent = len(line) - len(line.lstrip())
            at += 1
            block: list[str] = []
            while at < len(lines) and (
                not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent
            ):
                block.append(lines[at])
                at += 1
            while block and not block[-1].strip():
                block.pop()
            while block and not block[0].strip():
                block.pop(0)
            margin = min(len(each) - len(each.lstrip()) for each in block if each.strip())
            pad = " " * indent
            body = [f"{pad}{each[margin:]}" if each.strip() else "" for each in block]
            language = "text" if line.strip() == "::" else "python"
            out += ["", f"{pad}```{language}", *body, f"{pad}```", ""]
            continue
        # A session that is not in a section of examples, which griffe knows.
        if line.startswith(">>>") and "Examples" not in out:
            session = [line]
            while (at := at + 1) < len(lines) and lines[at].strip():
                session.append(lines[at])
            out += ["```pycon", *session, "```"]
            continue
        out.append(_linked(line))
        at += 1
    return "\n".join(out)


def _linked(line: str) -> str:
    """Return a line whose single backticks are links to public names."""

    def link(match: re.Match[str]) -> str:
        name = match[1]
        anchor = ANCHORS.get(name)
        return f"[`{name}`][{anchor}]" if anchor else f"`{name}`"

    return re.sub(r"(?<![`\w\[])`([\w.]+)`(?![`\w])", link, line)


class Docstrings(griffe.Extension):
    """Rewrites each docstring when it is loaded, and describes functions as they are called.

    griffe looks below decorators. A blocking function would there be the coroutine that it calls.
    """

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of an object."""
        if isinstance(obj, griffe.Function):
            self._as_called(obj)
        if isinstance(obj, griffe.Attribute) and "property" not in obj.labels:
            obj.docstring = None  # that of the class of its value
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Let the public names refer to what they are, not to what a decorator has wrapped."""
        for name in aioxarray.__all__:
            public = getattr(aioxarray, name)
            if inspect.isfunction(public):
                target = f"{public.__module__}.{public.__qualname__}"
                pkg.set_member(name, griffe.Alias(name, target, parent=pkg))

    def _as_called(self, obj: griffe.Function) -> None:
        function = _found(obj.path)
        if not inspect.isfunction(function):
            return
        if not inspect.iscoroutinefunction(function):
            obj.labels.discard("async")
        if obj.docstring:
            obj.docstring.value = inspect.getdoc(function) or ""
        # As it is written: inspection shows only a part of an alias of types.
        for parameter in obj.parameters:
            own = inspect.signature(function).parameters.get(parameter.name)
            if own is not None and isinstance(own.annotation, str):
                parameter.annotation = own.annotation


def _found(path: str) -> Any:
    """Return the object at a path with dots, or None."""
    module, found = path.split("."), None
    while module:
        found = sys.modules.get(".".join(module))
        if found is not None:
            break
        module.pop()
    for name in path.split(".")[len(module) :]:
        found = inspect.getattr_static(found, name, None)
    return found
