"""Zero-shot classification by a CLIP (Radford et al. 2021, section 3.1.4; MV-MR, Table 4): the class whose name, put
into prompts, has the text embedding of highest cosine with the image's.

Only a teacher has a text tower, so that this is of `evaluate.py teacher.name=open_clip:NAME/TAG`, which embeds the
names (raysurl.teachers.judged). The paper does not state its prompts; those of `eval.zeroshot_prompts` are averaged as
CLIP's are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F

from raysurl.errors import InputError
from raysurl.evaluate.division import Division
from raysurl.evaluate.features import Features
from raysurl.evaluate.scores import top, top_names
from raysurl.recipe import Evaluation

NEEDS = frozenset({"labels"})
OF_PIXELS = False


def run(features: Features, settings: Evaluation, *, seed: int = 0) -> Iterator[tuple[str, float]]:
    """`eval/zeroshot_top1` (and `_top5`) in percent. Raises InputError where there are no text embeddings."""
    if features.texts is None:
        raise InputError(REFUSED)
    scores = F.normalize(features.test.float(), dim=1) @ features.texts.to(features.test.device).T
    yield from top("eval/zeroshot", scores, features.test_labels)


def names(settings: Evaluation, division: Division) -> list[str]:
    return top_names("eval/zeroshot", division.num_classes)


REFUSED = (
    "the protocol zeroshot needs a text tower, which no run has: judge a CLIP with evaluate.py"
    " teacher.name=open_clip:NAME/TAG, or leave zeroshot out of eval.protocols"
)


def check(division: Division, settings: Evaluation) -> None:
    raise InputError(REFUSED)
