"""A set of settings that refuses unknown names and bad values, and knows where each comes from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import donfig

from aioxarray.errors import did_you_mean

_WORDS = {"true": True, "false": False, "none": None}


class Settings(donfig.Config):  # type: ignore[misc]  # donfig has no types
    """The settings, each checked when it is set.

    Parameters
    ----------
    defaults
        The settings. One that is a mapping is a group, with a ``"profile"`` that the group can be
        set to as a whole: ``set(retry="batch")``.
    checks
        Functions that raise for a bad value: of a group they take all its values.
    """

    def __init__(
        self,
        defaults: Mapping[str, Any],
        checks: Mapping[str, Callable[[Any], object]],
    ) -> None:
        self._groups = {
            name: value for name, value in defaults.items() if isinstance(value, Mapping)
        }
        self._profiles = {f"{name}.profile" for name in self._groups}
        # Those that users see: a group stands for its profile.
        self.names = [*defaults]
        self.names += [name for name in _flat(self._groups) if name not in self._profiles]
        self._checks = checks
        super().__init__("aioxarray", defaults=[defaults])

    def set(self, arg: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        named = {name.replace("__", "."): value for name, value in kwargs.items()}
        values = {**(arg or {}), **named}
        for group in self._groups.keys() & values.keys():
            value = values.pop(group)
            parts = value if isinstance(value, Mapping) else {"profile": value}
            values.update({f"{group}.{name}": part for name, part in parts.items()})
        unknown = values.keys() - {*self.names, *self._profiles}
        if unknown:
            raise ValueError(
                f"aioxarray has no setting {', '.join(map(repr, sorted(unknown)))}; "
                f"it has {', '.join(self.names)}{did_you_mean(min(unknown), self.names)}"
            )
        for group in self._groups:
            changed = {
                name.removeprefix(f"{group}."): value
                for name, value in values.items()
                if name.startswith(f"{group}.")
            }
            if changed:
                self._checks[group]({**self.get(group), **changed})
        for name in values.keys() & self._checks.keys():
            self._checks[name](values[name])
        return super().set(values)

    def collect(
        self, paths: list[str] | None = None, env: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        for path in self.paths if paths is None else paths:
            for name in _flat(super().collect([path], {})):
                self._sources[name] = path
        for name in _flat(super().collect([], env)):
            self._sources[name] = self.env_prefix + name.replace(".", "__").upper()
        collected: dict[str, Any] = super().collect(paths, env)
        return collected

    def refresh(self, **kwargs: Any) -> None:
        self._sources: dict[str, str] = {}
        super().refresh(**kwargs)
        for group, default in self._groups.items():
            # A text in a file or the environment takes the place of the whole group.
            if not isinstance(value := self.config.get(group), Mapping):
                self.config[group] = {**default, "profile": value}
                self._sources = {
                    name: source
                    for name, source in self._sources.items()
                    if not name.startswith(f"{group}.")
                }
        for values in (self.config, *(self.config[group] for group in self._groups)):
            for name, value in values.items():
                # The environment's "false" is a text, and true as any text.
                if isinstance(value, str):
                    values[name] = _WORDS.get(value.lower(), value)
        self._collected = _flat(self.config)

    def source(self, name: str) -> str:
        """Return where the value of a setting comes from.

        That is "default", a folder with files, the name of an environment variable, or "set".
        """
        key = self._key(name)
        if self.get(key) != self._collected.get(key):
            return "set"
        return self._sources.get(name) or self._sources.get(key, "default")

    def sources(self, name: str) -> frozenset[str]:
        """Return where the values of a setting, or of all of a group, come from."""
        return frozenset(self.source(each) for each in self.names if each.partition(".")[0] == name)

    def _key(self, name: str) -> str:
        return f"{name}.profile" if name in self._groups else name

    def __repr__(self) -> str:
        rows = [(name, repr(self.get(self._key(name))), self.source(name)) for name in self.names]
        lines = ["<aioxarray.config: settings, values and where they come from>"]
        lines += [f"{name:<15} {value:<13} {source}" for name, value, source in rows]
        # donfig's own names for its folders.
        known = {*self.names, *self._profiles, "config", "root_config"}
        unknown = self._sources.keys() - known
        lines += [f"{name!r} of {self._sources[name]} is no setting" for name in sorted(unknown)]
        return "\n".join(lines)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings under names with dots."""
    flat = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{part}": each for part, each in _flat(value).items()})
        else:
            flat[name.replace("-", "_")] = value
    return flat
