"""Run a sweep: a published table or an open search, from one file of search_spaces/."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from raysurl import stopping
from raysurl.errors import InputError
from raysurl.paths import default_place, given_path, place
from raysurl.recipe import Recipe, nearest, parse_yaml, split_argument
from raysurl.sweep.axis import labels_of
from raysurl.sweep.space import Space, read_space

if TYPE_CHECKING:
    from raysurl.sweep.plan import SweepPlan, SweepRequest

SETTINGS = {
    "space": ("text", "", "a file of search_spaces/, or a YAML file"),
    "scale": (
        "cpu | photographs | full",
        "cpu",
        "a small version that the space describes, or the paper's size",
    ),
    "output": ("DIR", "sweeps/SPACE-SCALE", "the sweep directory; the same command goes on there"),
    "print": ("true | false", "false", "list the trials and start nothing, as --print does"),
    "pilot": (
        "true | false",
        "false",
        "the paper's extreme cells alone: can they be told apart at this scale?",
    ),
    "max_concurrent": ("whole number ≥ 1", "none", "trials at once; none: as many as fit"),
    "cpus": ("number ≥ 0", "none", "CPUs of each trial; none: scale.threads"),
    "gpus": ("number ≥ 0", "none", "GPUs of each trial; none: one where there is any"),
    "seeds": ("[whole number, …]", "none", "none: those of the space"),
    "trials": ("whole number ≥ 1", "none", "of an open search"),
    "max_trials": ("whole number ≥ 1", "none", "of a grid: no more than these"),
    "max_hours": ("number > 0", "none", "after which no trial is started"),
    "data_root": ("DIR", "none", "where the data of the space lie"),
    "only.AXIS": ("[label, …]", "none", "of an axis these values alone"),
}
KEYS = tuple(key for key in SETTINGS if key != "only.AXIS")
MAY_BE_ZERO = ("cpus", "gpus")  # of which a trial may take the one and not the other


@dataclass(frozen=True)
class Asked:
    request: SweepRequest
    output: Path
    print_only: bool
    share: dict[str, Any]
    max_hours: float | None


def main(arguments: Sequence[str]) -> None:
    """`sweep.py space=NAME [scale=cpu|photographs|full] [seeds=0,1,2] [only.AXIS=A,B] [key=value …] [--print]`.

    `--print` lists the trials and starts nothing; their data need not be there.
    """
    asked = read_arguments(arguments)
    from raysurl.sweep.plan import make_plan
    from raysurl.sweep.report import write_report
    from raysurl.sweep.running import check_any_finished, not_begun, run, show_plan

    if asked.print_only:
        show_plan(make_plan(asked.request, listed=True))
        return
    plan = make_plan(asked.request)
    again = stopping.command_line("sweep", _again(arguments, asked.output))
    run(plan, asked.output, again, resources=asked.share, max_hours=asked.max_hours)
    print(write_report(asked.output))
    check_any_finished(plan, asked.output)
    if left := not_begun(plan, asked.output):
        print(left)
    if asked.request.pilot:
        _show_pilot(plan, asked.output)


def _show_pilot(plan: SweepPlan, directory: Path) -> None:
    """What the extreme cells say of the small version, and as it is kept in the space."""
    from raysurl.sweep.paper import paper_numbers
    from raysurl.sweep.pilot import extremes, measured
    from raysurl.sweep.results import read_sweep

    space = plan.space
    found = measured(read_sweep(directory), extremes(space, paper_numbers(plan.request.space), plan.ids))
    print(found.sentence)
    print(f"in the space, under {plan.request.scale}:")
    print(yaml.safe_dump({"pilot": found.model_dump()}, sort_keys=False, allow_unicode=True), end="")


def _again(arguments: Sequence[str], output: Path) -> list[str]:
    """The same arguments, with the directory as it is."""
    return [*(a for a in arguments if not a.startswith("output=")), f"output={output}"]


# -------------------------------------------------------------------- arguments


def read_arguments(arguments: Sequence[str]) -> Asked:
    """Raises InputError, one sentence, for what is not known or not valid."""
    given = dict(split_argument(a) for a in arguments if a != "--print")
    mine = {key: given.pop(key) for key in KEYS if key in given}
    only = {key.removeprefix("only."): given.pop(key) for key in list(given) if key.startswith("only.")}
    _check_rest(given)
    if "space" not in mine:
        raise InputError("name the space: space=NAME of search_spaces/ or a YAML file")
    space = read_space(mine["space"])
    scale = mine.get("scale", space.usual_scale)
    if _truth(mine, "pilot") and not (space.search == "grid" and space.paper):
        raise InputError(
            f"pilot=true compares cells by the numbers of a paper, and space {space.name} has none"
        )
    if _truth(mine, "pilot") and not space.small(scale):
        raise InputError(
            f"pilot=true asks what a small version can show, and scale={scale} is none of space {space.name}"
        )
    if space.search == "grid" and "trials" in mine:
        raise InputError(
            f"trials= is for an open search, and space {space.name} is a grid; use only.AXIS= or seeds="
        )
    from raysurl.sweep.plan import SweepRequest  # imports torch: what is wrong with the space is said before

    request = SweepRequest(
        space=space,
        scale=scale,
        seeds=_seeds(mine.get("seeds")),
        trials=_number(mine, "trials", int),
        max_trials=_number(mine, "max_trials", int),
        pilot=_truth(mine, "pilot"),
        only={axis: _labels(space, axis, v) for axis, v in only.items()},
        overrides=given,
        data_root=str(given_path("data_root", mine["data_root"])) if "data_root" in mine else None,
    )
    small = space.small(scale)
    return Asked(
        request=request,
        output=place("output", mine["output"])
        if mine.get("output")
        else default_place("sweeps") / f"{space.name}-{scale}",
        print_only="--print" in arguments or _truth(mine, "print"),
        share={
            "cpus": _number(mine, "cpus", float),
            "gpus": _number(mine, "gpus", float),
            "max_concurrent": _number(mine, "max_concurrent", int),
        },
        max_hours=_number(mine, "max_hours", float) or (small.max_hours if small else None),
    )


def _truth(mine: dict[str, str], key: str) -> bool:
    value = mine.get(key, "false").lower()
    if value not in ("true", "1", "yes", "false", "0", "no"):
        raise InputError(f"{key}={mine[key]} must be true or false")
    return value in ("true", "1", "yes")


def _check_rest(given: dict[str, str]) -> None:
    for key in given:
        if key in ("seed", "recipe", "runtime", "resume"):
            hint = {"seed": "seeds=0,1,2", "recipe": "the space names it"}.get(key, "a sweep sets it")
            raise InputError(f"argument {key}= is not for a sweep: {hint}")
        if "." not in key and key not in Recipe.model_fields:
            hint = nearest(key, (*KEYS, "only.AXIS", *Recipe.model_fields), "a sweep takes")
            raise InputError(f"argument {key}= is not known; {hint}")


def _seeds(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    parts = _parts(given)
    seeds = [int(part) for part in parts if part.isascii() and part.isdigit()]
    if not seeds or len(seeds) < len(parts) or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds={given} must be different whole numbers from 0 on, for example seeds=0,1,2")
    return tuple(seeds)


def _labels(space: Space, axis: str, given: str) -> tuple[str, ...]:
    """The labels that `only.AXIS=` names: one, a list, or what commas divide where that is no label itself."""
    whole = axis in space.axes and given in labels_of(space.axes[axis])
    return (given,) if whole else tuple(_parts(given))


def _parts(given: str) -> list[str]:
    """`[0, 1]` and `0,1` as a list of texts; anything else as its one member."""
    if given.startswith("[") and given.endswith("]"):
        given = given[1:-1]
    return [part.strip().strip("'\"") for part in given.split(",") if part.strip()]


def _number(mine: dict[str, str], key: str, kind: type) -> Any:
    if not mine.get(key):
        return None
    value = parse_yaml(mine[key], f"{key}={mine[key]}")
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or kind(value) != value or value < 0 or (value == 0 and key not in MAY_BE_ZERO):
        least = "0 or more" if key in MAY_BE_ZERO else "1 or more" if kind is int else "above 0"
        raise InputError(f"{key}={value} must be a {'whole' if kind is int else 'finite'} number, {least}")
    return kind(value)
