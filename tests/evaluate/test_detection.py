"""Detection on COCO's layout: what is read, the networks, the schedule, COCO's judgement, and the whole in small."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from voc_files import coco_files

from raysurl.testing.ranks import on_ranks

pytest.importorskip("pycocotools")

from pycocotools import mask

from raysurl import intervals
from raysurl.commands import evaluate as command
from raysurl.data.coco import instances
from raysurl.data.names import open_samples
from raysurl.data.source import open_source
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError, RunError
from raysurl.evaluate import coco_scores, detecting, unfinished
from raysurl.evaluate.coco_scores import judged
from raysurl.evaluate.detector import detector_of
from raysurl.recipe import Data, dump, load_recipe
from raysurl.recipe.detections import Detection
from raysurl.runtime import LocalRuntime

SMALL = [
    "eval.protocols=[detection]", "eval.baselines=false", "eval.detection.sizes=[128]", "eval.detection.test_size=128",
    "eval.detection.longest=256", "eval.detection.rois=4", "eval.detection.proposals=6",
    "eval.detection.channels=32", "eval.detection.batch_size=2",
]  # fmt: skip


def recipe_for(path, *more):
    return load_recipe(
        ["recipe=ressl/digits", "data.name=coco:2017", f"data.path={path}", "encoder.name=resnet18",
         "encoder.channels=null", "encoder.small_stem=false", "views.size=64", *SMALL, *more]
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _few_resamplings(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 40)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("coco")
    coco_files(path)
    return path


# -------------------------------------------------------------------- reading


def test_coco_is_read_with_its_splits_and_tags(root):
    data = Data(name="coco:2017", path=str(root))
    train, test = (open_samples(data, split, 0) for split in ("train", "eval"))
    assert (len(train), len(test)) == (14, 6)
    assert train.tag_names == ("kind 2", "kind 7", "kind 90")
    assert train.tags[0].tolist() == [1, 1, 0]  # its objects are of 7 and 2
    assert train.tags[6].tolist() == [0, 0, 0]
    assert train.load([0])[0].shape == (3, 256, 256)
    assert open_samples(Data(name="coco:2017", path=str(root), limit=3), "train", 0).tags.shape == (3, 3)


def test_what_is_trained_on_follows_a_choice_of_the_samples(root):
    recipe = recipe_for(root, "data.limit=5")
    samples = open_samples(recipe.data, "train", seed=recipe.stream_seed)
    shown = detecting.shown_of(recipe, "train")
    for i in range(5):
        assert samples.name_of(i).endswith(shown.about(i)["file_name"])


def test_all_forms_of_masks_become_the_same_pixels(root):
    shown = detecting.shown_of(recipe_for(root), "train")
    found = detecting.target_of(shown, 0, torch.zeros(3, 256, 256))
    assert found["labels"].tolist() == [2, 1]  # 7 and 2 of 2, 7, 90
    for box, drawn in zip(found["boxes"].int().tolist(), found["masks"], strict=True):
        expected = torch.zeros(256, 256, dtype=torch.uint8)
        expected[box[1] : box[3], box[0] : box[2]] = 1
        assert torch.equal(drawn, expected)
    thing = copy.deepcopy(shown.objects(0)[0])
    packed = mask.frPyObjects(thing["segmentation"], 256, 256)
    thing["segmentation"] = {"size": [256, 256], "counts": packed["counts"].decode()}
    again = replace(shown.instances, objects={shown.about(0)["id"]: [thing, {**thing, "iscrowd": 1}]})
    third = detecting.target_of(replace(shown, instances=again), 0, torch.zeros(3, 256, 256))
    assert torch.equal(third["masks"], found["masks"][:1])
    with pytest.raises(RunError, match=r"000000000000\.jpg has 255 × 256 pixels, .* 256 × 256"):
        detecting.target_of(shown, 0, torch.zeros(3, 256, 255))


@given(st.integers(20, 40), st.integers(0, 10), st.integers(1, 9))
def test_a_flip_moves_boxes_and_masks_with_the_pixels(width, x, w):
    drawn = torch.zeros(1, 12, width, dtype=torch.uint8)
    drawn[:, 3:7, x : x + w] = 1
    target = {"boxes": torch.tensor([[x, 3, x + w, 7]]).float(), "masks": drawn, "labels": torch.tensor([1])}
    image, found = detecting.flipped(drawn.float(), target)
    left, _, right, _ = found["boxes"][0].int().tolist()
    assert torch.equal(image.byte(), found["masks"])
    assert found["masks"][0, 3:7, left:right].all()
    assert found["masks"].sum() == 4 * (right - left) == 4 * w
    assert torch.equal(detecting.flipped(image, found)[1]["boxes"], target["boxes"])


def spoiled(tree, way):
    for key in way[:-2]:
        tree = tree[key]
    tree[way[-2]] = way[-1]


@pytest.mark.parametrize(
    "way",
    [
        ("images", 0, "file_name", "../x.jpg"), ("images", 0, "file_name", "/x.jpg"), ("images", 0, "height", 0),
        ("images", 0, "id", "100"), ("images", 1, "id", 100), ("images", None), ("categories", 0, "id", 5),
        ("annotations", 0, "bbox", [1, 2, 3]), ("annotations", 0, "bbox", [1, 2, float("nan"), 3]),
        ("annotations", 0, "image_id", 1), ("annotations", 0, "segmentation", "x"), ("annotations", 0, {}),
        ("annotations", 0, "image_id", [1]),
    ],
    ids=str,
)  # fmt: skip
def test_damaged_annotations_are_one_sentence(way, root, tmp_path):
    tree = json.loads((root / "annotations/instances_train2017.json").read_text())
    spoiled(tree, way)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train2017.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"instances_train2017\.json is not COCO's: ") as info:
        open_samples(Data(name="coco:2017", path=str(tmp_path)), "train", 0)
    assert len(str(info.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["encoder.name=mobilenet_v2"], r"detection needs a ResNet, .* not encoder\.name=mobilenet_v2"),
        (["encoder.name=convnet"], r"needs a ResNet, .* not encoder\.name=convnet"),
        (["encoder.sobel=true"], "needs a ResNet, .* not a pair with Sobel edges"),
        (["data.name=digits"], r"needs boxes and masks, as data\.name=coco:2017 has; digits has none"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_a_detector_is_one_sentence(changes, said, root):
    recipe = recipe_for(root, *changes)
    samples, test = (open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    with pytest.raises(InputError, match=said):
        detecting.check(recipe, samples, test)


def test_images_without_objects_or_without_a_test_set_are_refused(tmp_path):
    coco_files(tmp_path, {"train": 2}, size=(32, 32))
    recipe = recipe_for(tmp_path)
    samples = open_samples(recipe.data, "train", seed=0)
    with pytest.raises(InputError, match="needs a test set"):
        detecting.check(recipe, samples, open_samples(recipe.data, "eval", seed=0))
    coco_files(tmp_path, {"val": 1}, size=(32, 32))
    file = tmp_path / "annotations/instances_train2017.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    samples, test = (open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    with pytest.raises(InputError, match="has no train image with an object in it"):
        detecting.check(recipe, samples, test)


# -------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_c4_divides_the_encoder_before_its_fourth_stage(name, root):
    recipe = recipe_for(root, f"encoder.name={name}")
    encoder = encoder_of(recipe).eval()
    model = detector_of(encoder, 3, recipe).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        trunk = model.backbone(x)
        model.roi_heads.mask_head[1][0].reset_parameters()
        features = model.roi_heads.box_head(trunk)
        expected = encoder(x) / (1 + 1e-5) ** 0.5  # the norm behind it has seen nothing yet
    assert trunk.shape == (1, model.backbone.out_channels, 4, 4)
    assert torch.allclose(features, expected, atol=1e-5)
    assert model.roi_heads.mask_head is model.roi_heads.box_head[0]  # shared
    assert model.roi_heads.box_predictor.cls_score.out_features == 4


@pytest.mark.parametrize("head", ["c4", "fpn"])
def test_every_weight_of_the_encoder_is_trained_and_the_encoder_itself_stays(head, root):
    recipe = recipe_for(root, f"eval.detection.head={head}")
    encoder = encoder_of(recipe)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    model = detector_of(encoder, 3, recipe).train()
    model.transform.side = 64
    shown = detecting.shown_of(recipe, "train")
    losses = model([torch.rand(3, 256, 256)], [detecting.target_of(shown, 0, torch.zeros(3, 256, 256))])
    sum(losses.values()).backward()
    assert set(losses) >= {
        "loss_mask",
        "loss_box_reg",
        "loss_classifier",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    assert all(p.grad is not None for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    groups = detecting.optimizer_of(model, recipe.eval.detection).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-4, 0.0]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_the_schedule_is_detectron2s_of_twice_its_length():
    settings = Detection()
    at = {step: settings.lr * detecting.factor_of(settings, step) for step in
          (0, 500, 1000, 119_999, 120_000, 159_999, 160_000)}  # fmt: skip
    assert list(at.values()) == pytest.approx([4e-5, 0.02002, 0.04, 0.04, 0.004, 0.004, 0.0004])


# -------------------------------------------------------------------- judging


def perfect(found):
    for thing in (o for things in found.objects.values() for o in things):
        form = thing["segmentation"]
        packed = mask.frPyObjects(form, 256, 256)
        yield {
            **{key: thing[key] for key in ("image_id", "category_id", "bbox")},
            "score": 0.9,
            "segmentation": mask.merge(packed) if isinstance(form, list) else packed,
        }


def test_what_is_right_has_a_hundred_percent_and_what_is_half_right_less(root):
    found = instances(Data(name="coco:2017", path=str(root)), "eval")
    ids, right = [image["id"] for image in found.images], list(perfect(found))
    all_right = judged(found, ids, right)
    assert all_right == dict.fromkeys(all_right, pytest.approx(100))
    assert set(all_right) == {f"{of}_{ap}" for of in ("box", "mask") for ap in ("ap", "ap50", "ap75")}
    narrow = [{**one, "bbox": [*one["bbox"][:2], 0.6 * one["bbox"][2], one["bbox"][3]]} for one in right]
    some = judged(found, ids, narrow)
    # an overlap of 0.6 counts at the thresholds 0.5, 0.55 (and perhaps 0.6) of ten
    assert some["box_ap50"] == pytest.approx(100)
    assert some["box_ap75"] == 0
    assert 19 < some["box_ap"] < 31
    assert some["mask_ap"] == pytest.approx(100)
    assert set(judged(found, ids, []).values()) == {0.0}
    assert judged(found, ids[:1], [one for one in right if one["image_id"] == ids[0]])["box_ap"] > 99


def half_right(found):
    """Some objects are missed, some boxes moved, some things seen that are not there; scores in steps."""
    for number, one in enumerate(perfect(found)):
        if number % 5 == 1:
            continue
        x, y, w, h = one["bbox"]
        moved = [x + 4 * (number % 3), y, w, h]
        yield {**one, "bbox": moved, "score": round(0.3 + 0.07 * (number % 7), 2)}
        if number % 4 == 0:
            yield {**one, "bbox": [200, 200, 20, 30], "score": 0.71 - 0.01 * number}


def repeated(found, results, times):
    """The annotations and results of a data set that holds each image so often."""
    images, objects, again = [], [], []
    for image, count in zip(found.images, times, strict=True):
        for copy_ in range(count):
            number = image["id"] + 1000 * copy_
            images.append({**image, "id": number, "file_name": f"{copy_}-{image['file_name']}"})
            objects += [{**o, "image_id": number} for o in found.objects.get(image["id"], ())]
            again += [{**r, "image_id": number} for r in results if r["image_id"] == image["id"]]
    objects = [{**o, "id": i + 1} for i, o in enumerate(objects)]
    return replace(found, tree={**found.tree, "images": images, "annotations": objects}), images, again


def test_an_interval_is_of_resamplings_as_cocos_own_code_would_judge_them(root):
    found = instances(Data(name="coco:2017", path=str(root)), "eval")
    ids, results = [image["id"] for image in found.images], list(half_right(found))
    values = judged(found, ids, results, seed=1)
    for name, value in values.items():
        low, high = value.interval
        assert low <= value <= high, name
    assert values["box_ap"].interval != values["box_ap50"].interval
    assert values["box_ap"].interval[1] - values["box_ap"].interval[0] > 1
    for times in ([1] * 6, [2, 0, 1, 3, 0, 1], [0, 0, 0, 5, 1, 0]):
        told, images, again = repeated(found, results, times)
        theirs = coco_scores.evaluated(told, [image["id"] for image in images], again)
        for kind, evaluation in coco_scores.evaluated(found, ids, results).items():
            ours = [
                coco_scores.precision(coco_scores.matches(evaluation), np.array(times), at)
                for at in coco_scores.AT.values()
            ]
            assert ours == pytest.approx(theirs[kind].stats[:3], abs=1e-9)


# -------------------------------------------------------------------- whole


@pytest.mark.slow
@pytest.mark.parametrize(("head", "steps"), [("c4", 8), ("fpn", 2)])
def test_a_run_is_judged_by_a_detector(head, steps, root, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(detecting, "SAID", 1)
    recipe = recipe_for(root)
    write_encoder(tmp_path, encoder_of(recipe), recipe)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    given = [
        f"run={tmp_path}", "data.name=coco:2017", f"data.path={root}", *SMALL, f"eval.detection.head={head}",
        f"eval.detection.steps={steps}", "eval.detection.lr=0.02", "eval.detection.warmup_steps=3",
    ]  # fmt: skip
    with caplog.at_level("INFO", "raysurl.evaluate.detecting"):
        command.main(given)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    metrics = written["metrics"]
    names = {f"eval/{of}_{ap}" for of in ("box", "mask") for ap in ("ap", "ap50", "ap75")}
    assert {name for name in metrics if name.startswith("eval/")} == names
    assert set(written["intervals"]) == names
    losses = [
        float(record.getMessage().rpartition(" ")[2]) for record in caplog.records if "loss" in record.msg
    ]
    assert len(losses) == steps
    assert sum(losses[-3:]) < 0.7 * 3 * losses[0] or head == "fpn"


@pytest.mark.slow
def test_the_same_again_is_the_same_and_so_is_one_that_died_and_went_on(root, tmp_path, monkeypatch):
    recipe = recipe_for(root, "eval.detection.steps=2", "eval.detection.sizes=[64]")
    samples = open_samples(recipe.data, "train", seed=0)
    monkeypatch.setattr(unfinished, "EVERY_S", 0.0)

    def trained(folder):
        torch.rand(3)  # another state of the stream that all share
        model = detecting.train(
            encoder_of(recipe), recipe, LocalRuntime(torch.device("cpu")), open_source(samples, recipe.data),
            detecting.shown_of(recipe, "train"), unfinished.Unfinished(folder),
        )  # fmt: skip
        return torch.cat([p.detach().flatten() for p in model.state_dict().values()])

    def dies(loss, done, settings):
        if done == 2:
            raise KeyboardInterrupt

    whole = trained(None)
    with monkeypatch.context() as patch:
        patch.setattr(detecting, "_look", dies)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path)
    assert torch.load(next(tmp_path.iterdir()), weights_only=True)["done"] == 1
    assert torch.equal(trained(tmp_path), whole)


def _on_rank(rank, world, root):
    recipe = recipe_for(root, "eval.detection.steps=1", "eval.detection.sizes=[64]")
    source, test = (
        open_source(open_samples(recipe.data, split, seed=0), recipe.data) for split in ("train", "eval")
    )
    runtime = LocalRuntime(torch.device("cpu"), rank=rank, world_size=world)
    shown = detecting.shown_of(recipe, "train")
    model = detecting.train(encoder_of(recipe), recipe, runtime, source, shown)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    found = detecting.tested(model, recipe, runtime, test)
    return weights, {name: float(value) for name, value in found.items()}


@pytest.mark.slow
def test_two_ranks_train_one_detector_and_the_first_judges_it(root):
    (first, found), (second, nothing) = on_ranks(_on_rank, 2, 2, root)
    assert torch.equal(first, second)
    assert set(found) == {f"{of}_{ap}" for of in ("box", "mask") for ap in ("ap", "ap50", "ap75")}
    assert nothing == {}
