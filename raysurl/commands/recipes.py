"""List the packaged recipes, the data that can be read, the methods with their papers, and what packages offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

from raysurl.errors import InputError
from raysurl.shell import settings


def main(arguments: Sequence[str]) -> None:
    """`recipes [TEXT …]`: all, or those in whose name or description each TEXT stands.

    `raysurl pretrain recipe=NAME --print` shows all that a recipe sets.
    """
    if wrong := [a for a in arguments if a.startswith("-") or "=" in a]:
        raise InputError(f"argument {wrong[0]!r} is no text to look for, for example: raysurl recipes stl10")
    lists = {
        "Recipes, recipe=NAME": {name: settings.head_of(name) for name in settings.recipes()},
        "Data, data.name=NAME": settings.plugged("data") | settings.data_sources(),
        "Methods, method.name=NAME": settings.plugged("method") | settings.of_methods(),
        "Encoders of packages, encoder.name=NAME": settings.plugged("encoder"),
        "Protocols of packages, eval.protocols=[NAME]": settings.plugged("protocol"),
        "Policies of packages, views.policies.VIEW=NAME": settings.plugged("policy"),
    }
    found = {title: _matching(entries, arguments) for title, entries in lists.items()}
    if not any(found.values()):
        raise InputError(
            f"nothing here has {' and '.join(arguments)} in its name or description; leave it out for all"
        )
    formatter = click.HelpFormatter(max_width=120)
    for title, entries in found.items():
        if entries:
            with formatter.section(title):
                formatter.write_dl(list(entries.items()))
    print(formatter.getvalue(), end="")


def _matching(entries: Mapping[str, str], texts: Sequence[str]) -> dict[str, str]:
    return {
        name: about
        for name, about in entries.items()
        if all(text.lower() in f"{name} {about}".lower() for text in texts)
    }
