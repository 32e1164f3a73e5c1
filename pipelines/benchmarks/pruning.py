"""Pruned against unpruned search of one space: the best score, and the compute that it took.

`python pipelines/benchmark.py pruning [space=open_ressl_pruned] [prune={signal: …, …}] [repetitions=3] [output=DIR]`:
each repetition is the space's whole search twice, with its pruning, changed by `prune`, and without, from one seed; a
sweep each, which goes on where it was killed.
"""

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pydantic import ValidationError

from raysurl.commands import sweep
from raysurl.errors import InputError
from raysurl.recipe import yaml_argument
from raysurl.recipe.schema import sentence
from raysurl.sweep.directory import outcomes
from raysurl.sweep.plan import make_plan
from raysurl.sweep.running import run
from raysurl.sweep.space import Prune, Space


def main(arguments: Sequence[str]) -> None:
    given = dict(yaml_argument(a) for a in arguments)
    root = Path(str(given.get("output") or tempfile.mkdtemp()))
    best: dict[str, list[float]] = {"pruned": [], "unpruned": []}
    epochs: dict[str, list[int]] = {"pruned": [], "unpruned": []}
    for seed in range(int(given.get("repetitions", 3))):
        for kind in best:
            where = root / f"{kind}-{seed}"
            asked = sweep.read_arguments(
                [f"space={given.get('space', 'open_ressl_pruned')}", f"seeds=[{seed}]", f"output={where}"]
            )
            space = pruned_by(asked.request.space, None if kind == "unpruned" else given.get("prune", {}))
            asked = replace(asked, request=replace(asked.request, space=space))
            plan = make_plan(asked.request)
            run(plan, where, f"the same with output={root}", resources=asked.share, max_hours=None)
            ended = [outcome for _, _, outcome in outcomes(where) if outcome]
            finished = [o.metrics[plan.space.metric] for o in ended if o.state == "finished"]
            best[kind].append(max(finished))
            epochs[kind].append(sum(o.epochs for o in ended))
            states = dict(Counter(o.state for o in ended))
            seconds = sum(o.seconds for o in ended)
            print(
                f"{kind:9} {seed}: best {best[kind][-1]:.2f}, {epochs[kind][-1]} epochs, {seconds:.0f} s, {states}",
                flush=True,
            )
    share = sum(epochs["pruned"]) / sum(epochs["unpruned"])
    spread = {kind: stdev(values) if len(values) > 1 else 0.0 for kind, values in best.items()}
    said = ", ".join(f"{kind} {mean(values):.2f} ± {spread[kind]:.2f}" for kind, values in best.items())
    print(f"best score: {said}; pruned took {share:.0%} of the epochs")


def pruned_by(space: Space, changes: Mapping[str, Any] | None) -> Space:
    """The space with its pruning changed at both scales, or with none. Raises InputError."""

    def changed(prune: Prune | None) -> Prune | None:
        known = prune.model_dump() if prune else {}
        try:
            return None if changes is None else Prune.model_validate({**known, **changes})
        except ValidationError as error:
            raise InputError(f"prune: {sentence(error, Prune)}") from None

    small = space.cpu and space.cpu.model_copy(update={"prune": changed(space.cpu.prune)})
    return space.model_copy(update={"prune": changed(space.prune), "cpu": small})
