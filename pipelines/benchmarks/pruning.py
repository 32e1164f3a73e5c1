"""Pruned against unpruned search of one space: the best score, and the compute that it took.

`python pipelines/benchmark.py pruning [space=open_ressl_pruned] [repetitions=3] [output=DIR]`: each repetition is the
space's whole search twice, with its pruning and without, from one seed; a sweep each, which
goes on where it was killed.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from raysurl.commands import sweep
from raysurl.recipe import yaml_argument
from raysurl.sweep.directory import outcomes
from raysurl.sweep.plan import make_plan
from raysurl.sweep.running import run


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
            if kind == "unpruned":
                small = asked.request.space.cpu
                space = asked.request.space.model_copy(
                    update={"prune": None, "cpu": small and small.model_copy(update={"prune": None})}
                )
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
