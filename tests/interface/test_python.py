"""The package from Python: the transcript of a notebook, each kind of images, errors, callbacks, stops."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from places import ROOT
from rich.console import Console
from sklearn.datasets import load_digits
from small_run import finished_run
from torch.utils.data import DataLoader, Dataset, TensorDataset

import raysurl
from raysurl import stopping
from raysurl.commands import embed, evaluate, predict
from raysurl.data import manifest
from raysurl.data.depth import Depth
from raysurl.estimator import GenURL
from raysurl.interface import images as given_images
from raysurl.interface import writing
from raysurl.interface.callbacks import Callbacks, heard
from raysurl.interface.runs import write_stopped
from raysurl.interface.searching import as_text
from raysurl.recipe import Data
from raysurl.report import notebook
from raysurl.report.progress import watching
from raysurl.train import local

SMALL = {
    "encoder.name": "convnet", "encoder.channels": [4, 8], "views.size": 8, "method.hidden": 8, "method.dim": 4,
    "method.queue_size": 40, "log.tensorboard": False, "eval.protocols": ["knn"], "eval.knn_k": [5],
    "eval.baselines": False, "scale.threads": 1, "train.schedule.warmup_epochs": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def photos():
    """500 digits as (N, H, W, 3) bytes, and their labels."""
    digits = load_digits()
    grey = np.round(digits.images[:500] * 255 / 16).astype(np.uint8)
    return np.stack([grey, grey, 255 - grey], -1), digits.target[:500]


def trained(photos, output, **changes):
    """A run of two epochs of five steps, on one hundred of them."""
    images, labels = photos
    settings = SMALL | changes.pop("settings", {})
    arguments = {"data": images[:100], "labels": labels[:100], "epochs": 2, "batch_size": 20} | changes
    return raysurl.pretrain(
        "ressl/digits", runtime="local", output=output, progress=False, settings=settings, **arguments
    )


@pytest.fixture(scope="module")
def transcript(photos, tmp_path_factory):
    """The code of docs/python.md, run in a folder of its own, and what it has left."""
    folder = tmp_path_factory.mktemp("notebook")
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)[1]
    before, here = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}, os.getcwd()
    os.chdir(folder)
    try:
        names = {}
        exec(code, names)
    finally:
        os.chdir(here)
    assert before == {s: signal.getsignal(s) for s in before}
    return names


@pytest.mark.slow
def test_the_page_of_the_docs_runs_as_it_stands(transcript):
    run = transcript["run"]
    assert run.finished
    assert len(transcript["losses"]) == 2
    assert run.results["train/loss"] == pytest.approx(transcript["losses"][-1])
    assert transcript["z"].shape == (500, 8)
    assert transcript["z"].dtype == np.float32
    assert run.report.read_text().startswith("<!doctype html>")
    assert (run.directory / "given").is_dir()
    assert "eval/knn5" not in run.results
    assert "eval/knn20_top1" in repr(run.results)
    assert "<td>eval/knn20_top1</td>" in run._repr_html_()
    assert set(transcript["model"].predict(transcript["images"][:20])) <= set(range(10))


@pytest.mark.slow
def test_embeddings_and_classes_equal_those_of_the_commands(transcript, tmp_path):
    run, images = transcript["run"], transcript["images"][:40]
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    asked = ["data.name=folder", f"data.path={folder}", "data.labels=none", "data.limit="]
    embed.main([f"run={run.directory}", f"to={tmp_path / 'e.parquet'}", *asked])
    written = np.stack(
        pq.read_table(tmp_path / "e.parquet").column("embedding").to_numpy(zero_copy_only=False)
    )
    files = sorted(folder.iterdir())
    for given in (
        images,
        folder,
        files,
        [Image.open(file) for file in files],
        torch.from_numpy(images)[:, None] / 255,
    ):
        assert np.array_equal(run.model.embed(given), written)
    alone = raysurl.load(run.directory / "encoder.safetensors")
    np.testing.assert_array_equal(alone.embed(images), written)
    np.testing.assert_allclose(run.model.embed(images, batch_size=7), written, rtol=1e-5, atol=1e-6)
    predict.main(
        [f"run={run.directory}", f"to={tmp_path / 'c.parquet'}", f"data.path={folder}", "data.labels=none"]
    )
    said = pq.read_table(tmp_path / "c.parquet")
    assert run.model.predict(images).tolist() == said.column("class").to_pylist()
    np.testing.assert_allclose(
        run.model.predict_proba(images).max(1), said.column("probability").to_numpy(), rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_evaluation_equals_that_of_the_command(transcript, photos, threads):
    torch.set_num_threads(threads)  # of the process; the evaluation has those of the run
    run = transcript["run"]
    mine = run.evaluate(protocols=["knn"])
    assert torch.get_num_threads() == threads
    assert mine == {name: value for name, value in run.results.items() if name != "train/loss"}
    evaluate.main([f"run={run.directory}", "eval.protocols=[knn]"])
    assert dict(mine) == json.loads((run.directory / "evaluation.json").read_text())["metrics"]


@pytest.mark.slow
def test_an_evaluation_on_other_cores_equals_that_of_the_run(transcript, monkeypatch):
    run = transcript["run"]
    monkeypatch.setattr(local, "cores", lambda: 1)
    assert run.evaluate(protocols=["knn"])["health/uniformity"] == run.results["health/uniformity"]


STATES = {
    "products in bf16": lambda: torch.set_float32_matmul_precision("medium"),
    "fp64": lambda: torch.set_default_dtype(torch.float64),
    "a default device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(3),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.fixture(scope="module")
def at_rest(photos, tmp_path_factory):
    return made_of(photos, tmp_path_factory.mktemp("at rest"))


def made_of(photos, folder):
    """What a run gives, what its model does, what it is judged to be, and a map of vectors."""
    run = trained(photos, folder / "run")
    points = GenURL(random_state=0, epochs=2).fit_transform(photos[0][:60].reshape(60, -1).astype(np.float32))
    return (
        dict(run.results),
        run.model.embed(photos[0][:30]).tobytes(),
        dict(run.evaluate()),
        points.tobytes(),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_no_result_depends_on_what_the_process_has_set_of_torch(photos, at_rest, name, tmp_path):
    def state():
        device = torch.get_default_device()
        grads = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return (
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            device,
            torch.get_num_threads(),
            *grads,
        )

    begun = state()
    try:
        with STATES[name]() or contextlib.nullcontext():
            before = state()
            assert before != begun
            assert made_of(photos, tmp_path) == at_rest
            assert state() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.slow
def test_an_evaluation_of_other_data(transcript, photos):
    run = transcript["run"]
    images, labels = photos
    other = run.evaluate(
        ["knn"], data=images[:60], labels=labels[:60], eval_data=images[60:90], eval_labels=labels[60:90]
    )
    assert other["health/std"] != run.results["health/std"]
    assert len(list((run.directory / "given").iterdir())) == 1


class Pairs(Dataset):
    classes = ["even", "odd"]  # noqa: RUF012

    def __init__(self, photos):
        self.images, self.labels = photos

    def __len__(self):
        return 300

    def __getitem__(self, index):
        if index >= 300:
            raise IndexError
        return Image.fromarray(self.images[index]), int(self.labels[index]) % 2


@pytest.mark.slow
def test_every_kind_of_images_is_written_as_the_same_pixels_and_labels(photos, tmp_path):
    images, labels = photos
    kinds = {
        "bytes": images,
        "channels first": images.transpose(0, 3, 1, 2),
        "tensor": torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
        "floats": torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) / 255,
        "float array": images.astype(np.float64) / 255,
        "list": list(images),
        "pil": [Image.fromarray(image) for image in images],
        "pairs": [(image, label) for image, label in zip(images, labels, strict=True)],
        "mappings": [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],
        "data set": TensorDataset(
            torch.from_numpy(images.transpose(0, 3, 1, 2).copy()) / 255, torch.from_numpy(labels)
        ),
    }
    for name, data in kinds.items():
        own = name in ("pairs", "mappings", "data set")
        settings = writing.written(data, None if own else labels, tmp_path / name, "train")
        found = given_images.open_samples(
            Data(name=settings["data.name"], path=settings["data.path"]), "train", seed=0
        )
        assert found.original_labels().tolist() == labels.tolist(), name
        assert all(map(np.array_equal, found.load(range(500)), images.transpose(0, 3, 1, 2))), name
        assert writing.written(data, None if own else labels, tmp_path / name, "train") == settings
        assert len(list((tmp_path / name).iterdir())) == 1


def test_images_of_many_sizes_wide_grey_ones_names_of_classes_and_text_labels(photos, tmp_path):
    mixed = [Image.fromarray(photos[0][i]).resize((8 + i % 5, 9)) for i in range(20)]
    mixed[3], mixed[4] = mixed[3].convert("L"), mixed[4].convert("RGBA")
    settings = writing.written(mixed, ["a", "b"] * 9 + [None, "b"], tmp_path, "train")
    data = Data(name=settings["data.name"], path=settings["data.path"])
    found = given_images.open_samples(data, "train", seed=0)
    assert {image.shape[2] for image in found.load(range(20))} == {8, 9, 10, 11, 12}
    assert found.class_names == ("a", "b")
    assert found.labels[18] == -1
    named = writing.written(Pairs(photos), None, tmp_path, "train")
    found = given_images.open_samples(Data(name="parquet", path=named["data.path"]), "train", seed=0)
    assert found.class_names == ("even", "odd")
    wide = np.arange(4 * 6 * 6, dtype=np.uint16).reshape(4, 6, 6) * 400
    as_list = given_images.samples_of(list(wide), Data()).load(range(4))
    as_one = given_images.samples_of(wide, Data()).load(range(4))
    assert all(map(np.array_equal, as_list, as_one))


def test_a_path_is_read_as_what_it_holds(tmp_path):
    for name in ("folder/a/1.png", "shards/b/1.parquet", "one.parquet", "one.npz", "one.NPY"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    kinds = {
        "folder": "folder",
        "shards": "parquet",
        "one.parquet": "parquet",
        "one.npz": "npz",
        "one.NPY": "npz",
    }
    for name, kind in kinds.items():
        for given in (tmp_path / name, str(tmp_path / name)):
            assert given_images.located(given) == {"data.name": kind, "data.path": str(tmp_path / name)}
    assert given_images.located("digits") == {"data.name": "digits"}
    assert given_images.located("s3://a/*.parquet") == {
        "data.name": "parquet",
        "data.path": "s3://a/*.parquet",
    }
    assert given_images.located([IMAGE]) is None


IMAGE = np.zeros((8, 8, 3), np.uint8)
REFUSED = [
    (np.zeros((4, 8, 8), complex), "array of complex128"),
    (np.zeros((0, 8, 8, 3), np.uint8), "holds no image"),
    (np.zeros((4, 8, 8, 5), np.uint8), "channels neither first nor last"),
    (np.zeros((4, 8, 8, 3)) + 200, "must lie in 0 to 1, and holds 200 to 200"),
    (np.full((4, 8, 8, 3), np.nan), "not finite"),
    (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), "Normalize"),
    (IMAGE, r"is one image; give several, or this one as data\[None\]"),
    (torch.zeros(3, 8, 8), "is one image"),
    (np.zeros((2, 2, 2, 2, 2), np.uint8), r"shape \(2, 2, 2, 2, 2\)"),
    ([], "data is empty"),
    ([IMAGE, "nowhere.png"], r"data\[1\]='nowhere.png' cannot be read"),
    ([IMAGE, 5], r"data\[1\] is of type int"),
    ([IMAGE, np.zeros((8, 8, 3, 3), np.uint8)], r"data\[1\] is uint8 of shape"),
    ([np.zeros((8, 8), np.int64)], r"data\[0\] is int64"),
    (iter([IMAGE]), "of type list_iterator"),
    ({"image": [IMAGE]}, "of type dict"),
    (5, "of type int"),
    (DataLoader(TensorDataset(torch.zeros(4, 3, 8, 8))), "is a DataLoader"),
    ([Image.new("F", (8, 8))], r"data\[0\] cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_holds_no_images_is_one_sentence_and_leaves_nothing(data, said, tmp_path):
    with pytest.raises(raysurl.InputError, match=said) as raised:
        raysurl.pretrain(data=data, output=tmp_path / "run", runtime="local")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"labels": [1, 2]}, "there are 100 images"),
        ({"labels": [0.5] * 100}, "holds 0.5"),
        ({"labels": [1, "a"] * 50}, "numbers beside text"),
        ({"labels": [2**70] * 100}, "holds 1180591620717411303424; labels are whole numbers of 64 bits"),
        ({"labels": np.full(100, 2**63, np.uint64)}, "holds 9223372036854775808; labels are whole numbers"),
        ({"labels": [[1]] * 100}, "one label each"),
        ({"data": None}, "labels= needs data="),
        ({"data": "torchvision:CIFAR10", "labels": None, "settings": {"data.path": "/nowhere"}}, "/nowhere"),
        ({"data": "/nowhere", "labels": None}, "/nowhere"),
        ({"epochs": 0}, "train.epochs=0 is not valid"),
        ({"epochs": "many"}, "train.epochs='many' is not valid"),
        ({"batch_size": 200}, "larger than the data, 100 samples"),
        ({"settings": {"train.epoch": 3}}, "did you mean train.epochs"),
        ({"settings": {"train.epochs": 3}}, "given twice"),
        ({"settings": {"data.path": "x"}}, "both name the data"),
        ({"settings": {"resume": True}}, "give resume=True"),
        ({"resume": True}, "no run to resume"),
        ({"eval_data": ROOT / "x.npz", "eval_labels": [1]}, "given from Python"),
        ({"eval_data": [IMAGE]}, "give both in one form"),
    ],
)  # fmt: skip
def test_a_mistake_is_an_exception_of_one_sentence_and_leaves_nothing(photos, arguments, said, tmp_path):
    with pytest.raises(raysurl.InputError, match=said):
        trained(photos, tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_of_before_is_opened_and_no_run_is_refused(transcript, tmp_path):
    again = raysurl.TrainedRun(str(transcript["run"].directory))
    assert again.results == transcript["run"].results
    assert again.recipe.train.epochs == 2
    with pytest.raises(raysurl.InputError, match="no run directory"):
        raysurl.TrainedRun(tmp_path)


def test_a_directory_that_holds_something_is_left_as_it_is(photos, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(raysurl.InputError, match="is not empty"):
        trained(photos, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# -------------------------------------------------------------------- callbacks and stops


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory):
    return trained(photos, tmp_path_factory.mktemp("whole") / "run")


def steps(run):
    return [line["train/loss"] for line in run.history if "train/loss" in line]


@pytest.mark.slow
def test_a_callback_stops_a_run_which_is_used_as_it_stands_and_goes_on_as_if_undisturbed(
    photos, whole, tmp_path
):
    heard = []

    def stop(values):
        heard.append(values)
        return values["epoch"] == 1

    run = trained(photos, tmp_path / "run", on_epoch=stop)
    assert not run.finished
    assert [values["epoch"] for values in heard] == [1]
    assert len(steps(run)) == 5
    assert "unfinished" in repr(run)
    assert run.model.embed(photos[0][:7]).shape == (7, 8)
    with pytest.raises(raysurl.InputError, match=r"data.path=.*, not "):
        raysurl.pretrain(output=run.directory, data=photos[0][:90], resume=True, progress=False)
    again = trained(photos, tmp_path / "run", resume=True)
    assert again.finished
    assert steps(again) == steps(whole)
    assert again.results == whole.results


@pytest.mark.slow
def test_the_encoder_of_a_stopped_run_keeps_the_range_of_wide_pixels(tmp_path, monkeypatch):
    shutil.copytree(finished_run(), tmp_path / "run")
    monkeypatch.setattr(manifest, "depth_of", lambda path: Depth(0, 12))
    write_stopped(tmp_path / "run")
    assert raysurl.load(tmp_path / "run").depth == Depth(0, 12)


@pytest.mark.slow
def test_steps_and_evaluations_are_heard_an_error_is_raised_and_the_last_step_stops_nothing(photos, tmp_path):
    heard = []
    run = trained(
        photos, tmp_path / "a", settings={"log.every_steps": 1, "eval.every_epochs": 1}, on_step=heard.append,
        on_evaluation=lambda values: heard.append(values) or values["step"] == 10,
    )  # fmt: skip
    assert run.finished
    assert [v["step"] for v in heard if "train/loss" in v] == list(range(10))
    assert sum("eval/knn5_top1" in v for v in heard) >= 2

    def fail(values):
        if values["step"] == 2:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        trained(photos, tmp_path / "b", settings={"log.every_steps": 1}, on_step=fail)
    assert (tmp_path / "b" / "checkpoints").is_dir()

    def wish(values):
        raise raysurl.StopRun

    run = trained(photos, tmp_path / "c", settings={"log.every_steps": 1}, on_step=wish)
    assert len(steps(run)) == 1


@pytest.mark.parametrize(
    ("answer", "stops"), [(True, True), (np.True_, True), (None, False), (1, False), ({1: 2}, False)]
)
def test_true_alone_stops(answer, stops, tmp_path):
    callbacks = Callbacks(2, lambda values: answer, None, None)
    callbacks.run_dir = tmp_path
    callbacks({"step": 0, "event": "begins", "total_steps": 4})
    callbacks({"step": 0, "train/loss": 1.0})
    assert callbacks.stopped == stops
    assert (tmp_path / ".stop").is_file() == stops


@pytest.mark.slow
def test_ctrl_c_leaves_a_run_that_goes_on_and_no_handler(photos, whole, tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press(values):
        if values["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match=r"raysurl.pretrain\(output='.*', resume=True\)"):
        trained(photos, tmp_path / "run", settings={"log.every_steps": 1}, on_step=press)
    assert signal.getsignal(signal.SIGINT) is before
    again = raysurl.pretrain(
        output=tmp_path / "run", resume=True, settings={"log.every_steps": 10}, progress=False
    )
    assert steps(again) == steps(whole)
    assert again.results == whole.results


@pytest.mark.slow
def test_a_run_in_a_thread_of_a_notebook_works_and_keeps_torchs_threads(photos, whole, tmp_path):
    threads, found = torch.get_num_threads(), []
    work = threading.Thread(target=lambda: found.append(trained(photos, tmp_path / "run")))
    work.start()
    work.join()
    assert found[0].results == whole.results
    assert torch.get_num_threads() == threads


# -------------------------------------------------------------------- models


def test_a_model_refuses_what_it_cannot_take(whole, photos, tmp_path):
    model = whole.model
    (tmp_path / "bad.png").write_bytes(b"no image")
    for wrong, said in (
        (np.zeros((4, 3), np.float32), "takes images, and vectors of 3 values"),
        ([photos[0][0], tmp_path / "bad.png"], r"1 of 2 images cannot be read"),
        ([], "images is empty"),
    ):
        with pytest.raises(raysurl.InputError, match=said):
            model.embed(wrong)
    with pytest.raises(raysurl.InputError, match="whole number"):
        model.embed(photos[0][:2], batch_size=0)
    with pytest.raises(raysurl.InputError, match="finetune"):
        model.predict(photos[0][:2])
    with pytest.raises(raysurl.InputError, match="neither a run directory"):
        raysurl.load(tmp_path / "nothing")
    with pytest.raises(raysurl.InputError, match="device"):
        raysurl.load(whole.directory, device="abacus")


def test_one_image_file_is_one_row(whole, photos, tmp_path):
    Image.fromarray(photos[0][0]).save(tmp_path / "one.png")
    one = whole.model.embed(tmp_path / "one.png")
    np.testing.assert_allclose(one, whole.model.embed(photos[0][:2])[:1], rtol=1e-5, atol=1e-6)
    assert np.array_equal(one, whole.model.embed(Image.fromarray(photos[0][0])))


# -------------------------------------------------------------------- names, notebooks, sweeps


def test_importing_the_package_loads_no_torch_and_all_names_are_there():
    code = "import sys, raysurl; assert not {'torch', 'numpy', 'ray'} & {*sys.modules}; print(sorted(raysurl.__all__))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == str(sorted(raysurl.__all__))
    modules = {path.stem for path in (ROOT / "raysurl").iterdir()}
    assert not modules & set(raysurl.__all__)
    assert all(getattr(raysurl, name).__name__ == name for name in raysurl.__all__)


def test_the_bar_of_a_notebook_shows_numbers_and_escapes_events():
    shown = []
    lines = [
        {"step": 0, "event": "data <b> & c", "total_steps": 40},
        {"step": 9, "epoch": 0.5, "train/loss": 1.25, "speed/images_per_s": 300.4},
        {"step": 20, "eval/knn_top1": 55.5},
    ]
    notebook.show(iter(lines), shown.append)
    assert 'max="40"' in shown[-1]
    assert "loss 1.2500" in shown[-1]
    assert "300 images/s" in shown[-1]
    assert "data &lt;b&gt; &amp; c" in shown[-1]
    assert "eval/knn_top1 55.50" in shown[-1]


def test_in_a_notebook_the_output_of_the_cell_is_renewed(monkeypatch, tmp_path):
    class Handle:
        shown: list[str] = []  # noqa: RUF012

        def update(self, html):
            self.shown.append(html)

    module = types.SimpleNamespace(display=lambda html, display_id: Handle(), HTML=str)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    with watching(tmp_path, Console(force_jupyter=True)):
        lines = [
            {"step": 0, "event": "begins", "total_steps": 2},
            {"step": 1, "epoch": 1.0, "train/loss": 0.5},
        ]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "2/2 steps" in Handle.shown[-1]
    assert "begins" in Handle.shown[-1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("a b", "a b"),
        (True, "true"),
        (1e-5, "1.0e-05"),
        ([0, 1], "[0, 1]"),
        ({"a": [1]}, "{a: [1]}"),
    ],
)
def test_values_become_what_a_person_types(value, text):
    assert as_text(value) == text


def test_a_search_refuses_a_mistake_before_anything_starts(tmp_path):
    axes = {"recipe": "ressl/digits", "axes": {"method.tau_teacher": [0.03]}}
    for arguments, said in (
        ({"space": "nothing"}, "space=nothing is neither"),
        ({"space": axes, "trials": 3}, "is a grid"),
        ({"space": axes, "seeds": [0, 0]}, "different whole numbers"),
        ({"space": axes, "settings": {"train.epoch": 1}}, "train.epoch"),
        ({"space": axes, "only": {"method.tau_teacher": [0.5]}}, "0.5"),
    ):
        with pytest.raises(raysurl.InputError, match=said):
            raysurl.search(**arguments, output=tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_search_gives_its_table(photos, tmp_path):
    images, labels = photos
    space = {"recipe": "ressl/digits", "axes": {"method.tau_teacher": [0.03, 0.04]}, "seeds": [0]}
    space["objectives"] = {"eval/knn5_top1": "max"}
    settings = SMALL | {"train.epochs": 1, "train.batch_size": 20}
    few = {"labels": labels[:100], "settings": settings, "max_concurrent": 1}
    table = raysurl.search(space, images[:100], output=tmp_path / "s", **few)
    assert [row["state"] for row in table.rows] == ["finished", "finished"]
    assert table.best.results["eval/knn5_top1"] == max(row["eval/knn5_top1"] for row in table.rows)
    assert "tau_teacher" in repr(table)
    assert "<table>" in table._repr_html_()
    assert table.report.is_file()


@pytest.mark.slow
def test_callbacks_hear_and_stop_a_run_whose_workers_write_its_record(tmp_path):
    """As under Ray, whose workers stop as they do at a signal: by a file that asks for it."""
    told = []

    def stop(values):
        told.append(values["step"])
        return values["step"] == 1

    heard_by = Callbacks(2, stop, None, None)
    with heard(heard_by, tmp_path, "ray"), (tmp_path / "metrics.jsonl").open("a") as record:
        deadline = time.monotonic() + 20
        for step in range(3):
            line = {"step": step, "total_steps": 8, "train/loss": 1.0}
            record.write(json.dumps(line) + "\n")
            record.flush()
            while len(told) < min(step + 1, 2) and time.monotonic() < deadline:
                time.sleep(0.01)
    assert told == [0, 1]
    assert heard_by.stopped
    assert stopping.asked(tmp_path) == signal.SIGINT
