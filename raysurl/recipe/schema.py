"""The base of every section of a recipe, and what can be asked of the sections' types."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from raysurl.errors import InputError


class Section(BaseModel):
    """Frozen, an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's yes, no, on and off are no numbers, which pydantic takes true and false for."""
        if _is_of_numbers(cls, info.field_name or ""):
            held = value.values() if isinstance(value, dict) else value
            if any(isinstance(one, bool) for one in (held if isinstance(value, Collection) else [value])):
                raise ValueError("a number is wanted, and yes, no, on, off, true and false are none")
        return value


@functools.cache
def _is_of_numbers(section: type[Section], field: str) -> bool:
    kinds = _kinds(section.model_fields[field].annotation)
    return bool not in kinds and bool({int, float} & kinds)


def _kinds(annotation: Any) -> set[Any]:
    """The types in an annotation, whatever they are in."""
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kinds(inner[0])
    return set().union(*map(_kinds, inner)) if inner else {type(annotation), annotation}


def nearest(name: str, known: Iterable[str], others: str) -> str:
    """`did you mean X?`, or where nothing is near `others` with all that is known."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"{others} {', '.join(names)}"


def sentence(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first problem of a validation error as one sentence that names the key and what is valid."""
    problem = error.errors()[0]
    *above, last = problem["loc"] or ("",)
    location = [p for p in above if isinstance(p, str) and "[" not in p]  # without members of unions
    if isinstance(last, str) and ("[" not in last or problem["type"] == "extra_forbidden"):
        location.append(last)
    key = prefix + ".".join(location)
    if problem["type"] == "extra_forbidden":
        fields = list(models_at(model, location[:-1])[0].model_fields)
        near = difflib.get_close_matches(location[-1], fields, n=1)
        hint = f"; did you mean {prefix}{'.'.join([*location[:-1], near[0]])}?" if near else ""
        return f"unknown recipe key {key}{hint} (valid here: {', '.join(fields)})"
    if problem["type"] == "missing" and isinstance(last, int):  # of a tuple
        return f"{key} has {last} of its values; give all of them"
    if problem["type"] == "missing":
        return f"{key} is missing; name it"
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, InputError):  # it names its key
        return str(cause)
    text = problem["msg"].removeprefix("Value error, ")
    # settings that do not go together, which the text names
    if isinstance(problem["input"], dict | BaseModel):
        return ": ".join(filter(None, [key.rstrip("."), text]))
    return f"{key.rstrip('.')}={problem['input']!r} is not valid: {text[0].lower()}{text[1:]}"


def models_at(model: type[BaseModel], location: Sequence[str]) -> list[type[BaseModel]]:
    """The models that hold the key after `location`; a member of a union is named by its `kind`."""
    models = [model]
    for key in location:
        holders = [m for m in models if key in m.model_fields]
        if holders:
            inside = models_in(holders[0].model_fields[key].annotation)
        else:
            inside = [m for m in models if "kind" in m.model_fields and key == m.model_fields["kind"].default]
        models = inside or models
    return models


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models among the types of an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in models_in(part)]
