"""What a run directory says about a run, whatever of it is there."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from raysurl import metrics, plain
from raysurl.data import manifest
from raysurl.errors import InputError
from raysurl.evaluate import SEEN
from raysurl.recipe import read_mapping

BASELINES = {
    "untrained": "Untrained encoder",
    "pixels": "Raw pixels",
}  # prefix of the metric -> its name here


@dataclass(frozen=True)
class StoredRun:
    """`steps` and `evaluations`: optimizer step -> metrics, the last record of a step; `results` may be {}."""

    directory: Path
    recipe: dict[str, Any]
    steps: dict[int, dict[str, float]]
    evaluations: dict[int, dict[str, float]]
    events: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def finished(self) -> bool:
        return bool(self.results.get("finished"))

    @property
    def title(self) -> str:
        method, data = self.get("method", "name"), self.get("data", "name")
        return f"{method} on {str(data).rpartition(':')[2]}" if method and data else self.directory.name

    def get(self, *keys: str) -> Any:
        """A value of the recipe, None where it is missing."""
        node: Any = self.recipe
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        return node

    @cached_property
    def final(self) -> dict[str, float]:
        """Latest value of each evaluation metric: those of results.json, else the last that were written."""
        latest: dict[str, float] = {}
        for step in sorted(self.evaluations):
            latest |= self.evaluations[step]
        return latest | numbers(self.results.get("metrics"))

    @cached_property
    def steps_per_epoch(self) -> float | None:
        """From the step lines, which hold both; None if none does."""
        for step in sorted(self.steps, reverse=True):
            if self.steps[step].get("epoch"):
                return step / self.steps[step]["epoch"] or None
        return None

    def x(self, step: int) -> float:
        """Where a step stands on the x axis: epochs, or steps if the length of an epoch is unknown."""
        return step / self.steps_per_epoch if self.steps_per_epoch else float(step)

    @property
    def x_name(self) -> str:
        return "epoch" if self.steps_per_epoch else "step"

    @property
    def saw_test_images(self) -> bool:
        """Whether the test images were trained on, because the data have no test set of their own."""
        return any(SEEN in str(event["event"]) for event in self.events)

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """By label, as the data have them: the training set's, and what only a test set has."""
        found = (
            manifest.class_names(self.directory / name)
            for name in ("manifest.parquet", "eval_manifest.parquet")
        )
        return max(found, key=len)

    def class_name(self, label: int) -> str:
        return self.class_names[label] if 0 <= label < len(self.class_names) else f"class {label}"

    def result(self, key: str) -> dict[str, Any]:
        """A mapping of results.json, {} where it is missing."""
        value = self.results.get(key)
        return value if isinstance(value, dict) else {}

    def names(self, lines: dict[int, dict[str, float]]) -> list[str]:
        """Metric names of step or evaluation lines, in the order in which they first appear."""
        return list(dict.fromkeys(name for step in sorted(lines) for name in lines[step]))

    def points(self, lines: dict[int, dict[str, float]], name: str) -> list[tuple[float, float]]:
        """(x, value) of a metric in step or evaluation lines."""
        return [(self.x(step), lines[step][name]) for step in sorted(lines) if name in lines[step]]


def read_run(directory: Path) -> StoredRun:
    """Read a run directory; a missing or damaged file counts as empty.

    Raises InputError if the directory has neither a recipe nor metrics: it is none of a run.
    """
    recipe_path, metrics_path = directory / "recipe.yaml", directory / "metrics.jsonl"
    if not recipe_path.is_file() and not metrics_path.is_file():
        raise InputError(
            f"{directory} is not a run directory: it has neither recipe.yaml nor metrics.jsonl; give the output="
            " directory of a pretraining run"
        )
    steps: dict[int, dict[str, float]] = {}
    evaluations: dict[int, dict[str, float]] = {}
    events = []
    for line in metrics.read(metrics_path):
        if "event" in line:
            events.append(line)
        elif any(name.startswith(("train/", "speed/")) for name in line):
            steps[line["step"]] = numbers(line)
        else:
            evaluations[line["step"]] = evaluations.get(line["step"], {}) | numbers(line)
    return StoredRun(
        directory,
        _mapping(recipe_path),
        steps,
        evaluations,
        events,
        _well_formed(_mapping(directory / "results.json")),
    )


def numbers(values: Any) -> dict[str, float]:
    """The numeric entries of a mapping, but for the step."""
    if not isinstance(values, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name != "step"
        # an integer may be larger than any float
        and (isinstance(value, float) or abs(value) < 2**1000)
    }


def _mapping(path: Path) -> dict[str, Any]:
    try:
        return (
            plain.read_mapping(path)
            if path.suffix == ".json"
            else read_mapping(path, path.name, "recipe keys")
        )
    except (OSError, ValueError):  # InputError is one
        return {}


def _well_formed(results: dict[str, Any]) -> dict[str, Any]:
    """Without the entries that are not of the form in which a run writes them."""
    kept = {}
    for key, value in results.items():
        with contextlib.suppress(ValidationError):
            kept[key] = TypeAdapter(_FORMS[key]).validate_python(value) if key in _FORMS else value
    return kept


_Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float
_FORMS: dict[str, Any] = {
    "intervals": dict[str, tuple[float, float]],
    "gains": dict[str, dict[str, list[float]]],
    "best": dict[str, dict[str, _Number]],
    "health": list[str],
    "skipped": list[dict[str, Any]],
    "versions": dict[str, Any],
    "seconds": _Number,
    "num_samples": _Number,
    "smallest_class": int | None,
    "world_size": _Number,
}


def label(name: str) -> str:
    """A metric's name in words, for those whose meaning is fixed here."""
    group, _, rest = name.partition("/")
    if group == "eval" and rest.startswith("knn") and rest.endswith("_top1"):
        return f"kNN, k = {rest[3:-5] or 200}"
    for family, words in _FAMILIES.items():
        if name.startswith(family):
            return f"{words} {name.removeprefix(family)}"
    return _LABELS.get(name, name)


_FAMILIES = {
    "eval/retrieval_recall": "Retrieval, recall at",
    "eval/neighbours_kept_": "Neighbours kept under the view",
    "eval/neighbours_class_": "Neighbours of the same class under the view",
}
_LABELS = {
    "eval/linear_top1": "Linear probe",
    "eval/linear_top5": "Linear probe, top 5",
    "eval/linear_train_top1": "Linear probe, on its own train features",
    "eval/linear_lr": "Linear probe, learning rate that was chosen",
    "eval/linear_weight_decay": "Linear probe, weight decay that was chosen",
    "eval/finetune_top1": "Fine-tuned",
    "eval/finetune1_top1": "Fine-tuned on 1 % of the labels",
    "eval/finetune10_top1": "Fine-tuned on 10 % of the labels",
    "eval/lbfgs_top1": "Linear probe, L-BFGS",
    "eval/lbfgs_top5": "Linear probe, L-BFGS, top 5",
    "eval/retrieval_map": "Retrieval, mAP",
    "eval/clustering_accuracy": "k-means, accuracy by the best matching",
    "eval/clustering_accuracy_std": "k-means, deviation of that over restarts",
    "eval/clustering_nmi": "k-means, NMI",
    "eval/clustering_ari": "k-means, ARI",
    "eval/neighbours_class": "Neighbours of the same class",
    "eval/distance_auc": "Chance that a pair of one class is nearer than another",
    "eval/distance_overlap": "Shared area of the distances' histograms",
    "eval/distance_same": "Cosine distance within a class",
    "eval/distance_different": "Cosine distance between classes",
    "eval/zeroshot_top1": "Zero-shot",
    "eval/zeroshot_top5": "Zero-shot, top 5",
    "health/rankme": "RankMe, effective dimensions",
    "health/rank_share": "RankMe, share of all dimensions",
    "health/alpha_req": "α-ReQ, power by which eigenvalues fall",
    "health/lidar": "LiDAR, effective dimensions that tell samples apart",
    "health/std": "Spread of the embeddings",
    "health/mean_cosine": "Mean cosine between images",
    "health/uniformity": "Uniformity",
    "health/alignment": "Alignment of two views",
    "health/teacher_entropy": "Entropy of the teacher's target",
    "health/duplicate_share": "Samples with the same embedding as another",
    "health/dead_dimensions": "Dimensions that hardly differ, a share",
    "health/grad_norm": "Norm of the gradient",
    "health/update_share": "Way of the weights in one step, a share of their length",
    "health/teacher_motion": "Way of the teacher over that of the student",
    "health/queue_age": "Age of what memory holds, in steps",
    "health/queue_lag": "The same over the steps that renew it",
    "health/batch_mix": "Variety of a batch over that of a full shuffle",
    "health/input_mean": "Mean of the pixels that the encoder sees",
    "health/input_std": "Deviation of the pixels that the encoder sees",
    "train/loss": "Training loss, mean of the last epoch",
    "train/lr": "Learning rate",
    "speed/images_per_s": "Images per second",
    "speed/data_wait": "Share of time waiting for data",
}

NOTES = {
    "health/std": "0 = collapsed, 1 = uniform on the sphere",
    "health/mean_cosine": "1 = collapsed, about 0 = uniform",
    "health/uniformity": "0 = collapsed, about −4 = uniform",
    "health/alignment": "0 = both views alike, 2 = unrelated",
    "health/rankme": "dimensions that the features really use",
    "health/rank_share": "of all dimensions",
    "health/alpha_req": "good features have one near 1",
    "health/lidar": "beside the differences between views of one image",
    "health/teacher_entropy": "share of the maximum: 1 = flat, 0 = one-hot",
}


def is_of_clusters(name: str) -> bool:
    """Whether it is a signal of one level of clusters (raysurl.hierarchy.signals)."""
    return name.startswith("health/level")


def is_percent(name: str) -> bool:
    return name.endswith(("_top1", "_top5", "clustering_accuracy")) or "retrieval_" in name


def is_share(name: str) -> bool:
    return name.endswith(("_share", "data_wait"))


def shown(name: str, value: float | None) -> str:
    """A metric's value with its unit; a dash where there is none."""
    from raysurl.report.charts import number

    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if is_percent(name):
        return f"{value:.2f} %"
    return f"{100 * value:.1f} %" if is_share(name) else number(value)


def duration(seconds: Any) -> str | None:
    """3,725 s -> `1 h 2 min`; None for what is no number."""
    if not isinstance(seconds, int | float) or not 0 <= seconds < 2**63:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
