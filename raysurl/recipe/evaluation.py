"""How a run is judged: `eval.…`; each default is stated here, once."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from raysurl import plugins
from raysurl.recipe.detections import Detection
from raysurl.recipe.probes import PROBES, Probe
from raysurl.recipe.schema import Section, sentence
from raysurl.recipe.sections import Data
from raysurl.recipe.tunings import TUNINGS, Tuning
from raysurl.views.policies import POLICIES, Positive

TAKEN = ("untrained", "pixels", "backbone")  # what metrics of the run's own data may begin with
BuiltIn = Literal[
    "knn", "linear", "lbfgs", "transfer", "finetune", "rankme", "embedding", "nodes", "svm", "multilabel", "detection",
    "retrieval", "clustering", "neighbours", "distances", "zeroshot",
]  # fmt: skip
PROTOCOLS: tuple[str, ...] = get_args(BuiltIn)


def _protocol(name: str) -> str:
    """A protocol of ours, or one from outside the package, a file by its whole path."""
    if name not in PROTOCOLS and not plugins.offered("protocol", name):
        known = [*PROTOCOLS, *plugins.names("protocol")]
        raise ValueError(f"choose of {', '.join(known)}{plugins.near('protocol', name, PROTOCOLS)}")
    return plugins.absolute(name)


Protocol = Annotated[BuiltIn | str, AfterValidator(_protocol)]


class Elsewhere(Section):
    """Other data by which the backbone is judged at the end, besides those that it trained on."""

    data: Data
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    size: int | None = Field(None, ge=4)  # pixels of an image there; None: views.size


class Evaluation(Section):
    every_epochs: int = Field(5, ge=0)  # online kNN; 0: only at the end
    features: Literal["backbone", "embedding", "memory"] = "backbone"  # see raysurl.evaluate.evaluator
    online_bank: int = Field(50_000, ge=1)  # the online bank has at most so many samples, a draw
    protocols: tuple[Protocol, ...] = (  # how features are judged at the end
        "knn",
        "linear",
        "lbfgs",
        "rankme",
    )
    knn_k: tuple[int, ...] = Field((200, 20), min_length=1)  # neighbours that vote; the headline is 200
    knn_tau: float = Field(0.1, gt=0)  # temperature of their weights
    probe: str = (
        "ressl"  # how the linear probe is trained, see raysurl.recipe.probes; what follows changes it
    )
    linear_epochs: int | None = Field(None, ge=1)  # of the linear probe; none: the probe's own
    linear_lr: float | tuple[float, ...] | None = (
        None  # several: trained together, the best by held-out samples
    )
    linear_weight_decay: float | tuple[float, ...] | None = None  # as linear_lr
    linear_batch_size: int | None = Field(None, ge=1)  # of the linear probe
    linear_augment: str | None = None  # a policy; views: the first of the run's; plain: none
    linear_unit_length: bool | None = (
        None  # features are divided by their mean length; none: the probe's own, not if linear_lr is given
    )
    finetune: tuple[str, ...] = ("full",)  # see raysurl.recipe.tunings; what follows changes each of them
    finetune_share: float | None = None  # of the labels
    finetune_epochs: int | None = None  # of fine-tuning; none: its own
    finetune_lr: float | tuple[float, ...] | None = None  # as linear_lr
    finetune_head_times: float | tuple[float, ...] | None = None  # the head's rate over the encoder's
    finetune_batch_size: int | None = None  # of fine-tuning
    finetune_augment: str | None = None  # as linear_augment
    svm_shots: tuple[Annotated[int, Field(ge=1)], ...] = (4, 8, 16, 32, 64)  # images of a class, besides all
    svm_draws: int = Field(5, ge=1)  # of so many images
    svm_costs: tuple[Positive, ...] = Field(
        (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 0.0625, 0.03125, 0.015625, 0.0078125,
         0.00390625, 0.001953125, 0.0009765625, 0.00048828125, 0.000244140625, 0.0001220703125,
         6.103515625e-05, 3.0517578125e-05, 1.52587890625e-05, 7.62939453125e-06,
         3.814697265625e-06, 1.9073486328125e-06), min_length=1
    )  # of which cross-validation chooses: Goyal et al.'s, powers of ten and of a half  # fmt: skip
    detection: Detection = Detection()  # how a detector is trained
    elsewhere: dict[Annotated[str, Field(pattern="^[a-z0-9]+$")], Elsewhere] = Field(
        {}
    )  # by what their metrics are called
    margin: float | None = Field(
        None, ge=1, le=16
    )  # test images: shorter side = margin × size, then centre crop
    embedding_k: int = Field(10, ge=1)  # neighbours of trustworthiness, continuity and recall
    embedding_points: int = Field(5000, ge=3)  # samples of which they are, a draw
    random_splits: int = Field(10, ge=1)  # of nodes
    retrieval_k: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10), min_length=1
    )  # of recall: how many of the nearest are looked at
    clustering_restarts: int = Field(10, ge=1)  # of k-means, the one of least inertia is judged
    clustering_points: int = Field(50_000, ge=2)  # train samples that it is fitted to, at most
    neighbours_k: int = Field(10, ge=1)  # of a test image, which may change when it is augmented
    neighbours_views: tuple[str, ...] = Field(
        ("weak", "contrastive"), min_length=1
    )  # policies that augment it; views: the first of the run's
    zeroshot_prompts: tuple[str, ...] = Field(
        ("a photo of a {}.",), min_length=1
    )  # with {} for the name of a class; several are averaged
    map_points: int = Field(
        5000, ge=0, le=10_000
    )  # of the report's map, with a small picture of each; 0: no map
    batch_size: int = Field(512, ge=1)  # embedding
    baselines: bool = True  # the same numbers for the untrained encoder, and kNN of raw pixels

    @property
    def linear_probe(self) -> Probe:
        """The probe that is named, changed by what else is given."""
        own = PROBES[self.probe].model_dump()
        if self.linear_lr is not None:  # a rate of one's own is for features as they are
            own["unit_length"] = False
        return Probe.model_validate({**own, **self._changes("linear", Probe)})

    @property
    def tunings(self) -> dict[str, Tuning]:
        """Those that are named, changed by what else is given."""
        changes = self._changes("finetune", Tuning)
        return {
            name: Tuning.model_validate({**TUNINGS[name].model_dump(), **changes}) for name in self.finetune
        }

    @field_validator("linear_augment", "finetune_augment", "neighbours_views", mode="after")
    @classmethod
    def _whole_paths(cls, value: Any) -> Any:
        of = plugins.absolute
        return of(value) if isinstance(value, str) else value and tuple(of(name) for name in value)

    @field_validator("finetune", mode="before")
    @classmethod
    def _one_is_a_list_too(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    def _changes(self, prefix: str, of: type[Section]) -> dict[str, Any]:
        """What the settings that begin with `prefix` change of a preset."""
        given = {name: getattr(self, f"{prefix}_{name}", None) for name in of.model_fields}
        changes = {name: value for name, value in given.items() if value is not None}
        for name, value in changes.items():
            several = get_origin(of.model_fields[name].annotation) is tuple
            changes[name] = (value,) if several and not isinstance(value, tuple) else value
        if changes.get("augment") == "plain":
            changes["augment"] = None if of is Probe else "plain"
        return changes

    @model_validator(mode="after")
    def _check(self) -> Evaluation:
        if taken := [name for name in self.elsewhere if name in TAKEN]:
            raise ValueError(f"elsewhere.{taken[0]} is no name for other data; metrics are called so already")
        if self.probe not in PROBES:
            raise ValueError(f"probe={self.probe} is none; choose one of {', '.join(PROBES)}")
        named = self.finetune
        if wrong := [name for name in named if name not in TUNINGS] or ([] if named else [""]):
            raise ValueError(f"finetune={wrong[0]} is none; choose one or more of {', '.join(TUNINGS)}")
        chosen = [(key, getattr(self, key)) for key in ("linear_augment", "finetune_augment")]
        for key, name in [*chosen, *(("neighbours_views", name) for name in self.neighbours_views)]:
            if name not in (None, "views", *POLICIES) and not plugins.offered("policy", name):
                raise ValueError(f"{key}={name} is no policy; choose views or one of {', '.join(POLICIES)}")
        if without := [prompt for prompt in self.zeroshot_prompts if "{}" not in prompt]:
            raise ValueError(f"zeroshot_prompts={without[0]!r} has no {{}} for the name of a class")
        try:
            self.linear_probe  # noqa: B018
        except ValidationError as error:
            raise ValueError(sentence(error, Probe, "linear_")) from None
        try:
            shares = [tuning.share for tuning in self.tunings.values()]
        except ValidationError as error:
            raise ValueError(sentence(error, Tuning, "finetune_")) from None
        if len(set(shares)) < len(shares):
            raise ValueError(
                f"finetune={', '.join(named)} names two of the same share of labels; give one for each"
            )
        return self
