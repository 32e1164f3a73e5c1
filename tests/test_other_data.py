"""A trained network on other data: their pixels are scaled as those of its training, and what differs is said."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_files import image_folder
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_run import SETTINGS

from raysurl.commands import embed, evaluate, predict
from raysurl.errors import InputError
from raysurl.evaluate.division import SEEN
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

IMAGES = np.random.default_rng(0).integers(0, 4096, (60, 8, 8)).astype(np.uint16)
LABELS = np.arange(60) % 3


def npz(path: Path, images: np.ndarray) -> str:
    np.savez(path, images=images, labels=LABELS[: len(images)])
    return str(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, trained and fine-tuned on pixels of 12 bits; the files that it leaves, `alone`; and other data:
    `dark.npz`, the same images at a quarter of their values; `same.npz`; `bright.npz`, at four times their values."""
    root = tmp_path_factory.mktemp("depth")
    data = npz(root / "same.npz", IMAGES)
    npz(root / "dark.npz", IMAGES // 4)
    npz(root / "bright.npz", IMAGES * 4)
    kept = [s for s in SETTINGS if not s.startswith("data.")]
    pretrain(load_recipe([*kept, "data.name=npz", f"data.path={data}", f"output={root / 'run'}"]))
    (root / "alone").mkdir()
    for name in ("encoder.safetensors", "classifier-full.safetensors"):
        shutil.copy(root / "run" / name, root / "alone")
    return root


def embeddings(root: Path, run: str, data: str, to: str, *more: str) -> np.ndarray:
    target = root / f"{to}.parquet"
    embed.main([f"run={root / run}", "data.name=npz", f"data.path={root / data}.npz", f"to={target}", *more])
    return np.array(pq.read_table(target).column("embedding").to_pylist(), np.float32)


@pytest.mark.parametrize("run", ["run", "run/encoder.safetensors", "alone/encoder.safetensors"])
def test_embeddings_are_of_pixels_scaled_as_in_training(root: Path, run: str, tmp_path: Path, capfd) -> None:
    (tmp_path / "same.npz").symlink_to(root / "same.npz")
    to = f"dark-{run.replace('/', '-')}"
    dark, same = (embeddings(root, run, name, f"{name}-{to}") for name in ("dark", "same"))
    said = capfd.readouterr().out
    assert said.count("pixels wider than a byte lie in 0 … 4095 (12 bits), by the run's training data\n") == 2
    # the same images, a quarter as bright: read at their own range, they would be as in training
    own = embeddings(root, run, "dark", f"own-{to}", "data.bits=10")
    assert np.abs(own - same).max() < 0.1 * np.abs(dark - same).max()


def test_what_lies_outside_is_cut_and_said(root: Path, capfd) -> None:
    bright = embeddings(root, "alone/encoder.safetensors", "bright", "bright")
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("pixels wider")]
    assert len(said) == 1
    most = int(IMAGES.max()) * 4
    assert f"these pixels run from 0 to {most}, and those outside are taken for its ends" in said[0]
    npz(root / "cut.npz", np.minimum(IMAGES * 4, 4095))
    assert np.array_equal(bright, embeddings(root, "run", "cut", "cut"))


def test_predictions_are_of_pixels_scaled_as_in_training(root: Path, capfd) -> None:
    def classes(data: str) -> list[list[str]]:
        target = root / f"of-{data}.csv"
        run = root / "alone/classifier-full.safetensors"
        predict.main([f"run={run}", "data.name=npz", f"data.path={root / data}.npz", f"to={target}"])
        return [row[1:] for row in csv.reader(target.open())]

    npz(root / "cut2.npz", np.minimum(IMAGES * 4, 4095))
    bright, cut = classes("bright"), classes("cut2")
    assert bright == cut
    assert "those outside are taken for its ends" in capfd.readouterr().out


def test_evaluation_on_other_data_is_of_pixels_scaled_as_in_training(root: Path, capfd) -> None:
    others = [f"data.path={root / 'dark'}.npz", f"data.eval_path={root / 'bright'}.npz"]
    evaluate.main([f"run={root / 'run'}", *others, "eval.protocols=[knn]"])
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("pixels wider")]
    assert [line.count("by the run's training data") for line in said] == [1, 1]
    assert ["those outside" in line for line in said] == [False, True]


def test_an_encoder_of_an_earlier_version_has_the_range_of_its_runs_manifest(
    root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "run", tmp_path / "run")
    file = tmp_path / "run" / "encoder.safetensors"
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    assert json.loads(about.pop("depth")) == {"low": 0, "bits": 12}
    save_file(load_file(file), file, metadata=about)
    shutil.copy(root / "dark.npz", tmp_path)
    (tmp_path / "dark.npz").touch()
    there, here = embeddings(root, "run", "dark", "there"), embeddings(tmp_path, "run", "dark", "here")
    assert np.array_equal(there, here)


def test_vectors_are_none_that_an_encoder_of_images_sees(root: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((9, 7), np.float32))
    data = ["data.name=npz", f"data.path={tmp_path / 'x.npz'}"]
    for command, arguments in (
        (embed, [f"run={root / 'run'}", f"to={tmp_path / 'x.parquet'}"]),
        (predict, [f"run={root / 'run'}", f"to={tmp_path / 'x.csv'}"]),
        (evaluate, [f"run={root / 'run'}", "eval.protocols=[rankme]"]),
    ):
        with pytest.raises(InputError, match=r"encoder.name=convnet sees images, and the data are vectors"):
            command.main([*arguments, *data])


def test_only_of_the_runs_own_data_the_test_images_are_said_to_be_trained_on(root: Path, capfd) -> None:
    for run, data, said in (
        ("run", "same", True),
        ("run/encoder.safetensors", "same", True),
        ("run", "dark", False),
        ("alone/encoder.safetensors", "same", False),
    ):
        path = ["data.name=npz", f"data.path={root / data}.npz"]
        evaluate.main([f"run={root / run}", *path, "eval.protocols=[knn]"])
        notes = [line for line in capfd.readouterr().out.splitlines() if line.startswith("no test set")]
        assert [SEEN in note for note in notes] == [said], (run, data)


def test_what_is_taken_for_labels_and_what_cannot_be_read_is_said(root: Path, tmp_path: Path, capfd) -> None:
    photos = image_folder(tmp_path / "photos", 8, classes=2)
    (photos / "class0").rename(photos / "plate1")
    (photos / "class1").rename(photos / "plate2")
    (photos / "plate1" / "zz.png").write_bytes(b"no image")
    data = ["data.name=folder", f"data.path={photos}", "data.max_unreadable=0.5"]
    run = f"run={root / 'run'}"
    for command, arguments in (
        (embed, [run, f"to={tmp_path / 'x.parquet'}"]),
        (predict, [run, f"to={tmp_path / 'x.csv'}"]),
        (evaluate, [run, "eval.protocols=[rankme]"]),
    ):
        command.main([*arguments, *data])
        said = capfd.readouterr().out
        assert "no labels: the folders plate1, plate2 look like plates" in said
        assert f"skipped {photos / 'plate1' / 'zz.png'} (it is not an image)" in said
