"""Filtering of the groups of a tree by a pattern of their paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase


class GroupFilter:
    """Selects the groups whose paths match a pattern, and the groups above them.

    Parameters
    ----------
    pattern
        A path of which each part may contain ``*``, ``?`` and ``[...]``; a part ``**`` matches any
        number of parts, even none.
    root
        The path in the store of the group to which the paths in the pattern are relative.

    Raises
    ------
    TypeError, ValueError
        If ``pattern`` is no text, or names no group.
    """

    def __init__(self, pattern: str, root: str = "") -> None:
        if not isinstance(pattern, str):
            raise TypeError(f"group_filter must be a text such as '/*/sweep_0'; got {pattern!r}")
        self.pattern = pattern
        self._parts = _parts(pattern)
        if not self._parts:
            raise ValueError(f"group_filter={pattern!r} names no group; for example '/*/sweep_0'")
        self._above = len(_parts(root))

    def leads_to_match(self, path: str) -> bool:
        """Return whether the group at ``path`` may match or have a matching group below it."""
        return _matches(self._relative(path), self._parts, begins=True)

    def selected(self, paths: Iterable[str]) -> set[str]:
        """Return those of ``paths`` that match, and those above them."""
        known = {path: self._relative(path) for path in paths}
        matching = {
            parts[:end]
            for parts in known.values()
            if _matches(parts, self._parts)
            for end in range(len(parts) + 1)
        }
        return {path for path, parts in known.items() if parts in matching}

    def _relative(self, path: str) -> tuple[str, ...]:
        return _parts(path)[self._above :]


def _parts(path: str) -> tuple[str, ...]:
    return tuple(part for part in path.split("/") if part)


def _matches(path: Sequence[str], pattern: Sequence[str], *, begins: bool = False) -> bool:
    """Return whether the parts match; with ``begins``, whether they can be continued to match."""
    if not pattern:
        return not path
    if not path and begins:
        return True
    if pattern[0] == "**":
        # With ``begins``, it matches all of the path, and further parts.
        return begins or any(
            _matches(path[skipped:], pattern[1:]) for skipped in range(len(path) + 1)
        )
    if not path or not fnmatchcase(path[0], pattern[0]):
        return False
    return _matches(path[1:], pattern[1:], begins=begins)
