"""A folder as Hugging Face's hub has it: `config.json`, `model.safetensors`, the model card, and where the encoder is
none of timm's the code that rebuilds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from raysurl import streams
from raysurl.export import modeling
from raysurl.export.checking import Apply, quietly
from raysurl.export.timm_form import TimmForm
from raysurl.nets.drawing import drawn_from
from raysurl.nets.encoders import ConvNet, TwoTrunk
from raysurl.recipe import Recipe

WEIGHTS, CONFIG, CARD, CODE = "model.safetensors", "config.json", "README.md", "modeling.py"


def write_timm(folder: Path, form: TimmForm, about: Mapping[str, Any]) -> Apply:
    """timm's layout; gives the model that timm makes of the folder's weights."""
    import timm

    _write_weights(folder, form.tensors)
    # its initial weights, which are read over, are not to be drawn from the process's stream
    with drawn_from(streams.torch_stream(0, "export")), quietly():
        model = timm.create_model(
            form.name, checkpoint_path=str(folder / WEIGHTS), num_classes=0, **form.args
        )
    made: nn.Module = model.eval()
    said, known = about["preprocessing"], model.pretrained_cfg
    prepared = {
        "input_size": list(said["shape"]),
        "interpolation": said["interpolation"],
        "crop_pct": said["crop"] / said["resize"],
        "crop_mode": "center",
        "mean": list(said["mean"]),
        "std": list(said["std"]),
    }
    config = {
        "architecture": form.name.partition(".")[0],
        "num_classes": 0,
        "num_features": about["dim"],
        **({"model_args": dict(form.args)} if form.args else {}),
        # with the names of the layers that change where somebody asks for classes, or for other channels
        "pretrained_cfg": prepared
        | {"num_classes": 0, "first_conv": known.get("first_conv"), "classifier": known.get("classifier")},
        "raysurl": dict(about),
    }
    _write_config(folder, config)
    return made


def write_plain(folder: Path, network: nn.Module, recipe: Recipe, about: Mapping[str, Any]) -> Apply:
    """With the code that rebuilds the network; gives the model that this code makes of the folder."""
    config = {
        "encoder": rebuilt(recipe, network),
        "num_features": about["dim"],
        "preprocessing": about["preprocessing"],
        "raysurl": {key: value for key, value in about.items() if key not in ("encoder", "preprocessing")},
    }
    _write_weights(folder, network.state_dict())
    _write_config(folder, config)
    source = Path(modeling.__file__).read_text(encoding="utf-8")
    (folder / CODE).write_text(source, encoding="utf-8")
    # as text: imported as a file, it would leave its bytecode in the folder
    module: Any = ModuleType("raysurl_exported_modeling")
    module.__file__ = str(folder / CODE)
    exec(compile(source, folder / CODE, "exec"), module.__dict__)
    with drawn_from(streams.torch_stream(0, "export")):
        made: nn.Module = module.load(folder)
    return made


def rebuilt(recipe: Recipe, network: nn.Module) -> dict[str, Any]:
    """What `modeling.build` reads, with nothing left to defaults of this program."""
    e = recipe.encoder
    if e.name == "mlp":
        values = e.inputs or 3 * recipe.views.size**2
        return {"name": "mlp", "inputs": values, "widths": list(e.widths), "dropout": e.dropout}
    shape: dict[str, Any] = {"name": e.name, "sobel": e.sobel}
    if e.name == "convnet":
        return shape | {"channels": list(e.channels or signature(ConvNet).parameters["widths"].default)}
    shape |= {"small_stem": e.small_stem, "maxpool": e.maxpool}
    made_with = getattr(network.rgb if isinstance(network, TwoTrunk) else network, "made_with", None)
    return shape if made_with is None else shape | {"options": made_with}


def _write_weights(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})


def _write_config(folder: Path, config: Mapping[str, Any]) -> None:
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
