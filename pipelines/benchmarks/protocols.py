"""Every protocol on one encoder, several seeds: ReSSL on images of CIFAR-10, beside the same encoder untrained.

For each seed one encoder is trained and then judged as `evaluate.py` judges it: kNN, all probes of the papers, 1 % and
10 % of the labels, retrieval, clustering, neighbours, distances, and transfer to MNIST. JSON is written after each
judgement, so that the same command goes on where it was stopped; the table beside it says the mean over the seeds with
its interval of 95 % (Student's t), and of one seed that over the test images.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks._asked import asked_for

from raysurl import intervals
from raysurl.commands.evaluate import evaluated
from raysurl.encoder import named_encoder
from raysurl.errors import InputError
from raysurl.evaluate import BASELINES, prefixed
from raysurl.recipe import load_recipe
from raysurl.recipe.probes import PROBES
from raysurl.recipe.tunings import TUNINGS
from raysurl.run import pretrain
from raysurl.train.run_directory import commit, hardware, write_atomic

FILE = Path(__file__).parents[2] / "results" / "benchmarks" / "protocols.json"
SETTINGS = (
    "recipe=ressl/cifar10", "data.name=parquet", "views.size=24", "encoder.name=convnet", "encoder.small_stem=false",
    "method.hidden=512", "method.dim=128", "method.queue_size=2048", "train.batch_size=128",
    "train.schedule.warmup_epochs=1", "eval.every_epochs=0", "eval.protocols=[knn]", "eval.baselines=false",
    "runtime=local", "log.tensorboard=false",
)  # fmt: skip
BESIDE = ("knn", "lbfgs", "rankme", "retrieval", "clustering", "neighbours", "distances")
CHOSEN = ("_lr", "_penalty", "_std")  # of a protocol's own choices and draws: no judgement of the encoder
SHARES = [name for name in TUNINGS if name.endswith(("_1", "_10"))]


def judgements(given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> the settings of `evaluate.py` for it."""
    found: dict[str, dict[str, Any]] = {"features": {"eval.protocols": list(BESIDE)}}
    for name, probe in PROBES.items():
        # one that sees another view of each image in each epoch costs as much again for the untrained network
        seen_once = {} if probe.augment is None else {"eval.baselines": False}
        found[f"probe {name}"] = {"eval.protocols": ["linear"], "eval.probe": name, **seen_once}
    found |= {f"tuning {name}": {"eval.protocols": ["finetune"], "eval.finetune": [name]} for name in SHARES}
    if given["mnist"]:
        found["transfer to MNIST"] = {
            "eval.protocols": ["transfer"], "data.name": "torchvision:MNIST", "data.path": given["mnist"],
            "data.eval_path": None,
        }  # fmt: skip
    return found


def main(arguments: list[str]) -> None:
    """`protocols data=FOLDER [mnist=ROOT] [samples=2000] [epochs=20] [seeds=[0, 1, 2]] [threads=1] [out=FILE.json]
    [runs=FOLDER]`."""
    given = asked_for(
        arguments,
        {
            "data": None,
            "mnist": "",
            "samples": 2000,
            "epochs": 20,
            "seeds": [0, 1, 2],
            "threads": 1,
            "out": FILE,
            "runs": "runs",
        },
    )
    if not given["data"]:
        raise InputError("name the folder that holds train.parquet and test.parquet: data=FOLDER")
    out = Path(given["out"])
    rows: list[dict[str, Any]] = json.loads(out.read_text())["rows"] if out.exists() else []
    torch.set_num_threads(int(given["threads"]))
    said = {key: given[key] for key in ("samples", "epochs")}
    for seed in given["seeds"]:
        run = trained(given, seed)
        for name, settings in judgements(given).items():
            key = {"judgement": name, "seed": seed, **said}
            if any(key.items() <= row.items() for row in rows):
                continue
            began = time.perf_counter()
            asked = {"run": str(run), "eval.baselines": True, **settings}
            written, _ = evaluated(named_encoder(asked), torch.device("cpu"), settings["eval.protocols"])
            shown = {part: written[part] for part in ("metrics", "intervals")}
            rows.append(
                {**key, **shown, "seconds": round(time.perf_counter() - began, 1), "commit": commit()}
            )
            write_atomic(out, json.dumps({"hardware": hardware(torch.device("cpu")), "rows": rows}, indent=1))
            print(f"seed {seed}: {name}, {rows[-1]['seconds']} s", flush=True)
    write_atomic(out.with_suffix(".md"), page(rows, arguments))
    print(page(rows, arguments))


def trained(given: Mapping[str, Any], seed: int) -> Path:
    """The run of a seed, as it stands or newly made."""
    run = Path(given["runs"]) / f"protocols-{seed}"
    if (run / "results.json").exists():
        return run
    data = [f"data.path={given['data']}/train.parquet", f"data.eval_path={given['data']}/test.parquet"]
    numbers = [
        f"data.limit={given['samples']}", f"train.epochs={given['epochs']}", f"seed={seed}",
        f"scale.threads={given['threads']}",
    ]  # fmt: skip
    return pretrain(load_recipe([*SETTINGS, *data, *numbers, f"output={run}"]))


def page(rows: Sequence[Mapping[str, Any]], arguments: Sequence[str]) -> str:
    said = [f"`{a}`" for a in arguments if not a.startswith(("data=", "mnist=", "out=", "runs="))]
    lines = [
        "# Every protocol on one encoder", "", f"> {summary(rows)}", "",
        f"ReSSL, the small convolutional network, {rows[0]['samples']} images of CIFAR-10 at 24 px,"
        f" {rows[0]['epochs']} epochs; judged by the same images and the test images. Means over the seeds with their"
        " interval of 95 %; `untrained` is the same network at its initial weights under the same protocol, left out"
        " where a probe augments. Command:"
        f" `python pipelines/benchmark.py protocols data=FOLDER mnist=ROOT`"
        f"{' with ' + ', '.join(said) if said else ''};"
        f" commits {', '.join(f'`{c}`' for c in sorted({row['commit'] for row in rows}))}.", "",
        "| judged by | metric | trained | untrained | raw pixels | seeds | s |", "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name in dict.fromkeys(row["judgement"] for row in rows):
        of_it = [row for row in rows if row["judgement"] == name]
        seconds = np.median([row["seconds"] for row in of_it])
        for metric in of_it[0]["metrics"]:
            of_baseline = metric.startswith(tuple(f"eval/{base}_" for base in BASELINES))
            if not metric.startswith("eval/") or of_baseline or metric.endswith(CHOSEN):
                continue
            columns = [
                measured(of_it, each) for each in (metric, *(prefixed(metric, base) for base in BASELINES))
            ]
            named = f"{name} | {metric.removeprefix('eval/')}"
            lines.append(f"| {named} | {' | '.join(columns)} | {len(of_it)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the probes of the papers say of one encoder, and by how many protocols it is above its initial weights."""
    of: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for metric, value in row["metrics"].items():
            of.setdefault((row["judgement"], metric), []).append(value)
    probes = {name.removeprefix("probe "): float(np.mean(values)) for (name, metric), values in of.items()
              if name.startswith("probe") and metric == "eval/linear_top1"}  # fmt: skip
    low, high = min(probes, key=probes.__getitem__), max(probes, key=probes.__getitem__)
    pairs = [
        (values, of[name, prefixed(metric, "untrained")])
        for (name, metric), values in of.items()
        if metric.endswith("top1") and (name, prefixed(metric, "untrained")) in of and "train_" not in metric
    ]
    above = sum(all(a > b for a, b in zip(trained, fresh, strict=True)) for trained, fresh in pairs)
    return (
        f"One encoder of {len({row['seed'] for row in rows})} seeds: the papers' probes put its linear accuracy between"
        f" {probes[low]:.1f} ({low}) and {probes[high]:.1f} ({high}). By {above} of {len(pairs)} protocols with a top-1"
        " beside its initial weights each seed is above them. A probe whose batch is larger than the data takes one"
        " step an epoch."
    )


def measured(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    values = [row["metrics"][metric] for row in rows if metric in row["metrics"]]
    if not values:
        return ""
    between = intervals.over_seeds(values) or rows[0]["intervals"].get(metric)
    digits = 1 if max(map(abs, values)) > 1.5 else 3
    of = f" ({between[0]:.{digits}f} to {between[1]:.{digits}f})" if between else ""
    return f"{np.mean(values):.{digits}f}{of}"
