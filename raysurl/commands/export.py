"""Hand a trained encoder on: ONNX, TorchScript, torch.export, timm, or a folder for Hugging Face's hub."""

from __future__ import annotations

from collections.abc import Sequence

from raysurl.errors import InputError
from raysurl.export.asked import asked_for
from raysurl.recipe import nearest, take

SETTINGS = {
    "run": ("DIR | FILE", "", "a finished run, or an encoder.safetensors"),
    "to": ("onnx | torchscript | torch.export | timm | huggingface", "", "one form, or several with commas"),
    "output": ("DIR", "", "the folder that is written; it must not be there yet, or empty"),
    "takes": (
        "views | pixels",
        "views",
        "what onnx, torchscript and torch.export are given: normalised views, or pixels in [0, 1]",
    ),
    "license": ("text", "none", "of the weights, for the model card, as Hugging Face calls it"),
}


def main(arguments: Sequence[str]) -> None:
    """`export.py run=DIR|FILE to=onnx|torchscript|torch.export|timm|huggingface output=DIR`: each in the folder.

    Each form is read back and compared with the original, at most 1e-4 apart, for batches of several sizes; else
    nothing is written. What it needs beside raysurl: `pip install 'raysurl[export]'`.
    """
    mine, rest = take(arguments, *SETTINGS)
    if rest:
        key = next(iter(rest))
        raise InputError(f"argument {key}= is not known; {nearest(key, SETTINGS, 'export takes')}")
    if not mine.get("run"):
        raise InputError(
            "name what to export: run=DIR of a finished run, or run=FILE of an encoder.safetensors"
        )
    asked = asked_for(
        mine.get("to", ""), mine.get("output", ""), mine.get("takes", "views"), mine.get("license")
    )
    from raysurl.encoder import load_encoder  # torch
    from raysurl.export.writing import write
    from raysurl.paths import given_path

    found = load_encoder(mine["run"])
    for form in write(
        given_path("run", mine["run"]).absolute(), found.recipe, found.encoder, found.depth, asked
    ):
        print(
            f"{form.target}: {form.path}, at most {form.difference:.1g} from the encoder; read it by {form.read}"
        )
