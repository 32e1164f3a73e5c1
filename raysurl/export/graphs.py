"""ONNX, TorchScript and torch.export: the network's operations in one file, for any number of inputs at once.

Each file carries what it is, with its preprocessing, as JSON under the name `raysurl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from raysurl.export.checking import Apply, quietly

INPUT, OUTPUT, ABOUT = "images", "embeddings", "raysurl"
Write = Callable[[nn.Module, Tensor, Path, Mapping[str, Any]], Apply]


class Pixels(nn.Module):
    """A network behind the normalisation of its views: pixels (b, 3, S, S) in [0, 1] -> (b, D)."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.network((x - self.mean) / self.std)
        return out


def onnx(network: nn.Module, example: Tensor, file: Path, about: Mapping[str, Any]) -> Apply:
    """Written by torch's exporter, with a batch of any size; gives what onnxruntime makes of the file on the CPU."""
    import onnxruntime

    with quietly():
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    assert program is not None
    program.model.metadata_props[ABOUT] = json.dumps(about)
    program.save(str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def apply(x: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])

    return apply


def torchscript(network: nn.Module, example: Tensor, file: Path, about: Mapping[str, Any]) -> Apply:
    """Traced, for the networks hold no branch that depends on values; `torch.jit.load` reads it, C++ too."""
    with quietly():
        traced = torch.jit.trace(network, example)
        traced.save(str(file), _extra_files={ABOUT: json.dumps(about)})
        loaded: Apply = torch.jit.load(str(file), map_location="cpu")
    return loaded


def torch_export(network: nn.Module, example: Tensor, file: Path, about: Mapping[str, Any]) -> Apply:
    """`torch.export.load(file).module()` is the network; of versions of torch no older than this one."""
    with quietly():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, file, extra_files={ABOUT: json.dumps(about)})
        loaded: Apply = torch.export.load(file).module()
    return loaded


WRITE: dict[str, Write] = {"onnx": onnx, "torchscript": torchscript, "torch.export": torch_export}
