"""Networks of other libraries with their published weights: what stands before the classifier.

Nothing is downloaded unless asked. Where weights are not at hand, the error says which file to place where.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor, nn

from raysurl.errors import InputError, first_line
from raysurl.nets import timm_models
from raysurl.nets.weights import read_tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of torchvision's weights
Three = tuple[float, float, float]


@dataclass(frozen=True)
class Network:
    """`net` (b, 3, size, size) -> (b, dim), of images normalised with `mean` and `std`; or of vectors."""

    net: nn.Module
    dim: int
    size: int
    mean: Three
    std: Three
    vectors: bool = False  # the network flattens what it sees, so it takes vectors too
    margin: float | None = None  # see eval.margin; None: as for ImageNet


Texts = Callable[[Sequence[str]], Tensor]
"""Texts -> their embeddings (T, dim)."""


def torchvision_model(name: str, weights: Path | None, download: bool, loaded: bool) -> Network:
    """A classifier of torchvision without its last linear layer; unless `loaded`, a shape without weights."""
    import torchvision  # a second, which runs without such a teacher need not wait for

    names = torchvision.models.list_models(torchvision.models)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"torchvision has {', '.join(names)}"
        raise InputError(
            f"teacher.name={name} is neither a model of torchvision nor a run directory; {hint} (others are named"
            " timm:NAME or open_clip:NAME/TAG)"
        )
    with torch.device("meta"):
        net = torchvision.models.get_model(name, weights=None)
    linear = [key for key, module in net.named_modules() if isinstance(module, nn.Linear)]
    last = net.get_submodule(linear[-1]) if linear else None
    published = torchvision.models.get_model_weights(name).DEFAULT
    if last is None or last.out_features != len(published.meta["categories"]):
        raise InputError(
            f"teacher.name={name} has no linear classifier at its end, before which features could be taken"
        )
    net.set_submodule(linear[-1], nn.Identity())
    if loaded:
        tensors = (
            read_tensors(weights, "teacher.weights") if weights else _published(name, published, download)
        )
        fill(net, tensors, str(weights or published.url))
    return Network(net, int(last.in_features), 224, MEAN, STD)


def timm_model(name: str, weights: Path | None, download: bool, loaded: bool) -> Network:
    """A model of timm without its classifier."""
    timm = timm_models.library(f"teacher.name=timm:{name}")
    file = f"https://huggingface.co/{_timm_hub(timm, name)}/resolve/main/model.safetensors"
    if loaded and not (weights or download):
        raise _no_weights(f"timm:{name}", file)
    try:
        net = timm.create_model(name, pretrained=loaded and weights is None, num_classes=0)
    except Exception as error:  # of timm, of its hub, or of the network
        raise _failed(f"timm:{name}", error, file) from None
    if loaded and weights:
        fill(net, read_tensors(weights, "teacher.weights"), str(weights))
    c = net.pretrained_cfg
    dim = int(getattr(net, "head_hidden_size", net.num_features))  # what the classifier would see
    return Network(net, dim, int(c["input_size"][-1]), tuple(c["mean"]), tuple(c["std"]))


def open_clip_model(name: str, weights: Path | None, download: bool, loaded: bool) -> Network:
    """The image tower of an open_clip model NAME/TAG, its projection included."""
    open_clip, model = _open_clip(name, weights, download, loaded)
    return _image_tower(open_clip, model.visual)


def open_clip_towers(name: str, weights: Path | None, download: bool) -> tuple[Network, Texts]:
    """Both towers of an open_clip model NAME/TAG. Raises InputError where its tokenizer is not at hand."""
    open_clip, model = _open_clip(name, weights, download, True)
    try:
        tokenize = open_clip.get_tokenizer(name.partition("/")[0])
    except Exception as error:  # of a hub that cannot be reached
        raise InputError(f"the tokenizer of open_clip:{name} is not at hand ({first_line(error)})") from None
    model.eval().requires_grad_(False)
    return _image_tower(open_clip, model.visual), lambda texts: model.encode_text(tokenize(list(texts)))


def _image_tower(open_clip: Any, net: Any) -> Network:
    size = net.image_size[0] if isinstance(net.image_size, tuple) else net.image_size
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    return Network(net, int(net.output_dim), int(size), tuple(mean), tuple(std), margin=1.0)


def _open_clip(name: str, weights: Path | None, download: bool, loaded: bool) -> tuple[Any, Any]:
    """The library, and a model of it."""
    open_clip = _library("open_clip", f"open_clip:{name}")
    model, _, tag = name.partition("/")
    file = _open_clip_file(open_clip, model, tag)
    if loaded and not (weights or (download and tag)):
        raise _no_weights(f"open_clip:{name}", file)
    try:
        source = (str(weights) if weights else tag) if loaded else None
        return open_clip, open_clip.create_model(model, pretrained=source)
    except Exception as error:
        if loaded and weights:
            raise InputError(
                f"teacher.weights={weights} is not of open_clip:{name} ({first_line(error)})"
            ) from None
        raise _failed(f"open_clip:{name}", error, file) from None


def _timm_hub(timm: Any, name: str) -> str:
    """Where timm publishes the weights of a model. Raises InputError for a name that it does not know."""
    try:
        published = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # an unknown tag
        raise _failed(f"timm:{name}", error) from None
    if published is None and ":" not in name:  # hf-hub:… is not in its list
        raise _failed(f"timm:{name}", _unknown(name, timm.list_models()))
    return getattr(published, "hf_hub_id", None) or f"timm/{name}"


def _open_clip_file(open_clip: Any, model: str, tag: str) -> str:
    """The file of a model's weights. Raises InputError for a name or a tag that open_clip does not know."""
    known, name = open_clip.list_models(), f"open_clip:{model}" + (f"/{tag}" if tag else "")
    if model not in known and ":" not in model:
        raise _failed(name, _unknown(model, known))
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag and tags and tag not in tags:
        raise _failed(name, ValueError(f"{tag} is not one of its tags {', '.join(tags)}"))
    published = (open_clip.get_pretrained_cfg(model, tag) if tag else None) or {}
    if hub := published.get("hf_hub", "").rstrip("/"):
        return f"https://huggingface.co/{hub}/resolve/main/open_clip_model.safetensors"
    return published.get("url") or f"open_clip's weights of {model}, one of NAME/TAG with {', '.join(tags)}"


def _unknown(name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, n=3)
    return ValueError(f"Unknown model {name}" + (f", did you mean {' or '.join(near)}?" if near else ""))


LIBRARIES: dict[str, Callable[[str, Path | None, bool, bool], Network]] = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "open_clip": open_clip_model,
}


def fill(net: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Put weights into a network whatever the prefix of their names; what it has no place for (heads) is left out.

    Raises InputError where one is missing or of another shape.
    """
    wanted = net.state_dict()
    first = next(iter(wanted))
    prefixes = [key[: -len(first)] for key in tensors if ("." + key).endswith("." + first)]
    prefix = max(prefixes, key=lambda p: sum(p + name in tensors for name in wanted), default="")
    found = {name: tensors[prefix + name] for name in wanted if prefix + name in tensors}
    for name, want in wanted.items():
        have = found.get(name)
        if have is None and not name.endswith("num_batches_tracked"):
            raise InputError(f"{where} does not fit teacher.name: it has no {prefix}{name}")
        if have is not None and have.shape != want.shape:
            raise InputError(
                f"{where} does not fit teacher.name: {prefix}{name} is {tuple(have.shape)} in the file and"
                f" {tuple(want.shape)} in the network"
            )
        if have is None:
            found[name] = torch.zeros(
                (), dtype=torch.int64
            )  # counts steps of batch norm, which old files lack
    tensors = {name: found[name].to(want.dtype) for name, want in wanted.items()}
    net.load_state_dict(tensors, assign=True)


def _published(name: str, weights: Any, download: bool) -> Mapping[str, Tensor]:
    """The weights that torchvision publishes, from where it keeps them."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(weights.url).name
    if file.is_file():
        return read_tensors(file, "teacher.weights")
    if not download:
        raise _no_weights(name, f"{weights.url} as {file}")
    try:
        tensors: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, URLError, RuntimeError) as error:
        raise InputError(
            f"the weights of teacher.name={name} could not be downloaded ({error}); place {weights.url} as {file},"
            " or name a file with teacher.weights=FILE"
        ) from None
    return tensors


def _library(package: str, name: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(
            f"teacher.name={name} needs the package {package}; install raysurl[distill]"
        ) from None


def _no_weights(name: str, file: str) -> InputError:
    return InputError(
        f"the weights of teacher.name={name} are not at hand: place {file}, name another file with"
        " teacher.weights=FILE, or say teacher.download=true"
    )


def _failed(name: str, error: Exception, file: str = "") -> InputError:
    place = f"place {file} and name it" if file else "name a file"
    return InputError(
        f"teacher.name={name} could not be made ({first_line(error)}); check the name, or {place} with"
        " teacher.weights=FILE"
    )
