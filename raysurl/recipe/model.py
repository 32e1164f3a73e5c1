"""The recipe's type, and what its sections must agree on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, SerializeAsAny, ValidationError, field_validator

from raysurl import plugins
from raysurl.errors import InputError
from raysurl.recipe.evaluation import Evaluation
from raysurl.recipe.method_config import MethodConfig, config_class
from raysurl.recipe.schema import Section, sentence
from raysurl.recipe.sections import (
    LABELS,
    Checkpoint,
    Data,
    Encoder,
    Log,
    MemorySettings,
    Scale,
    Teacher,
    Train,
    Views,
)
from raysurl.streams import VERSION, FirstSeed
from raysurl.views.policies import POLICIES, Policy, named_policy

if TYPE_CHECKING:
    import torch

DEFAULT_METHOD = "ressl"


class Recipe(Section):
    """One validated description of a run: each section's defaults, and what differs from them."""

    recipe: str | None = None  # the packaged recipe or file that it began with
    method: SerializeAsAny[MethodConfig] = Field(
        default_factory=lambda: method_config({}), validate_default=True
    )
    data: Data = Data()
    views: Views = Views()
    encoder: Encoder = Encoder()
    teacher: Teacher = Teacher()
    norm: Literal["sync", "shuffle", "local"] = (
        "sync"  # batch norm over all workers, or of each, or of each with a shuffled batch
    )
    train: Train = Train()
    memory: MemorySettings = MemorySettings()
    checkpoint: Checkpoint = Checkpoint()
    eval: Evaluation = Evaluation()
    scale: Scale = Scale()
    log: Log = Log()
    runtime: Literal["ray", "local"] = (
        "ray"  # ray: on a cluster, also one of this machine alone; local: in this process without Ray
    )
    preset: Literal["quick", "standard", "paper"] | None = (
        None  # at most 10 minutes, at most 2 hours, or as it stands
    )
    seed: int = Field(0, ge=0)  # of weights, order and augmentation
    streams: Literal[1, 2] = VERSION  # version of the random streams that the seed opens; a run keeps its own
    output: str | None = None  # the run directory; none: a new one in runs/
    resume: bool = False  # continue the run in output=
    init_from: str | None = (
        None  # a run, an encoder.safetensors, or a file of timm's or torchvision's weights that the encoder begins with
    )
    plugins: dict[str, str] | None = (
        None  # files whose code the recipe names and their SHA-256, written by the run; none: as they are now
    )

    @field_validator("method", mode="before")
    @classmethod
    def _typed(cls, value: Any) -> Any:
        return value if isinstance(value, MethodConfig) else method_config(value)

    def with_threads(self, threads: int) -> Recipe:
        """The recipe with the CPU threads of a worker that its runtime chose."""
        return self.model_copy(update={"scale": self.scale.model_copy(update={"threads": threads})})

    @property
    def stream_seed(self) -> int:
        """The seed as everything that draws takes it."""
        return FirstSeed(self.seed) if self.streams == 1 else self.seed

    @property
    def total_epochs(self) -> int:
        return self.train.epochs * self.train.rounds

    @property
    def staleness(self) -> int:
        kind = self.method.remembers()
        own = 0 if kind is None else kind.staleness
        return own if self.memory.staleness is None else self.memory.staleness

    def precision(self, device: torch.device) -> str:
        """fp32 or bf16, what `train.precision` means on `device`."""
        if self.train.precision != "auto":
            return self.train.precision
        return "bf16" if device.type == "cuda" and self.encoder.name != "mlp" else "fp32"

    def channels_last(self, device: torch.device) -> bool:
        """Whether images are kept channels last on `device`."""
        chosen = self.train.channels_last
        return device.type == "cuda" if chosen == "auto" else chosen

    def view_policies(self) -> dict[str, Policy]:
        """View name -> policy: what the recipe names, else the view's default, which may be another view's policy."""
        defaults, named = self.method.views(), self.views.policies

        def of(view: str) -> Policy:
            default = defaults[view]
            return named.get(view) or (of(default) if default in defaults else named_policy(default))

        policies = {view: of(view) for view in defaults}
        t = self.teacher
        if t.name and t.view == "plain" and t.name != LABELS and not t.name.endswith(".parquet"):
            policies["teacher"] = POLICIES["plain"].model_copy(update={"size": t.size})
        return policies


def method_config(settings: Any) -> MethodConfig:
    """The typed settings of the method that `settings["name"]` names. Raises InputError, one sentence."""
    if not isinstance(settings, dict):
        raise InputError(f"method={settings!r} holds no settings; name a method with method.name=")
    settings = {"name": DEFAULT_METHOD, **settings}
    settings["name"] = plugins.absolute(str(settings["name"]))
    config = config_class(settings["name"])
    try:
        return config.model_validate(settings)
    except ValidationError as error:
        raise InputError(sentence(error, config, "method.")) from None


def recipe_from(tree: dict[str, Any]) -> Recipe:
    """Validate a tree of differences from the defaults. Opens no file; raises InputError, one sentence."""
    _check_text(tree, "")
    try:
        return _validated(tree)
    except UnicodeEncodeError as error:  # a validator's sentence, which quotes text that is no UTF-8
        raise InputError(str(error.object)) from None


def _validated(tree: dict[str, Any]) -> Recipe:
    try:
        # all but the method first: its module brings torch, which a mistake elsewhere need not wait for
        recipe = Recipe.model_validate({**tree, "method": MethodConfig()})
    except ValidationError as error:
        raise InputError(sentence(error, Recipe)) from None
    settings = tree.get("method", {})
    named = settings.get("name") if isinstance(settings, dict) else getattr(settings, "name", None)
    # before the code of any is run: none may have changed since the run began
    files = plugins.pinned([("method.name", str(named)), *_names(recipe)], recipe.plugins or {})
    recipe = recipe.model_copy(update={"method": method_config(settings), "plugins": files or None})
    _check(recipe)
    return recipe


def _names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """(setting, name) of all but the method that may be of a file, and that are looked up while a run works."""
    yield "encoder.name", recipe.encoder.name
    yield "data.name", recipe.data.name
    settings = recipe.eval
    for key in ("linear_augment", "finetune_augment"):
        yield f"eval.{key}", getattr(settings, key) or ""
    yield from (("eval.neighbours_views", name) for name in settings.neighbours_views)
    yield from (("eval.protocols", name) for name in settings.protocols)
    for key, there in settings.elsewhere.items():
        yield f"eval.elsewhere.{key}.data.name", there.data.name
        yield from ((f"eval.elsewhere.{key}.protocols", name) for name in there.protocols)


# -------------------------------------------------------------------- checks


def _check_text(node: Any, key: str) -> None:
    """No text of a recipe holds a NUL: it is a name, or a path, which the system would cut off there."""
    if isinstance(node, dict):
        for name, value in node.items():
            _check_text(value, f"{key}.{name}".lstrip("."))
    elif isinstance(node, list | tuple):
        for value in node:
            _check_text(value, key)
    elif isinstance(node, str) and "\0" in node:
        raise InputError(f"{key}={node} holds a NUL character, which no setting can; leave it out")


def _check(recipe: Recipe) -> None:
    _check_views(recipe)
    _check_batch(recipe)
    _check_memory(recipe)
    _check_teacher(recipe)
    if recipe.method.reads_hidden() and recipe.encoder.name != "mlp":
        raise InputError(
            f"these settings of {recipe.method.name} read the encoder's hidden layer, which encoder.name="
            f"{recipe.encoder.name} does not show; use encoder.name=mlp, or method.neck=true"
        )
    if recipe.resume and recipe.init_from:
        raise InputError("resume=true continues a run and init_from= starts a new one; give one of them")


def _check_views(recipe: Recipe) -> None:
    views = recipe.method.views()
    for view in recipe.views.policies:
        if view not in views:
            raise InputError(
                f"views.policies.{view}: this method has no such view; it has {', '.join(views)}"
            )


def _check_batch(recipe: Recipe) -> None:
    train, method = recipe.train, recipe.method
    if train.batch_size % train.accumulate:
        raise InputError(
            f"train.accumulate={train.accumulate} must divide train.batch_size={train.batch_size}"
        )
    if train.accumulate > 1 and method.couples_batch and not train.allow_split_batch:
        raise InputError(
            f"train.accumulate={train.accumulate} would change the loss of {method.name}, which couples"
            " the whole batch; use train.accumulate=1 or say train.allow_split_batch=true"
        )
    if (workers := recipe.scale.workers) and train.batch_size % (workers * train.accumulate):
        raise InputError(
            f"train.batch_size={train.batch_size} must be a multiple of scale.workers × train.accumulate ="
            f" {workers * train.accumulate}"
        )
    if (most := method.largest_batch()) and train.batch_size > most:
        raise InputError(
            f"train.batch_size={train.batch_size} makes more pairs than {method.name} takes at once; use at"
            f" most {most}"
        )


def _check_memory(recipe: Recipe) -> None:
    kind, name = recipe.method.remembers(), recipe.method.name
    if recipe.train.sampler == "neighbours" and not (kind and kind.has_neighbours):
        raise InputError(
            f"train.sampler=neighbours needs a graph of the samples, and {name} holds none with these"
            " settings; use train.sampler=permutation"
        )
    if recipe.eval.features == "memory" and not (kind and kind.per_sample):
        raise InputError(
            f"eval.features=memory: {name} remembers no vector per sample; use backbone or embedding"
        )


def _check_teacher(recipe: Recipe) -> None:
    name, teacher, takes = recipe.method.name, recipe.teacher, recipe.method.learns_from()
    if takes == "no" and teacher.name:
        raise InputError(
            f"teacher.name={teacher.name}: {name} learns from no teacher with these settings; leave it out"
        )
    if takes != "no" and not teacher.name:
        raise InputError(
            f"{name} learns from a frozen teacher; name one with teacher.name=, a torchvision model, timm:NAME,"
            " open_clip:NAME/TAG, a run directory, or a Parquet file of embeddings"
        )
    if takes == "labels" and teacher.name != LABELS:
        raise InputError(f"teacher.name={teacher.name}: {name} learns from teacher.name=labels alone")
    if takes == "network" and teacher.view == "plain":
        raise InputError(
            f"{name} needs a teacher that sees the student's views; use teacher.view=same and a network"
        )
