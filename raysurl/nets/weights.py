"""Weights of a file, by name: .safetensors, or PyTorch's own format without objects. No pickle is ever loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raysurl.errors import InputError
from raysurl.nets.timm_models import resampled


def read_tensors(path: Path, setting: str) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch file that holds nothing but tensors and plain values.

    Raises InputError where it cannot be read, or holds none; `setting`: what named it.
    """
    if not path.is_file():
        raise InputError(f"{setting}={path} is not a file; place the weights there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever damaged bytes raise
        raise InputError(
            f"{setting}={path} is not a readable file of tensors (.safetensors, or .pth without objects)"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(stored, dict) and isinstance(stored.get(key), dict):
            stored = stored[key]
    tensors = {k: v for k, v in stored.items() if isinstance(v, Tensor)} if isinstance(stored, dict) else {}
    if not tensors:
        raise InputError(f"{setting}={path} holds no named tensors")
    return tensors


def of_library(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """What a network without a classifier takes of a file of its library: position embeddings are fitted to its size,
    the classifier is left out, and what old files lack, counts of steps, begins at 0."""
    heads = tuple(f"{name}." for name in getattr(net, "classifier_names", ()))
    wanted = net.state_dict()
    found = {k: v for k, v in resampled(tensors, net).items() if k in wanted or not k.startswith(heads)}
    counts = (k for k in wanted if k.endswith("num_batches_tracked") and k not in found)
    return found | {k: torch.zeros((), dtype=torch.int64) for k in counts}
