"""What a shell offers behind `raysurl COMMAND`: keys of settings, then their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from click.shell_completion import BashComplete, CompletionItem, add_completion_class

from raysurl.shell import settings
from raysurl.shell.definitions import Setting


class _Bash(BashComplete):
    """Without a space behind a key, where its value is due."""

    source_template = BashComplete.source_template.replace(
        "    return 0\n", "    [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace\n    return 0\n", 1
    )


def register() -> None:
    add_completion_class(_Bash)


def complete(command: str, params: Mapping[str, Any], incomplete: str) -> list[CompletionItem]:
    """`params["arguments"]` are the words before; bash makes three words of `key=value`, zsh and fish one."""
    before = list(params.get("arguments") or ())
    found = settings_of(command, before)
    if incomplete == "=" and before:
        return _values(found.get(before[-1]), "")
    if len(before) > 1 and before[-1] == "=":
        return _values(found.get(before[-2]), incomplete)
    key, equals, value = incomplete.partition("=")
    if equals:
        items = _values(found.get(key), value)
        return [CompletionItem(f"{key}={i.value}", type=i.type) if i.type == "plain" else i for i in items]
    return [
        CompletionItem(f"{s.key}=", help=f"{s.type}: {s.about}")
        for s in found.values()
        if s.key.startswith(key)
    ]


def settings_of(command: str, before: list[str]) -> dict[str, Setting]:
    """All that a command takes, by key; bash's words are joined to see which method is named."""
    words = " ".join(before).replace(" = ", "=").split()
    method = settings.method_of(words)
    return {s.key: s for s in [*settings.of_command(command), *settings.taken(command, method)]}


def _values(setting: Setting | None, begun: str) -> list[CompletionItem]:
    """A setting's values that begin so; files where they cannot be listed."""
    if setting is not None and setting.choices:
        return [CompletionItem(choice) for choice in setting.choices if choice.startswith(begun)]
    return [CompletionItem(begun, type="file")]
