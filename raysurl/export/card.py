"""The model card: what an encoder is, how to use it, how it was trained, and what was measured, with intervals.

Nothing is said that the run, or the encoder's file, does not say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from raysurl.export.timm_form import TimmForm
from raysurl.report.terminal import gained, tables

About = Mapping[str, Any]


def card(title: str, about: About, results: About | None, form: TimmForm | None, license: str | None) -> str:
    """The text of README.md. `results`: of a finished run; `form`: None where `modeling.py` rebuilds the network."""
    parts = [
        _front(about, form, license),
        f"# {title}",
        _summary(about),
        "## Use",
        _use(about, form),
        "## Preprocessing",
        _preprocessing(about["preprocessing"]),
        "## Training",
        _training(about, results),
        "## Numbers",
        _numbers(results),
        "## Licence",
        _licence(license, form),
    ]
    return "\n\n".join(parts) + "\n"


def _front(about: About, form: TimmForm | None, license: str | None) -> str:
    images = about["preprocessing"]["input"] == "images"
    lines = [
        f"license: {license or 'unknown'}",
        *(["library_name: timm"] if form else []),
        *(["pipeline_tag: image-feature-extraction"] if images else []),
        "tags:",
        *(["- timm"] if form else []),
        "- self-supervised-learning",
        "- feature-extraction",
        "- raysurl",
    ]
    return "\n".join(["---", *lines, "---"])


def _summary(about: About) -> str:
    encoder, said = about["encoder"], about["preprocessing"]
    seen = "an image" if said["input"] == "images" else f"a vector of {said['shape'][0]} values"
    others = {key: value for key, value in encoder.items() if key != "name"}
    settings = f" ({', '.join(f'{key} {_text(value)}' for key, value in others.items())})" if others else ""
    method = about.get("method")
    learned = f", learned without labels by {method['name']}" if method and _unsupervised(method) else ""
    return (
        f"`{encoder['name']}`{settings}, {about['parameters']:,} parameters: {seen} becomes a vector of {about['dim']}"
        f" values{learned}. A backbone alone, without a head for classes."
    )


def _unsupervised(method: About) -> bool:
    from raysurl.recipe import method_config

    return method_config({"name": method["name"]}).learns_from() == "no"


def _use(about: About, form: TimmForm | None) -> str:
    images = about["preprocessing"]["input"] == "images"
    if form:
        lines = [
            "import timm",
            "",
            'model = timm.create_model("local-dir:.", pretrained=True, num_classes=0).eval()  # or "hf-hub:OWNER/NAME"',
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)",
            "z = model(transform(image)[None])  # image: of PIL, RGB",
        ]
    else:
        lines = [
            "from modeling import load, prepare  # modeling.py of this folder; torch and safetensors are enough",
            "",
            'model = load(".")',
            *(["z = model(prepare(image)[None])  # image: of PIL"] if images else ["z = model(vectors)"]),
        ]
    return "\n".join(["```python", *lines, "```"])


def _preprocessing(said: About) -> str:
    if said["input"] == "vectors":
        of = {
            "grey": " They are the mean of an image's channels in [0, 1], row by row.",
            "rgb": " They are an image's three channels in [0, 1], one after the other, each row by row.",
        }.get(said["of_images"], "")
        return f"Vectors of {said['shape'][0]} values (float32), as they are.{of}"
    wide = said["pixel_range"]
    lines = [
        f"RGB in [0, 1]; the shorter side resized to {said['resize']} px ({said['interpolation']}, antialiased); the"
        f" centre of {said['crop']} px; mean {_text(said['mean'])} taken off, divided by {_text(said['std'])}.",
        *(
            [
                f"Pixels wider than a byte: {wide['low']} is 0 and {wide['low'] + 2 ** wide['bits'] - 1} is 1, the"
                " range of the training data."
            ]
            if wide
            else []
        ),
    ]
    return "\n".join(lines)


def _training(about: About, results: About | None) -> str:
    """A list of what is known."""
    if "method" not in about:
        return "The encoder's file does not say how it was trained."
    method, data, train = about["method"], about["data"], about["train"]
    held = results or {}
    samples = f", {held['num_samples']:,} samples" if held.get("num_samples") else ""
    folder = f" (`{data['folder']}`)" if data["folder"] else ""
    epochs = f"{train['epochs']}" + (f" × {train['rounds']} rounds" if train["rounds"] > 1 else "")
    versions = held.get("versions", {})
    lines = [
        f"Data: {data['name']}{folder}{samples}",
        f"Recipe: {about['recipe'] or 'none, settings alone'}",
        f"Method: {method['name']}, `{json.dumps({k: v for k, v in method.items() if k != 'name'})}`",
        f"{epochs} epochs in batches of {train['batch_size']}, {train['optimizer']['name']}, seed {about['seed']}",
        *([f"Hardware: {held['hardware']}, {held['seconds']:.0f} s"] if "hardware" in held else []),
        f"Program: raysurl {about['version'] or versions.get('raysurl', 'of unknown version')},"
        f" commit {_commit(about, held)}",
        *(["Versions: " + ", ".join(f"{k} {v}" for k, v in versions.items())] if versions else []),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _commit(about: About, results: About) -> str:
    found = about.get("commit") or results.get("commit")
    return f"`{found}`" if found else "unknown"


def _numbers(results: About | None) -> str:
    """A table, or why there is none."""
    if results is None:
        return "None: the encoder was exported from its file alone, or from a run that had not ended."
    measured = {name: value for name, value in results["metrics"].items() if name != "train/loss"}
    if not measured:
        return "None: the run evaluated nothing."
    lines = [
        "Of the run that trained it, last epoch; accuracies in percent. Intervals of 95 % say how far another test set"
        " of that size would move a number; one seed.",
    ]
    for table in tables(measured, results.get("intervals") or {}):
        lines += ["", _row(table.head), _row(["---"] * len(table.head)), *map(_row, table.rows)]
    said = [*gained(results.get("gains") or {}), *results.get("health", [])]
    return "\n".join([*lines, *([""] if said else []), *(f"- {sentence}" for sentence in said)])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _licence(license: str | None, form: TimmForm | None) -> str:
    code = "" if form else " `modeling.py` is raysurl's, under Apache-2.0."
    if license:
        return f"The weights: {license}.{code}"
    return f"None was stated for the weights (`license=`); the data may bind their use.{code}"


def _text(value: Any) -> str:
    return json.dumps(value)
