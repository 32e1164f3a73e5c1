"""The recipe of a run: what differs from the defaults, how to run it again, and every setting."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from html import escape
from typing import Any

from raysurl.errors import InputError
from raysurl.recipe import DEFAULT_METHOD, read_recipe_file, recipe_from
from raysurl.report import page
from raysurl.report.run import StoredRun

POLICIES = "views.policies."  # long lists, which are folded
PLACE = ("output", "resume", "recipe")  # where a run is, not what it is


def recipe_section(run: StoredRun) -> str:
    """What differs from the defaults, the command to repeat the run, and all settings; "" without a recipe."""
    if not run.recipe:
        return ""
    settings, defaults = flatten(run.recipe), _defaults(run)
    changed = [
        k for k, v in settings.items() if defaults and k not in PLACE and defaults.get(k, _MISSING) != v
    ]
    rows = [
        (k, text_of(settings[k]), text_of(defaults[k]) if defaults and k in defaults else "") for k in changed
    ]
    differences = _differences([row for row in rows if not row[0].startswith(POLICIES)])
    if policies := [row for row in rows if row[0].startswith(POLICIES)]:
        count = f"{len(policies)} setting{'s' * (len(policies) > 1)} of the views"
        differences += f"<details><summary>{count}</summary>{_differences(policies)}</details>"
    line = command(run)
    again = f"<h3>To run it again</h3><pre>{escape(line)}</pre>" if line else ""
    return f"{differences}{again}<details><summary>All settings</summary>{_all(settings, set(changed))}</details>"


def _differences(rows: Sequence[tuple[str, str, str]]) -> str:
    """A table; settings that have no default, as those of another's method, have none beside them."""
    if not rows:
        return ""
    wide = 3 if any(default for *_, default in rows) else 2
    return page.table(["setting", "here", "default"][:wide], [row[:wide] for row in rows])


def _all(settings: dict[str, Any], changed: set[str]) -> str:
    """A list for each section of the recipe, what was changed marked."""
    lists: dict[str, list[str]] = {}
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        mark = ' class="new"' if key in changed else ""
        lists.setdefault(group or "run", []).append(
            f"<dt{mark}>{escape(name)}</dt><dd{mark}>{escape(text_of(value))}</dd>"
        )
    sections = (
        f"<section><h3>{escape(group)}</h3><dl>{''.join(items)}</dl></section>"
        for group, items in lists.items()
    )
    return f'<div class="card recipe">{"".join(sections)}</div>'


def command(run: StoredRun) -> str:
    """The command that repeats the run: its recipe's name and what differs from that recipe; "" if unreadable."""
    name = run.recipe.get("recipe")
    try:
        tree = read_recipe_file(str(name)) if name else {}
        method = run.get("method", "name")
        if method:  # settings of another method than the file's do not apply
            stays = (tree.get("method") or {}).get("name", DEFAULT_METHOD) == method
            tree = {**tree, "method": {**(tree.get("method") or {})} if stays else {"name": method}}
        base = flatten(recipe_from(tree).model_dump(mode="json"))
    except (InputError, ValueError, TypeError):
        return ""
    changed = {k: v for k, v in flatten(run.recipe).items() if k not in PLACE and base.get(k, _MISSING) != v}
    words = [f"recipe={name}"] if name else []
    words += [f"{key}={text_of(value)}" for key, value in changed.items()]
    return " ".join(["python pipelines/pretrain.py", *map(shlex.quote, words)])


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings to dotted keys; an empty mapping stays a value."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def text_of(value: Any) -> str:
    """A value as it is written in an override."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, default=str)


_MISSING = object()


def _defaults(run: StoredRun) -> dict[str, Any] | None:
    """Dotted key -> default, the method's own settings included; None if the method is unknown here."""
    method = run.get("method", "name")
    try:
        recipe = recipe_from({"method": {"name": method}} if method else {})
    except (InputError, ValueError, TypeError):
        return None
    defaults = flatten(recipe.model_dump(mode="json"))
    defaults["method.name"] = DEFAULT_METHOD
    return {key: v for key, v in defaults.items() if key != "views.policies"} | _default_policies(run)


def _default_policies(run: StoredRun) -> dict[str, Any]:
    """Those that the method of the run, set as it is, has for its views."""
    try:
        policies = recipe_from({"method": run.get("method")}).view_policies()
    except (InputError, ValueError, TypeError):
        return {}
    return flatten({name: policy.model_dump(mode="json") for name, policy in policies.items()}, POLICIES)
