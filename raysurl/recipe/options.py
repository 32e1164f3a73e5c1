"""Settings of what comes from outside the package: the parameters of its constructor, or of its function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from raysurl.errors import InputError
from raysurl.recipe.schema import nearest


def parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Name -> parameter, annotations evaluated where they can be; empty where a library does not tell."""
    for evaluated in (True, False):
        try:
            return dict(inspect.signature(factory, eval_str=evaluated).parameters)
        except (NameError, TypeError, ValueError, AttributeError):
            continue
    return {}


def options_of(
    factory: Callable[..., Any], given: Mapping[str, Any], key: str, *, own: Collection[str] = ()
) -> dict[str, Any]:
    """The options that are given, each as the annotation of its parameter has it; `own`: parameters that are no
    settings. Raises InputError, which calls them `key`.NAME: unknown, missing, or of another type."""
    found = parameters(factory)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in found.values())
    named = {
        name: p
        for name, p in found.items()
        if name not in own and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    for name in given:
        if name not in named and (not takes_all or name in own):
            hint = nearest(name, named, "it has") if named else "it has none"
            raise InputError(f"unknown recipe key {key}.{name}; {hint}")
    if missing := [n for n, p in named.items() if p.default is p.empty and n not in given]:
        raise InputError(f"{key}.{missing[0]} is missing; name it")
    return {
        name: _typed(value, named[name].annotation if name in named else Any, f"{key}.{name}")
        for name, value in given.items()
    }


def _typed(value: Any, annotation: Any, key: str) -> Any:
    if annotation is inspect.Parameter.empty or isinstance(annotation, str):
        return value
    try:
        return TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        text = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise InputError(f"{key}={value!r} is not valid: {text[0].lower()}{text[1:]}") from None
    except (PydanticSchemaGenerationError, PydanticUserError):  # a type that YAML has no values of
        return value
