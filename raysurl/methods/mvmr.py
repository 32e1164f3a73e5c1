"""MV-MR: multi-views and multi-representations for self-supervised learning (Kinakh et al., 2023).

Z, Z̃ (eqs. 1-2)                       `embed` of the views original and augmented; gradient through both
L1 = λ d(Z, Z̃) + μ [v(Z) + v(Z̃)]      `mean_squared_error` (eq. 4), functional.variance_hinge (5-6), eq. 7
L2 = α [1 − dCor(Z̃, Z)], eq. 8         functional.distance_correlation (eqs. 2-3), from distances taken once
L3 = Σ_k β_k [1 − dCor(Z̃, Z*_k)], 9    `representations`: hand-crafted features of the original image, no gradient
L = L1 + L2 + L3, eq. 10               `forward`
Distillation (`teacher_weight`): a frozen teacher's embedding of the original image is a representation of L3, always
as 1 − dCor; L1 and L2 stay. The authors' code divides it by 32 too (`divisor`). With features: [] it is the only one.

Everything is computed on the batch of all ranks; the authors compute it per GPU. Deviations and choices: eq. 4 is a
mean over the D dimensions too, as in the authors' code (`mse_reduction: sum_dim` is the paper's); the variance of
eq. 6 is unbiased and ε = 1e-4 (`std_eps`; their code has none); distances are not clamped and rows not divided by 32,
since a distance correlation has no scale without the clamp. The authors' code is `dcor_sqrt: true, dcor_clamp: 1.0e-4,
divisor: 32, std_eps: 0` with `l3_sign: official`, which adds + dCor(Z̃, Z*_k) and so lowers the dependence that the
paper means to raise. The augmented feature is drawn per sample before normalisation; the authors draw one for the
batch, after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from raysurl import distributed, features
from raysurl import functional as fn
from raysurl.method import (
    Batch,
    Build,
    Method,
    MethodConfig,
    Moment,
    Output,
    Snapshot,
    TeacherKind,
    detached,
)

Feature = Literal["pixels", "scattering", "augmented", "hog", "local_std"]
FEATURES: tuple[Feature, ...] = ("pixels", "scattering", "augmented", "hog", "local_std")
BLOCK = 2**14  # columns of a representation that are gathered at once: 128 MiB at a global batch of 2,048


@dataclass(frozen=True)
class Representation:
    """One term of L3: `compute` maps the views of a part of a batch to Z* (b, …); `weight` is β_k."""

    name: str
    weight: float
    compute: Callable[[Mapping[str, Tensor]], Tensor]
    raised: bool = False  # 1 − dCor even where l3_sign=official


class MVMR(Method):
    class Config(MethodConfig):
        couples_batch: ClassVar[bool] = True

        projector: tuple[PositiveInt, ...] = (
            8192,
            8192,
            8192,
        )  # widths, the last is D; empty: none (Table 8)
        features: tuple[Feature, ...] = FEATURES  # of L3; empty: no L3 (Tables 5 and 6)
        feature_weights: dict[Feature, Annotated[float, Field(ge=0)]] = Field({})  # β_k where it is not 1
        teacher_weight: float = Field(0.0, ge=0)  # β of a frozen teacher's embedding; 0: no teacher
        mse_weight: float = Field(1.0, ge=0)  # λ
        std_weight: float = Field(1.0, ge=0)  # μ
        dcor_weight: float = Field(1.0, ge=0)  # α
        margin: float = Field(1.0, gt=0)  # γ
        std_eps: float = Field(1e-4, ge=0)  # ε
        mse_reduction: Literal["mean", "sum_dim"] = "mean"  # over D: the authors' code, or eq. 4
        l3_sign: Literal["paper", "official"] = "paper"  # 1 − dCor, or the + dCor of the authors' code
        dcor_sqrt: bool = False  # square root of the distance covariances, as the authors' code
        dcor_unbiased: bool = False  # the unbiased estimate
        dcor_clamp: float | None = Field(None, gt=0)  # least distance covariance
        divisor: float = Field(1.0, gt=0)  # of all rows but HOG and local_std; seen only by the clamp
        hog_bins: int = Field(24, ge=1)  # orientations of HOG
        hog_cell: int = Field(8, ge=1)  # pixels of a cell of HOG
        hog_interp: Literal["official", "true"] = "official"  # how a gradient is shared among orientations
        local_std_window: int = Field(3, ge=1)  # pixels of the window of the local deviation

        @model_validator(mode="after")
        def _check(self) -> MVMR.Config:
            if len(set(self.features)) < len(self.features):
                raise ValueError(f"features names one twice: {', '.join(self.features)}")
            if unused := [name for name in self.feature_weights if name not in self.features]:
                raise ValueError(f"feature_weights has {', '.join(unused)}, which features leaves out")
            if self.dcor_sqrt and self.dcor_unbiased:
                raise ValueError(
                    "dcor_sqrt and dcor_unbiased exclude each other: a U-statistic may be negative"
                )
            if self.local_std_window % 2 == 0:
                raise ValueError(f"local_std_window must be odd, got {self.local_std_window}")
            return self

        def views(self) -> dict[str, str]:
            views = {"original": "plain", "augmented": "mvmr"}
            return views | ({"feature_augmented": "augmented"} if "augmented" in self.features else {})

        def learns_from(self) -> TeacherKind:
            return "any" if self.teacher_weight else "no"

    def __init__(self, config: Config, build: Build) -> None:
        super().__init__()
        self.config = config
        self.encoder = build.encoder
        self.frozen = build.teacher
        self.projector = projector(build.dim, config.projector, build.make_norm)
        self.representations = hand_crafted(config)
        if self.frozen:
            self.representations.append(
                Representation(
                    "teacher", config.teacher_weight, lambda v: v["teacher"] / config.divisor, raised=True
                )
            )

    def embed(self, x: Tensor) -> Tensor:
        """(b, C, H, W) -> embeddings (B, D) of all ranks' images, with gradient."""
        return distributed.gather_with_gradient(self.projector(self.encoder(x)).float())

    def forward(self, batch: Batch, snapshot: Snapshot, progress: Moment) -> Output:
        c = self.config
        batch = self.frozen.teach(batch, "original") if self.frozen else batch
        z_augmented, z = self.embed(batch.views["augmented"]), self.embed(batch.views["original"])
        distances = self.distances(z_augmented / c.divisor)

        mse = mean_squared_error(z, z_augmented, c.mse_reduction)
        hinge, hinge_augmented = (
            fn.variance_hinge(x, margin=c.margin, eps=c.std_eps) for x in (z, z_augmented)
        )
        hinge = hinge + hinge_augmented
        views_dcor = self.dcor(distances, self.distances(z / c.divisor))
        feature_dcors = [self.dcor(distances, self.fixed_distances(r, batch)) for r in self.representations]
        signed = [
            dcor if c.l3_sign == "official" and not r.raised else 1 - dcor
            for r, dcor in zip(self.representations, feature_dcors, strict=True)
        ]

        l1 = c.mse_weight * mse + c.std_weight * hinge
        l2 = c.dcor_weight * (1 - views_dcor)
        l3 = sum((r.weight * s for r, s in zip(self.representations, signed, strict=True)), l2.new_zeros(()))
        logs = detached(mse=mse, std_hinge=hinge, l1=l1, l2=l2, l3=l3, dcor_views=views_dcor)
        for r, dcor in zip(self.representations, feature_dcors, strict=True):
            logs |= detached(**{f"dcor_{r.name}": dcor})
        logs["health/std"] = fn.embedding_std(F.normalize(z_augmented, dim=1))
        return Output(l1 + l2 + l3, logs)

    def distances(self, rows: Tensor | Iterable[Tensor]) -> Tensor:
        """Centred distances (B, B) of rows (B, …), or of blocks of their columns, in the form of the recipe."""
        return fn.centred_distances(rows, unbiased=self.config.dcor_unbiased, clamp=self.config.dcor_clamp)

    def dcor(self, a: Tensor, b: Tensor) -> Tensor:
        return fn.correlation_of_distances(a, b, sqrt=self.config.dcor_sqrt)

    @torch.no_grad()
    def fixed_distances(self, representation: Representation, batch: Batch) -> Tensor:
        """Centred distances (B, B) of Z*_k of all ranks' images, gathered a block of columns at a time."""
        columns = representation.compute(batch.views).flatten(1)
        return self.distances(distributed.gather(block) for block in columns.split(BLOCK, dim=1))


def mean_squared_error(z: Tensor, z_augmented: Tensor, reduction: str) -> Tensor:
    """d(Z, Z̃), eq. 4, of embeddings (B, D): mean over B, and over D too unless `sum_dim`."""
    squares = (z - z_augmented).square()
    return squares.sum(dim=1).mean() if reduction == "sum_dim" else squares.mean()


def projector(dim: int, widths: tuple[int, ...], make_norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Linear–BN–ReLU blocks and a last Linear, none with a bias: (b, dim) -> (b, widths[-1]); empty: identity."""
    layers: list[nn.Module] = []
    for i, (wide_in, wide_out) in enumerate(zip((dim, *widths), widths, strict=False)):
        if i:
            layers += [make_norm(wide_in), nn.ReLU(inplace=True)]
        layers.append(nn.Linear(wide_in, wide_out, bias=False))
    return nn.Sequential(*layers)


def hand_crafted(config: MVMR.Config) -> list[Representation]:
    """The representations of L3 that the recipe names, in its order."""
    c = config
    compute: dict[Feature, Callable[[Mapping[str, Tensor]], Tensor]] = {
        "pixels": lambda views: views["original"] / c.divisor,
        "scattering": lambda views: features.scattering(views["original"]) / c.divisor,
        "augmented": lambda views: views["feature_augmented"] / c.divisor,
        "hog": lambda views: features.hog(
            views["original"], bins=c.hog_bins, cell=c.hog_cell, interp=c.hog_interp
        ),
        "local_std": lambda views: features.local_std(views["original"], window=c.local_std_window),
    }
    return [Representation(name, c.feature_weights.get(name, 1.0), compute[name]) for name in c.features]
