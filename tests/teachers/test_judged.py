"""A teacher judged by our protocols: zero-shot by its text tower, and a linear probe (MV-MR, Table 4)."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from raysurl.commands import evaluate
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.embed import images_alone, plain_images
from raysurl.errors import InputError
from raysurl.recipe import load_recipe, recipe_from
from raysurl.run import pretrain
from raysurl.sampler import Request

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
TINY = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


class Imitation(torch.nn.Module):
    """As much of open_clip's model as is asked for, where the package is not installed."""

    def __init__(self):
        super().__init__()
        self.visual = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 12))
        self.visual.image_size, self.visual.output_dim = 16, 12
        self.words = torch.nn.Embedding(256, 12)

    def encode_text(self, tokens):
        return self.words(tokens).mean(1)

    def encode_image(self, images):
        return self.visual(images)


def imitation(monkeypatch):
    def create_model(name, pretrained=None):
        torch.manual_seed(0)
        model = Imitation()
        if pretrained:
            model.load_state_dict(torch.load(pretrained, weights_only=True))
        return model

    def tokenize(texts):
        return torch.tensor([[ord(c) % 256 for c in text.ljust(30)] for text in texts])

    library = types.SimpleNamespace(
        create_model=create_model,
        get_tokenizer=lambda name: tokenize,
        list_models=lambda: ["tiny"],
        list_pretrained_tags_by_model=lambda name: [],
        get_pretrained_cfg=lambda *a: None,
        OPENAI_DATASET_MEAN=MEAN,
        OPENAI_DATASET_STD=STD,
    )
    monkeypatch.setitem(sys.modules, "open_clip", library)
    return library


def real(tmp_path):
    library = pytest.importorskip("open_clip")
    (tmp_path / "tiny.json").write_text(json.dumps(TINY))
    library.add_model_config(tmp_path / "tiny.json")
    torch.manual_seed(0)
    return library


@pytest.fixture(params=["imitation", "open_clip"])
def clip(request, tmp_path, monkeypatch):
    """The library, a tiny CLIP of random weights, and the file that holds them."""
    library = imitation(monkeypatch) if request.param == "imitation" else real(tmp_path)
    model = library.create_model("tiny").eval()
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    return library, model, tmp_path / "tiny.pt"


def judged(*arguments):
    evaluate.main(["teacher.name=open_clip:tiny", "data.name=digits", "data.limit=120", *arguments])


def by_hand(library, model, prompts):
    """Class scores (Q, C) of the test digits, one image and one class at a time."""
    views = {"size": 16, "mean": library.OPENAI_DATASET_MEAN, "std": library.OPENAI_DATASET_STD}
    recipe = recipe_from({"data": {"name": "digits"}, "views": views, "eval": {"margin": 1}})
    samples = open_samples(recipe.data, "eval", seed=recipe.stream_seed)
    source = open_source(samples, recipe.data)
    index = np.arange(len(samples))
    (images,) = source.batches([Request(0, 0, index)], images_alone)
    tokenize = library.get_tokenizer("tiny")
    rows = []
    with torch.no_grad():
        classes = []
        for name in source.class_names:
            texts = [model.encode_text(tokenize([p.format(name)]))[0] for p in prompts]
            classes.append(sum(t / t.norm() for t in texts))
        for image in plain_images(recipe, images, torch.device("cpu")):
            found = model.encode_image(image[None])[0]
            rows.append([float(found @ c / found.norm() / c.norm()) for c in classes])
    return np.array(rows), source.labels


def test_a_clip_is_judged_by_its_texts_and_by_a_probe_of_its_images(clip, tmp_path):
    library, model, weights = clip
    prompts = ("a photo of a {}.", "the number {}")
    judged(
        *(f"teacher.weights={weights}", "eval.protocols=[zeroshot, linear]", "eval.linear_epochs=2"),
        *(f"eval.zeroshot_prompts={json.dumps(prompts)}", f"output={tmp_path / 'judged'}"),
    )
    written = json.loads((tmp_path / "judged" / "evaluation.json").read_text())
    scores, labels = by_hand(library, model, prompts)
    right = (scores.argmax(1) == labels).mean()
    assert written["metrics"]["eval/zeroshot_top1"] == pytest.approx(100 * right)
    low, high = written["intervals"]["eval/zeroshot_top1"]
    assert low < 100 * right < high
    assert {"eval/zeroshot_top5", "eval/linear_top1"} <= set(written["metrics"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval.protocols=[zeroshot]"], "are not at hand: place .*teacher.weights=FILE"),
        (["teacher.name=resnet18", "eval.protocols=[zeroshot]"], "has no text tower"),
        (["teacher.name=labels", "eval.protocols=[knn]"], "is no network"),
        (["teacher.weight=x"], "teacher.weight"),
        (["eval.zeroshot_prompts=[a photo]"], "has no {}"),
    ],
)
def test_what_cannot_be_judged_is_one_sentence(arguments, said, monkeypatch, tmp_path):
    imitation(monkeypatch)
    with pytest.raises(InputError, match=said):
        judged(*arguments, f"output={tmp_path}")


def test_a_missing_library_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(InputError, match=r"needs the package open_clip; install raysurl\[distill\]"):
        judged("eval.protocols=[zeroshot]", f"output={tmp_path}")


def test_a_run_has_no_text_tower():
    recipe = load_recipe(["data.name=digits", "eval.protocols=[zeroshot]"])
    with pytest.raises(InputError, match=r"evaluate.py teacher.name=open_clip:NAME/TAG"):
        pretrain(recipe)
