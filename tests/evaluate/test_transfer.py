"""Transfer to other data sets: the penalty against scikit-learn, and the papers' sets in torchvision's own files."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.io
import torch
import torchvision.datasets
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from raysurl.commands import evaluate as command
from raysurl.data.names import open_samples
from raysurl.data.planetoid import TRAIN, VALIDATION
from raysurl.encoder import encoder_of, write_encoder
from raysurl.errors import InputError
from raysurl.evaluate import Features, evaluate, transfer
from raysurl.evaluate.scores import per_class
from raysurl.recipe import Evaluation, dump, load_recipe

# -------------------------------------------------------------------- the protocol


def features_of(train=240, test=120, *, name="torchvision:DTD", spread=1.6):
    random = np.random.default_rng(0)
    centres = random.normal(size=(4, 12))
    parts = []
    for count in (train, test):
        labels = random.choice(4, count, p=[0.55, 0.25, 0.15, 0.05])
        rows = centres[labels] + spread * random.normal(size=(count, 12))
        parts += [torch.tensor(rows, dtype=torch.float32), torch.tensor(labels)]
    return Features(*parts, 4, of=name)


def by_scikit_learn(rows, labels, penalty):
    return LogisticRegression(C=1 / penalty, tol=1e-6, max_iter=20000).fit(rows, labels)


@pytest.mark.parametrize("name", ["torchvision:DTD", "torchvision:FGVCAircraft"])
def test_the_penalty_and_the_fit_are_scikit_learns(name, monkeypatch):
    monkeypatch.setattr(transfer, "PENALTIES", transfer.PENALTIES[::4])  # 45 take long here
    features = features_of(name=name)
    chosen = transfer.held_out(features, 0)
    assert int(chosen.sum()) == 48
    kept, labels = features.train[~chosen].double(), features.train_labels.numpy()
    mean, by = kept.mean(0), (kept - kept.mean(0)).square().mean().sqrt()
    standard = ((features.train.double() - mean) / by).numpy()
    inside, outside = ~chosen.numpy(), chosen.numpy()
    judged = {}
    for penalty in transfer.PENALTIES:
        predicted = by_scikit_learn(standard[inside], labels[inside], penalty).predict(standard[outside])
        score = balanced_accuracy_score if "Aircraft" in name else lambda a, b: np.mean(a == b)
        judged[penalty] = score(labels[outside], predicted)
    found = evaluate(features, Evaluation(), protocols=["transfer"])
    assert judged[found["eval/transfer_penalty"]] >= max(judged.values()) - 0.021  # one of 48
    mean, by = features.train.double().mean(0), (features.train.double() - features.train.double().mean(0))
    by = by.square().mean().sqrt()
    model = by_scikit_learn(
        ((features.train.double() - mean) / by).numpy(), labels, found["eval/transfer_penalty"]
    )
    predicted = model.predict(((features.test.double() - mean) / by).numpy())
    truth = features.test_labels.numpy()
    if "Aircraft" in name:
        assert found["eval/transfer_per_class"] == pytest.approx(
            100 * balanced_accuracy_score(truth, predicted), abs=1.5
        )
        assert "eval/transfer_top1" not in found
    else:
        assert found["eval/transfer_top1"] == pytest.approx(100 * np.mean(predicted == truth), abs=0.9)


def test_there_are_45_penalties_from_strong_to_weak():
    steps = np.diff(np.log10(transfer.PENALTIES))
    assert len(transfer.PENALTIES) == 45
    assert (transfer.PENALTIES[0], transfer.PENALTIES[-1]) == pytest.approx((1e5, 1e-6))
    assert np.allclose(steps, -11 / 44)


def test_the_own_validation_split_chooses_and_no_test_label_does(monkeypatch):
    monkeypatch.setattr(transfer, "PENALTIES", (1e4, 1.0))
    features, settings = features_of(spread=1.0), Evaluation()
    known = torch.arange(240) >= 200
    # under the stronger penalty all are of the commonest class
    common = torch.where(known, int(features.train_labels.bincount().argmax()), features.train_labels)
    given = [
        replace(features, validation=known),
        replace(features, validation=known, test_labels=features.test_labels.flip(0)),
        replace(features, validation=known, train_labels=common),
    ]
    found = [evaluate(f, settings, protocols=["transfer"])["eval/transfer_penalty"] for f in given]
    assert found == [1.0, 1.0, 1e4]
    half = torch.where(torch.arange(240) % 2 == 0, features.train_labels, -1)
    assert torch.equal(replace(given[0], train_labels=half).labelled().validation, known[::2])
    for bad in (torch.zeros(240, dtype=torch.bool), torch.ones(240, dtype=torch.bool)):
        with pytest.raises(InputError, match="transfer protocol needs"):
            transfer.held_out(replace(features, validation=bad), 0)


def test_the_mean_over_classes_is_scikit_learns_and_has_an_interval():
    random = np.random.default_rng(1)
    labels = random.choice(5, 400, p=[0.6, 0.2, 0.1, 0.06, 0.04])
    predictions = np.where(random.random(400) < 0.7, labels, random.integers(0, 5, 400))
    found = per_class(torch.tensor(predictions), torch.tensor(labels), seed=0)
    assert found == pytest.approx(100 * balanced_accuracy_score(labels, predictions))
    shares = [np.mean(predictions[labels == c] == c) for c in range(5)]
    error = np.sqrt(sum(s * (1 - s) / (labels == c).sum() for c, s in enumerate(shares))) / 5
    assert found.interval == pytest.approx((found - 196 * error, found + 196 * error), abs=1.5)


# -------------------------------------------------------------------- data sets in torchvision's own files


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (shade, shade, shade)).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def dtd(root):
    for split, kinds in (("train", "ab"), ("val", "ba"), ("test", "ab")):
        names = [f"{kind}/{kind}_{split}.jpg" for kind in kinds]
        write(root / "dtd/dtd/labels" / f"{split}1.txt", "\n".join(names) + "\n")
        for name in names:
            picture(root / "dtd/dtd/images" / name, 40 if name[0] == "a" else 200)


def aircraft(root):
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707\nA380\n")
    for split in ("train", "val", "test", "trainval"):
        write(data / f"images_variant_{split}.txt", f"{split}1 A380\n{split}2 707\n")
        for i in (1, 2):
            picture(data / "images" / f"{split}{i}.jpg", 100 * i)


def food(root):
    for split in ("train", "test"):
        write(
            root / "food-101/meta" / f"{split}.json",
            json.dumps({c: [f"{c}/{split}"] for c in ("pie", "soup")}),
        )
        for c in ("pie", "soup"):
            picture(root / "food-101/images" / c / f"{split}.jpg", 90)
    write(root / "food-101/meta/classes.txt", "pie\nsoup\n")
    write(root / "food-101/meta/labels.txt", "Pie\nSoup\n")


def cars(root):
    base = root / "stanford_cars"
    kind = [("fname", "O"), ("class", "O")]
    (base / "devkit").mkdir(parents=True)
    scipy.io.savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "BMW"], dtype=object)})
    for file, folder in (
        ("devkit/cars_train_annos", "cars_train"),
        ("cars_test_annos_withlabels", "cars_test"),
    ):
        rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=kind)
        scipy.io.savemat(base / f"{file}.mat", {"annotations": rows})
        for i in (1, 2):
            picture(base / folder / f"{i}.jpg", 60 * i)


def pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split in ("trainval", "test"):
        write(base / f"annotations/{split}.txt", f"Beagle_{split} 1 2 1\nSphynx_{split} 2 1 4\n")
        for name in ("Beagle", "Sphynx"):
            picture(base / "images" / f"{name}_{split}.jpg", 50)


def flowers(root):
    base = root / "flowers-102"
    for i in range(1, 7):
        picture(base / f"jpg/image_{i:05d}.jpg", 30 * i)
    scipy.io.savemat(base / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 2, 1, 2]])})
    scipy.io.savemat(base / "setid.mat", {"trnid": [[1, 2]], "valid": [[3, 4]], "tstid": [[5, 6]]})


SETS = {
    "DTD": (dtd, 4, 2, [0, 1, 1, 0], 2),
    "FGVCAircraft": (aircraft, 2, 2, [1, 0], 0),
    "Food101": (food, 2, 2, [0, 1], 0),
    "StanfordCars": (cars, 2, 2, [1, 0], 0),
    "OxfordIIITPet": (pets, 2, 2, [0, 1], 0),
    "Flowers102": (flowers, 4, 2, [0, 1, 0, 1], 2),
}


@pytest.mark.parametrize("name", SETS)
def test_each_set_is_read_with_its_own_splits(name, tmp_path, monkeypatch):
    make, train, test, labels, validation = SETS[name]
    make(tmp_path)
    monkeypatch.setattr(torchvision.datasets.Flowers102, "_check_integrity", lambda self: True)
    data = [f"data.name=torchvision:{name}", f"data.path={tmp_path}"]
    recipe = load_recipe(data)
    known, tests = (open_samples(recipe.data, split, seed=0) for split in ("train", "eval"))
    assert (len(known), len(tests)) == (train, test)
    assert (
        known.labels.tolist() == labels if name != "DTD" else sorted(known.labels.tolist()) == sorted(labels)
    )
    assert tests.labels is not None
    assert all(image.shape == (3, 16, 20) for image in known.load(np.arange(train)))
    if validation:
        assert known.split.tolist() == [TRAIN] * (train - validation) + [VALIDATION] * validation
    else:
        assert known.split is None


def test_a_set_without_a_split_is_divided_by_class(tmp_path):
    for kind, count in (("ant", 5), ("bee", 7)):
        for i in range(1, count + 1):
            picture(tmp_path / f"caltech101/101_ObjectCategories/{kind}/image_{i:04d}.jpg", 20 * i)
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    (tmp_path / "caltech101/Annotations").mkdir()
    data = ["data.name=torchvision:Caltech101", f"data.path={tmp_path}", "data.per_class=3"]
    samples = open_samples(load_recipe(data).data, "train", seed=0)
    for label in (0, 1):
        assert (samples.split[samples.labels == label] == TRAIN).sum() == 3
    assert (samples.split > 0).all()
    again = open_samples(load_recipe([*data, "seed=1"]).data, "train", seed=1)
    assert not np.array_equal(again.split, samples.split)
    with pytest.raises(InputError, match=r"data\.per_class=3: digits has a test set"):
        open_samples(load_recipe(["recipe=ressl/digits", "data.per_class=3"]).data, "train", seed=0)


def test_a_run_is_judged_on_another_set(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "PENALTIES", (10.0, 0.1))
    recipe = load_recipe(["recipe=ressl/digits", "encoder.channels=[4, 8]"])
    write_encoder(tmp_path, encoder_of(recipe), recipe)
    (tmp_path / "recipe.yaml").write_text(dump(recipe))
    dtd(tmp_path / "data")
    command.main([
        f"run={tmp_path}", "data.name=torchvision:DTD", f"data.path={tmp_path / 'data'}", "eval.protocols=[transfer]",
    ])  # fmt: skip
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["metrics"]["eval/transfer_top1"] == 100
    assert len(written["intervals"]["eval/transfer_top1"]) == 2
