"""``aioxarray completion``: scripts with which shells complete the command line.

The scripts list the commands and their options as the parser knows them. They start no Python when
the user presses the tab key.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to those that it completes."""
    own: argparse.ArgumentParser = commands.add_parser(
        "completion",
        help="print a script that completes this command line in a shell",
        description='Prints a script for a shell: bash: eval "$(aioxarray completion bash)"; '
        "zsh: the same, with zsh; fish: aioxarray completion fish | source. Put the line in the "
        "shell's start-up file.",
    )
    own.add_argument("shell", choices=list(_SHELLS))

    def run(arguments: argparse.Namespace) -> None:
        print(_SHELLS[arguments.shell](_options(commands.choices)), end="")

    own.set_defaults(run=run)


def _options(parsers: Mapping[str, argparse.ArgumentParser]) -> dict[str, list[str]]:
    """Return the words that may follow each command, except those that only the user knows."""
    return {name: [*_words(parser)] for name, parser in parsers.items()}


def _words(parser: argparse.ArgumentParser) -> Sequence[str]:
    # Private: argparse lists its options nowhere else.
    actions = parser._actions
    options = [text for action in actions for text in action.option_strings if text[1:2] == "-"]
    choices = [
        str(each)
        for action in actions
        if not action.option_strings
        for each in action.choices or ()
    ]
    return options + choices


def _bash(options: Mapping[str, Sequence[str]]) -> str:
    cases = "\n".join(
        f'    {name}) words="{" ".join(words)}" ;;' for name, words in options.items()
    )
    return f"""_aioxarray() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" words
  COMPREPLY=()
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="{" ".join(options)}" ;;
  esac
  [ "$COMP_CWORD" -eq 1 ] && words="{" ".join(options)}"
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _aioxarray aioxarray
"""


def _zsh(options: Mapping[str, Sequence[str]]) -> str:
    return f"autoload -U +X bashcompinit && bashcompinit\n{_bash(options)}"


def _fish(options: Mapping[str, Sequence[str]]) -> str:
    lines = [
        f"complete -c aioxarray -n __fish_use_subcommand -f -a '{' '.join(options)}'",
    ]
    for name, words in options.items():
        seen = f"complete -c aioxarray -n '__fish_seen_subcommand_from {name}'"
        for word in words:
            lines.append(f"{seen} -l {word[2:]}" if word[:2] == "--" else f"{seen} -f -a {word}")
    return "\n".join(lines) + "\n"


_SHELLS: dict[str, Callable[[Mapping[str, Sequence[str]]], str]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
}
