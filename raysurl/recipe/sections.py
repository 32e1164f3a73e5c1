"""The sections of a recipe; each default is stated here, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from raysurl import plugins
from raysurl.errors import InputError
from raysurl.recipe.schema import Section, sentence
from raysurl.views.policies import POLICIES, Policy, Positive, named_policy

# of an encoder or of data: a name, or PATH.py:NAME with the whole path
Named = Annotated[str, AfterValidator(plugins.absolute)]
Within = Annotated[float, Field(gt=0, lt=1)]
Option = bool | int | float | str | None | tuple[bool | int | float | str | None, ...]
MOST_THREADS = 1024  # of one process
LABELS = "labels"  # the teacher of a supervised reference: the labels of the data


class Data(Section):
    """What to read. Names: digits | torchvision:<class> | folder | parquet | npz | planetoid:<graph> | voc:<year> |
    coco:<year>."""

    name: Named = "folder"  # what kind of data; `raysurl recipes` lists them; or FILE.py:NAME
    path: str | None = None  # a folder, file, root or URI, as data.name has it
    eval_path: str | None = None  # labelled test set, where the name implies none
    download: bool = False  # torchvision's and Planetoid's; nothing is downloaded unless asked
    image_column: str = "image"  # of a Parquet file: images, or lists of numbers
    flatten: Literal["grey", "rgb"] | None = None  # images as vectors in [0, 1], of one channel or of three
    label_column: str = "label"  # of a Parquet file, where it has one
    labels: str | None = (
        None  # folder, none, a column or array by name, or a .csv of files; None: as the log says
    )
    bits: int | None = Field(
        None, ge=1, le=63
    )  # of a pixel wider than a byte; None: by the largest of all pixels
    mode: Literal["auto", "resident", "streaming"] = (
        "auto"  # all decoded in memory, or decoded as it is read; auto: by its size
    )
    window: int | None = Field(
        None, ge=1
    )  # samples shuffled together when streaming what is read in groups; None: as many as 4 GiB hold
    reads: int | None = Field(
        None, ge=1
    )  # of each group in an epoch, a part each time, so that a window holds more groups; None: up to 4, as batches need
    resident_share: float = Field(0.6, gt=0, le=1)  # of the object store that a resident copy may take
    max_unreadable: float = Field(0.01, ge=0, le=1)  # share of unreadable samples that stops a run
    labelled: str | None = None  # a file of sample names, one a line: only they keep their labels
    per_class: int | None = Field(None, ge=1)  # of a set without a test set: so many train, all others test
    limit: int | None = Field(None, ge=1)  # use only this many samples, a seeded choice
    options: dict[str, Option] = Field({})  # of a data source from outside the package


class Views(Section):
    size: int = Field(64, ge=4)  # pixels; a policy may name its own
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of pixels in [0, 1]: ImageNet's
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)  # of the same
    policies: dict[str, Policy] = Field({})  # view name -> policy (a name, or a mapping with optional `base`)
    device: Literal["trainer", "workers"] = "trainer"  # where views are made: the step's device, or Ray Data

    @model_validator(mode="before")
    @classmethod
    def _resolve_policies(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("policies"), dict):
            resolved = {view: policy_from(value, view) for view, value in values["policies"].items()}
            values = {**values, "policies": resolved}
        return values


class Encoder(Section):
    name: Named = (
        "resnet18"  # or convnet, mlp, one of torchvision (raysurl.nets.encoders), timm:NAME, FILE.py:NAME
    )
    small_stem: bool = False  # 3×3 stride-1 first convolution, no max-pool (images up to 64 px)
    maxpool: bool = False  # keep the max-pool behind a small stem
    zero_init_residual: bool = False  # each residual block of a ResNet begins as the identity
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (500, 500, 2), min_length=1
    )  # of an mlp's layers, the output's last
    channels: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, min_length=1
    )  # of a convnet's layers, the features' last; None: 32, 64, 128, 256
    dropout: float = Field(0.0, ge=0, lt=1)  # of an mlp's inputs and hidden values
    inputs: int | None = Field(None, ge=1)  # of an mlp; None: from the data, or the pixels of a view
    sobel: bool = False  # a second network of this kind sees Sobel edges, and the features of both are joined
    options: dict[str, Option] = Field(
        {}
    )  # of timm's constructor of the network, as patch_size, depth; or of an encoder from outside the package
    drop_path: float | None = Field(
        None, ge=0, lt=1
    )  # rate of stochastic depth at the last block, in training alone; None: the network's own, mostly 0
    freeze_patch_embed: bool | None = (
        None  # patches become tokens by the initial weights; None: as the method has it (MoCo v3)
    )

    @model_validator(mode="after")
    def _check(self) -> Encoder:
        if self.channels and self.name != "convnet":
            raise ValueError(f"channels are of a convnet, and name={self.name} has its own; leave them out")
        if self.dropout and self.name != "mlp":
            raise ValueError(f"dropout is of an mlp, and name={self.name} has its own; leave it out")
        if self.options and self.name in ("convnet", "mlp"):
            raise ValueError(f"options are of timm's networks, and name={self.name} is none; leave them out")
        if self.drop_path and self.name in ("convnet", "mlp"):
            raise ValueError(f"drop_path: name={self.name} has no stochastic depth; leave it out")
        return self


class Teacher(Section):
    """The frozen network that a student learns from, in methods that take one; see raysurl.teachers."""

    name: str | None = (
        None  # torchvision's, timm:NAME, open_clip:NAME/TAG, a run of ours, embeddings (.parquet), or labels
    )
    weights: str | None = None  # file of its weights, where `name` is not a run of ours
    view: Literal["plain", "same"] = "same"  # it sees the sample without augmentation, or the student's view
    size: int | None = Field(None, ge=4)  # pixels that it sees; None: those of its own training
    mean: tuple[float, float, float] | None = None  # of its pixels; None: those of its own training
    std: tuple[Positive, Positive, Positive] | None = None  # of the same
    centre: bool = False  # take the batch's mean off its embeddings, see raysurl.teachers.CentredTeacher
    download: bool = False  # its weights; nothing is downloaded unless asked


class Optimizer(Section):
    name: Literal["sgd", "adam", "adamw", "lars"] = "sgd"  # the optimizer
    lr: float = Field(0.06, gt=0)  # learning rate
    lr_batch: int = Field(256, ge=0)  # lr is for this batch size and scales linearly with it; 0: lr as it is
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd and lars
    weight_decay: float = Field(5e-4, ge=0)  # decay of weights, also called L2 penalty
    nesterov: bool = False  # look-ahead momentum of sgd
    trust: float = Field(1e-3, gt=0)  # LARS trust coefficient
    decay_filter: Literal["ndim", "all", "official_name"] = "ndim"  # what is decayed; see raysurl.train.optim
    bias_lr: float | None = Field(None, gt=0)  # of biases and norms, scaled as lr is; None: lr

    @model_validator(mode="after")
    def _check(self) -> Optimizer:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov looks ahead along the momentum, and momentum=0 is none; leave one out")
        return self


class Schedule(Section):
    name: Literal["cosine", "step", "constant"] = "cosine"  # how the learning rate falls
    warmup_epochs: float = Field(
        10, ge=0
    )  # in which the learning rate rises to lr in a line; fitted to a train.epochs that differs from the recipe's
    milestones: tuple[Within, ...] = (0.6, 0.8)  # fractions of the period (step only)
    gamma: float = Field(0.1, gt=0)  # factor at each milestone (step only)
    period: Literal["run", "round"] = "run"  # the schedule spans the run, or begins anew with each round
    by: Literal["step", "epoch"] = "step"  # how often the rate changes
    start: float = Field(0, ge=0, le=1)  # of the warm-up, a share of lr
    floor: float = Field(0, ge=0, le=1)  # where the cosine ends, a share of lr


class Train(Section):
    epochs: int = Field(200, ge=1)  # of each round
    rounds: int = Field(1, ge=1)  # curriculum rounds (Super-AND)
    batch_size: int = Field(256, ge=2)  # global
    sampler: Literal["permutation", "neighbours"] = (
        "permutation"  # neighbours: batches hold positives of a graph
    )
    accumulate: int = Field(1, ge=1)  # micro-batches per optimizer step
    allow_split_batch: bool = False  # accumulate even where the loss couples the whole batch
    clip: float | None = Field(None, gt=0)  # gradient norm
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # of the networks; auto: bf16 on a GPU, but for an mlp
    )
    channels_last: Literal["auto"] | bool = "auto"  # auto: on a GPU, where convolutions are faster so
    compile: bool = False  # compile the networks with torch.compile
    cuda_graph: Literal["auto"] | bool = (
        "auto"  # replay the step as one; auto: on a GPU, where the method allows it
    )
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()


class MemorySettings(Section):
    staleness: Literal[0, 1] | None = None  # 0: exact; 1: hidden behind the step; None: the method's own


class Checkpoint(Section):
    every_epochs: int = Field(1, ge=0)  # 0: at the end alone
    every_steps: int = Field(0, ge=0)  # besides epochs; 0: never
    keep: int = Field(2, ge=1)  # newest ones kept, besides the best


class Scale(Section):
    workers: int | None = Field(None, ge=1)  # none: one per GPU, else cpu_workers
    cpu_workers: int = Field(
        1, ge=1
    )  # without a GPU, where workers is none: so many, or as many as there are cores
    threads: int | None = Field(
        None, ge=1, le=MOST_THREADS
    )  # CPU threads of each; none: all cores shared out, 1 in a sweep's trials
    timeout_s: float = Field(300, gt=0)  # after which a collective, memory or a worker counts as lost
    max_failures: int = Field(3, ge=0)  # worker-group restarts


class Log(Section):
    every_steps: int = Field(10, ge=1)  # how often step lines are written (a line per step all the same)
    memory_every_steps: int = Field(0, ge=0)  # signals of memory besides each epoch's; 0: never
    on_finding: Literal["say", "stop", "prune"] = (
        "say"  # of raysurl.health, once it lasts: only say it, stop the run, or end it where it is a trial of a sweep
    )
    tensorboard: bool = True  # write tensorboard/ in the run directory
    wandb: bool = False  # log to Weights & Biases
    mlflow: bool = False  # log to MLflow


def policy_from(value: Any, view: str) -> Policy:
    """A policy from its name, or from a mapping that changes the one named `base` (plain where it names none)."""
    if isinstance(value, Policy):
        return value
    settings = dict(value) if isinstance(value, dict) else {"base": value}
    base = settings.pop("base", "plain")
    if not isinstance(base, str):
        raise InputError(
            f"views.policies.{view}={base!r} is not a policy; choose one of {', '.join(POLICIES)}"
        )
    begun = named_policy(base, f"views.policies.{view}")
    try:
        return Policy.model_validate({**begun.model_dump(), **settings})
    except ValidationError as error:
        raise InputError(sentence(error, Policy, f"views.policies.{view}.")) from None
