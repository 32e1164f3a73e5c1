"""When do RCL's clusters pay? Accuracy over levels, start of clustering and length of training, and why.

Each row stands beside a run of the same length without clusters (levels=1), seed by seed. What is looked at while it
trains, with labels that training never sees: `agree` the share of the retrieved keys of a level that are of the
query's class, in the first and the last tenth of the steps with clusters; `retrieved` the share of the keys of a level
that come from the queue at all; `clusters`, `largest` the clusters of a level at the end and the share of the samples
in the largest; `masked` the queue entries that do not count as negatives of a query; `false` the share of the queue
that is of the query's class.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysurl import metrics
from raysurl.data.names import open_samples
from raysurl.method import Answer
from raysurl.methods.rcl.memory import ClusterMemory
from raysurl.recipe import read_recipe_file, recipe_from, yaml_argument
from raysurl.run import pretrain

DIGITS = {
    "recipe": "ressl/digits",
    "method": {"name": "rcl", "hidden": 256, "predictor_hidden": 256, "dim": 64, "queue_size": 1024},
    "views.policies": {"view_1": "digits", "view_2": "digits"},
    "train.schedule.warmup_epochs": 1,
}
IMAGES = {
    "recipe": "rcl/cifar10",
    "data.name": "parquet",
    "encoder.name": "convnet",
    "encoder.channels": [16, 32, 64],
    "encoder.small_stem": False,
    "method.hidden": 256,
    "method.predictor_hidden": 256,
    "method.dim": 64,
    "train.schedule.warmup_epochs": 1,
}
SMALL = {
    "runtime": "local",
    "train.batch_size": 128,
    "scale.threads": 1,
    "eval.every_epochs": 0,
    "eval.protocols": ["knn"],
    "eval.baselines": False,
    "log.tensorboard": False,
}


def main(arguments: list[str]) -> None:
    """`levels data=digits` or `levels path=FILE eval_path=FILE [limit=3000] [size=16]`, both with `[levels=[1,2,3]]
    [starts=[0.2,0.6]] [epochs=[10,40]] [seeds=[0,1,2]] [settings={KEY: VALUE}]`, starts in shares of the run: a line of
    JSON per run, then the table."""
    given: dict[str, Any] = {
        "levels": [1, 2, 3],
        "starts": [0.2, 0.6],
        "epochs": [10, 40],
        "seeds": [0, 1, 2],
    }
    given |= {"limit": 3000, "size": 16} | dict(yaml_argument(a) for a in arguments)
    found: list[dict[str, Any]] = []
    for seed in given["seeds"]:
        for epochs in given["epochs"]:
            for levels in given["levels"]:
                for start in given["starts"] if levels > 1 else [None]:
                    found.append(measure(given, levels=levels, start=start, epochs=epochs, seed=seed))
                    print(json.dumps(found[-1]), flush=True)
    print("\n".join(table(found)))


def measure(
    given: dict[str, Any], *, levels: int, start: float | None, epochs: int, seed: int
) -> dict[str, Any]:
    """One run. `start`: the share of the run after which clusters are made; None: none are."""
    settings: dict[str, Any] = dict(DIGITS if given.get("data") == "digits" else IMAGES) | SMALL
    if given.get("data") != "digits":
        settings |= {"data.path": given["path"], "data.eval_path": given["eval_path"]}
        settings |= {"data.limit": given["limit"], "views.size": given["size"], "method.queue_size": 2048}
    settings |= {"train.epochs": epochs, "seed": seed, **given.get("settings", {})}
    settings["method.hierarchy.levels"] = levels
    settings["method.warmup_epochs"] = epochs if start is None else round(start * epochs)
    with tempfile.TemporaryDirectory() as folder:
        tree = read_recipe_file(settings.pop("recipe"))
        for key, value in (settings | {"output": f"{folder}/run"}).items():
            *path, last = key.split(".")
            section = tree
            for name in path:
                section = section.setdefault(name, {})
            section[last] = value
        recipe = recipe_from(tree)
        samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
        assert samples.labels is not None
        with watched(samples.labels) as seen:
            run = pretrain(recipe)
        results = json.loads((Path(run) / "results.json").read_text())["metrics"]
        states = [
            line for line in metrics.read(Path(run) / "metrics.jsonl") if "health/level2_clusters" in line
        ]
    kept = {
        f"{name}_last": [states[-1][f"health/level{h}_{name}"] for h in range(2, levels + 1)]
        for name in ("clusters", "largest_share")
        if states
    }
    row = {"levels": levels, "start": start, "epochs": epochs, "seed": seed, "knn": results["eval/knn_top1"]}
    return {**row, **kept, **summary(seen)}


@contextmanager
def watched(labels: NDArray[np.int64]) -> Iterator[list[dict[str, Any]]]:
    """What the memory tells each step, once there are clusters, judged by `labels` (N,)."""
    seen: list[dict[str, Any]] = []
    original = ClusterMemory.answer

    def answer(self: ClusterMemory, index: Any, step: int) -> Answer:
        found = original(self, index, step)
        if self.partition is not None:
            seen.append(judged(found["slots"].numpy(), self.queue.index.numpy(), labels, index.numpy()))
        return found

    ClusterMemory.answer = answer  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        ClusterMemory.answer = original  # type: ignore[method-assign]


def judged(
    slots: NDArray[np.int64], queue: NDArray[np.int64], labels: NDArray[np.int64], index: NDArray[np.int64]
) -> dict[str, Any]:
    """slots (B, V, J) of a queue of sample indices (K,), −1 = empty: see the module."""
    taken = slots >= 0
    right = labels[queue[np.maximum(slots, 0)]] == labels[index][:, None, None]
    distinct = [len(set(row[row >= 0].tolist())) for row in slots.reshape(-1, slots.shape[2])]
    filled = labels[queue[queue >= 0]]
    false = (filled[None, :] == labels[index][:, None]).mean() if len(filled) else float("nan")
    return {
        "agree": [float(right[..., j][taken[..., j]].mean()) for j in range(1, slots.shape[2])],
        "retrieved": [float(taken[..., j].mean()) for j in range(1, slots.shape[2])],
        "masked": float(np.mean(distinct)),
        "false": float(false),
    }


def summary(seen: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the first and the last tenth of the steps with clusters."""
    if not seen:
        return {}
    part = max(1, len(seen) // 10)
    first, last = seen[:part], seen[-part:]
    return {
        "agree_first": np.nanmean([s["agree"] for s in first], axis=0).round(3).tolist(),
        "agree_last": np.nanmean([s["agree"] for s in last], axis=0).round(3).tolist(),
        "retrieved": np.mean([s["retrieved"] for s in last], axis=0).round(3).tolist(),
        "masked": round(float(np.mean([s["masked"] for s in last])), 2),
        "false": round(float(np.mean([s["false"] for s in last])), 3),
    }


def table(found: list[dict[str, Any]]) -> list[str]:
    """Means over seeds; `gain`: over the run of the same seed and length without clusters, mean ± deviation."""
    without = {(f["epochs"], f["seed"]): f["knn"] for f in found if f["start"] is None}
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for f in found:
        cells.setdefault((f["epochs"], f["levels"], f["start"]), []).append(f)
    signals = ["agree, first", "agree, last", "retrieved", "clusters", "largest", "masked", "false"]
    head = ["epochs", "levels", "start", "kNN 200", "gain", *signals]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for (epochs, levels, start), runs in cells.items():
        gains = [f["knn"] - without[epochs, f["seed"]] for f in runs if (epochs, f["seed"]) in without]
        knn = [f["knn"] for f in runs]
        row = [str(epochs), str(levels), "–" if start is None else f"{start:.0%}", spread(knn)]
        row += ["" if start is None else spread(gains, signed=True)]
        for name in (
            "agree_first", "agree_last", "retrieved", "clusters_last", "largest_share_last", "masked", "false",
        ):  # fmt: skip
            values = [f[name] for f in runs if name in f]
            row.append(
                " / ".join(f"{v:.2f}" for v in np.atleast_1d(np.mean(values, axis=0))) if values else ""
            )
        lines.append(f"| {' | '.join(row)} |")
    return lines


def spread(values: list[float], *, signed: bool = False) -> str:
    if not values:
        return ""
    deviation = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):{'+' if signed else ''}.1f}{deviation}"
