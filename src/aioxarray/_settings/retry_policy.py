"""The policy of retries: profiles, and settings that change a part of one."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from aioxarray._settings.values import integer, seconds

DEFAULTS: dict[str, Any] = {
    "profile": "interactive",
    "attempts": None,
    "deadline": None,
    "backoff_s": None,
}
"""The settings of retries."""


@dataclass(frozen=True)
class RetryPolicy:
    """How failed requests are made again.

    Attributes
    ----------
    attempts
        The most attempts for a request.
    deadline
        The seconds after the first failure in which an attempt may begin.
    backoff_s
        The longest wait before the second attempt, in seconds; it doubles with each attempt.
    longest_s
        The most to which it grows.
    """

    attempts: int
    deadline: float
    backoff_s: float
    longest_s: float


_PROFILES = {
    "interactive": RetryPolicy(attempts=10, deadline=30, backoff_s=0.2, longest_s=5),
    "batch": RetryPolicy(attempts=40, deadline=600, backoff_s=0.5, longest_s=30),
}


def policy_of(settings: Mapping[str, Any]) -> RetryPolicy:
    """Return the policy that ``settings`` describe; raises TypeError or ValueError for bad ones."""
    try:
        return _kept_policy(tuple(settings), *settings.values())
    except TypeError:
        # One of the values has the wrong type, perhaps one that cannot be hashed.
        return _new_policy(settings)


# Every call checks the settings, and there may be thousands of calls. Typed, as True is not 1 here.
@functools.lru_cache(maxsize=32, typed=True)
def _kept_policy(names: tuple[str, ...], *values: Any) -> RetryPolicy:
    return _new_policy(dict(zip(names, values, strict=True)))


def _new_policy(settings: Mapping[str, Any]) -> RetryPolicy:
    name = settings["profile"]
    profile = _PROFILES.get(name) if isinstance(name, str) else None
    if profile is None:
        raise ValueError(f"retry must be {' or '.join(map(repr, _PROFILES))}, got {name!r}")
    given = {key: settings[key] for key in DEFAULTS if settings.get(key) is not None}
    del given["profile"]
    if "attempts" in given:
        given["attempts"] = integer("retry.attempts", given["attempts"])
        if given["attempts"] < 1:
            raise ValueError(
                f"retry.attempts must be at least 1, for no retries; got {given['attempts']!r}"
            )
    for key in given.keys() & {"deadline", "backoff_s"}:
        given[key] = seconds(f"retry.{key}", given[key])
    return replace(profile, **given)
