"""Policies: how one view of an image is made, with the settings that the papers use.

The operations always run in the order of the fields below: crop (or resize), flip, colour jitter, grey, blur,
solarize, RandAugment, normalisation. Sizes are pixels, areas are shares of the image.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from raysurl import plugins
from raysurl.errors import InputError, first_line

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class Policy(BaseModel):
    """All parameters of one view; the defaults only resize."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: int | None = Field(default=None, ge=4)  # of the view; None: views.size
    crop: tuple[Share, Share] | None = None  # area of a random resized crop; None: whole image, centre crop
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)  # width / height of the random crop
    margin: float = Field(
        default=1.0, ge=1, le=16
    )  # no random crop: shorter side = margin × size, then centre crop
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"  # of resizing
    flip: Probability = 0.0  # chance of a horizontal flip
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] = (
        0.0, 0.0, 0.0, 0.0,  # of brightness, contrast, saturation, hue; applied in a random order
    )  # fmt: skip
    jitter_p: Probability = 0.0  # chance of colour jitter
    gray_p: Probability = 0.0  # chance of turning grey
    blur_p: Probability = 0.0  # chance of a Gaussian blur
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)  # smallest and largest, in pixels
    blur_kernel: int | str | None = (
        None  # odd, from 3 on; None: a tenth of the size made odd, at least 3; whole: as wide as the blur is
    )
    solarize_p: Probability = 0.0  # chance of inverting bright pixels
    randaugment: int = Field(default=0, ge=0)  # number of random operations, see raysurl.views.randaugment
    randaugment_p: Probability = 0.5  # of each of them

    @model_validator(mode="after")
    def _check(self) -> Policy:
        ranges = {"crop": self.crop, "ratio": self.ratio, "blur_sigma": self.blur_sigma}
        for name, bounds in ranges.items():
            if bounds and bounds[0] > bounds[1]:
                raise ValueError(f"{name} must be (smallest, largest), got {bounds}")
        kernel = self.blur_kernel
        odd = isinstance(kernel, int) and kernel >= 3 and kernel % 2
        if not (odd or kernel in (None, "whole")):
            raise ValueError(f"blur_kernel must be whole, or odd and at least 3, got {kernel}")
        return self

    @property
    def is_identity(self) -> bool:
        """True if nothing random is done: the only policies that vectors may have."""
        chances = (self.flip, self.jitter_p, self.gray_p, self.blur_p, self.solarize_p, self.randaugment)
        return self.crop is None and not any(chances)

    def kernel(self, size: int) -> int:
        """Width of the blur at a view of `size` pixels: SimCLR's tenth of the image, 23 at 224 and 3 at 32.

        Code that blurs by Pillow (MoCo v2) has no such limit, and so blurs small views more at the same sigma: `whole`,
        which for sigmas up to 2 is also the 23 pixels that GenURL names.
        """
        if self.blur_kernel == "whole":
            return 2 * size - 1  # what borders can reflect; beyond TAIL sigmas nothing is left of it
        return int(self.blur_kernel or max(3, int(0.1 * size) | 1))


# Colour distortion of SimCLR at strength one half, blur half of the time.
_CONTRASTIVE = Policy(
    crop=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.1), jitter_p=0.8, gray_p=0.2, blur_p=0.5
)  # fmt: skip
# MoCo v2: the same, blurred by Pillow.
_MOCOV2 = _CONTRASTIVE.model_copy(update={"blur_kernel": "whole"})
# BYOL, appendix B: less saturation, smaller crops, bicubic; the two views differ in blur and solarize.
_BYOL = Policy(
    crop=(0.08, 1.0), interpolation="bicubic", flip=0.5, jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, gray_p=0.2
)  # fmt: skip
# ReSSL (journal version) on ImageNet.
_RESSL_IMAGENET = _BYOL.model_copy(update={"crop": (0.14, 1.0), "blur_p": 0.5, "solarize_p": 0.1})

_SIZES = (224, 192, 160, 128, 96)
_MAX_AREAS = (1.0, 0.86, 0.715, 0.571, 0.429)
_MIN_AREAS = (0.14, 0.117, 0.095, 0.073, 0.05)  # ReSSL, journal version
_MIN_AREAS_CONFERENCE = (0.2, 0.172, 0.143, 0.114, 0.086)  # ReSSL, authors' code of the conference version


def _multi_crop(base: Policy, smallest: tuple[float, ...], prefix: str) -> dict[str, Policy]:
    """ReSSL's five student crops; a teacher view is `weak` at 224."""
    return {
        f"{prefix}_{size}": base.model_copy(update={"size": size, "crop": (low, high)})
        for size, low, high in zip(_SIZES, smallest, _MAX_AREAS, strict=True)
    }


POLICIES: dict[str, Policy] = {
    "plain": Policy(),
    "weak": Policy(crop=(0.2, 1.0), flip=0.5),
    "linear": Policy(crop=(0.08, 1.0), flip=0.5),  # of a probe: torchvision's random resized crop, and a flip
    "contrastive": _CONTRASTIVE,
    "mocov2": _MOCOV2,
    "byol_1": _BYOL.model_copy(update={"blur_p": 1.0}),
    "byol_2": _BYOL.model_copy(update={"blur_p": 0.1, "solarize_p": 0.2}),
    "ressl_imagenet": _RESSL_IMAGENET,
    **_multi_crop(_RESSL_IMAGENET, _MIN_AREAS, "crop"),
    **_multi_crop(_MOCOV2, _MIN_AREAS_CONFERENCE, "conference"),
    # ReSSL, table 8, "stronger augmentation": the contrastive view, then RandAugment as in CLSA, whose code
    # takes five operations of FixMatch's pool of fourteen, each applied half of the time. That code trains on the weak
    # crops beside the strong ones; ReSSL's text names the setting alone, so that its students are the strong ones here.
    "strong": _CONTRASTIVE.model_copy(update={"randaugment": 5}),
    # MV-MR, authors' code: torchvision's default crop, jitter at full strength, always blurred.
    "mvmr": Policy(
        crop=(0.08, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.8, gray_p=0.2, blur_p=1.0
    ),
    # Super-AND, authors' code: jitter always, hue included at 0.4, no blur.
    "superand": Policy(crop=(0.2, 1.0), flip=0.5, jitter=(0.4, 0.4, 0.4, 0.4), jitter_p=1.0, gray_p=0.2),
    # Digits of 8 pixels: a flip or a strong crop would turn one digit into another, and there is no colour.
    "digits": Policy(crop=(0.5, 1.0), jitter=(0.4, 0.4, 0.0, 0.0), jitter_p=0.8),
}  # fmt: skip


def named_policy(name: str, setting: str = "views.policies") -> Policy:
    """The policy of a name: one of POLICIES, or from outside the package a Policy or a mapping of its settings.

    Raises InputError, which calls the name that of `setting`, for a name that none has, and for what is no policy.
    """
    if name in POLICIES:
        return POLICIES[name]
    if not plugins.offered("policy", name):
        known = ", ".join([*POLICIES, *plugins.names("policy")])
        raise InputError(
            f"{setting}={name!r} is not a policy; choose one of {known}{plugins.near('policy', name, POLICIES)}"
        )
    found = plugins.load("policy", name, setting)
    try:
        return found if isinstance(found, Policy) else Policy.model_validate(found)
    except ValidationError as error:
        problem = error.errors()[0]
        at = ".".join(str(part) for part in problem["loc"])
        said = first_line(ValueError(problem["msg"]))
        raise InputError(
            f"{setting}={name} is no raysurl.views.Policy, nor a mapping of its settings: {at}{at and ': '}{said}"
        ) from None
