"""Splits and labels of torchvision's data sets, on small files laid out as their authors do."""

import numpy as np
import pytest
from image_files import random_png

from raysurl.data.names import open_samples
from raysurl.recipe import Data


def image(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random_png(seed, 4, 4))


def flowers(root):
    from scipy.io import savemat

    base = root / "flowers-102"
    for i in range(12):
        image(base / "jpg" / f"image_{i + 1:05}.jpg", i)
    savemat(base / "imagelabels.mat", {"labels": np.array([[5, 6, 7, 5, 6, 7, 1, 2, 3, 4, 5, 6]])})
    ids = {"trnid": [[3, 1, 2]], "valid": [[5, 4, 6]], "tstid": [[7, 8, 9, 10, 11, 12]]}
    savemat(base / "setid.mat", {name: np.array(value) for name, value in ids.items()})
    return [6, 4, 5, 5, 4, 6], [0, 1, 2, 3, 4, 5]


def textures(root):
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for split, names in {"train": ["a/1", "b/2"], "val": ["b/3", "a/4"], "test": ["a/5", "b/6"]}.items():
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}.jpg\n" for name in names))
        for name in names:
            image(base / "images" / f"{name}.jpg", int(name[-1]))
    return [0, 1, 1, 0], [0, 1]


def aircraft(root):
    base = root / "fgvc-aircraft-2013b" / "data"
    for i in range(6):
        image(base / "images" / f"{i}.jpg", i)
    (base / "variants.txt").write_text("707\nA 300\n")
    splits = {"train": [0, 1], "val": [2, 3], "trainval": [0, 1, 2, 3], "test": [4, 5]}
    for split, index in splits.items():
        lines = (f"{i} {('707', 'A 300')[i % 2]}\n" for i in index)
        (base / f"images_variant_{split}.txt").write_text("".join(lines))
    return [0, 1, 0, 1], [0, 1]


def cars(root):
    from scipy.io import savemat

    base = root / "stanford_cars"
    kind = [("fname", object), ("class", object)]
    (base / "devkit").mkdir(parents=True)
    for split, classes in {"train": [2, 1, 3], "test": [3, 2]}.items():
        rows = [(f"{i}.jpg", value) for i, value in enumerate(classes)]
        name = "devkit/cars_train_annos" if split == "train" else "cars_test_annos_withlabels"
        savemat(base / f"{name}.mat", {"annotations": np.array(rows, kind)})
        for file, value in rows:
            image(base / f"cars_{split}" / file, value)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["x", "y", "z"], object)})
    return [1, 0, 2], [2, 1]


def sentiment(root):
    base = root / "rendered-sst2"
    for split in ("train", "valid", "test"):
        for label in ("negative", "positive"):
            image(base / split / label / "0.png", len(split + label))
    return [0, 1, 0, 1], [0, 1]


def signs(root):
    base = root / "gtsrb"
    for number in range(2):
        for i in range(2):
            image(base / "GTSRB" / "Training" / f"{number:05}" / f"{i}.ppm", i)
    for i in range(3):
        image(base / "GTSRB" / "Final_Test" / "Images" / f"{i}.ppm", i)
    lines = ["Filename;ClassId", *(f"{i}.ppm;{i % 2}" for i in range(3))]
    (base / "GT-final_test.csv").write_text("\n".join(lines) + "\n")
    return [0, 0, 1, 1], [0, 1, 0]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("Flowers102", flowers),
        ("DTD", textures),
        ("FGVCAircraft", aircraft),
        ("StanfordCars", cars),
        ("RenderedSST2", sentiment),
        ("GTSRB", signs),
    ],
)
def test_training_takes_the_validation_split_in_and_labels_are_found(name, make, tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda *_: True)
    train, test = make(tmp_path)
    data = Data(name=f"torchvision:{name}", path=str(tmp_path))
    samples, held = (open_samples(data, split, 0) for split in ("train", "eval"))
    assert samples.labels.tolist() == train
    assert held.labels.tolist() == test
    assert len(samples.load(np.arange(len(samples)))) == len(train)
    assert all(pixels.shape == (3, 4, 4) for pixels in samples.load(np.arange(len(train))))


def test_the_validation_images_stand_behind_those_of_training(tmp_path):
    textures(tmp_path)
    samples = open_samples(Data(name="torchvision:DTD", path=str(tmp_path)), "train", 0)
    from image_files import pixels_of

    for row, seed in enumerate((1, 2, 3, 4)):
        assert np.array_equal(samples.load([row])[0], pixels_of(random_png(seed, 4, 4)))


def test_a_training_set_without_its_validation_files_is_read_alone(tmp_path):
    textures(tmp_path)
    (tmp_path / "dtd/dtd/labels/val1.txt").unlink()
    samples = open_samples(Data(name="torchvision:DTD", path=str(tmp_path)), "train", 0)
    assert samples.labels.tolist() == [0, 1]
