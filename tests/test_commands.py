"""evaluate, embed and report on a finished run, as a person starts them."""

import hashlib
import json
import re
import shutil
import subprocess
import sys

import contract
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from small_run import finished_run

pytest.importorskip("ray")
pytest.importorskip("optuna")


from raysurl import cli, method
from raysurl.commands import embed, evaluate, index, predict, report
from raysurl.errors import InputError
from raysurl.recipe import continued, load_recipe
from raysurl.run import pretrain

pytestmark = pytest.mark.slow

SETTINGS = (
    "runtime=local", "method.hidden=32", "method.dim=16", "data.limit=256", "train.batch_size=64", "train.epochs=2",
    "eval.linear_epochs=2", "log.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "run"
    return pretrain(load_recipe([*SETTINGS, f"output={folder}"]))


@pytest.mark.parametrize("name", method.available())
def test_evaluate_of_a_run_of_any_method_repeats_its_final_metrics(name, tmp_path, capsys):
    # Super-AND's headline is of its embedding against what its memory holds
    features = {"superand": "memory", "genurl": "embedding"}.get(name, "backbone")
    judging = {"protocols": ["knn", "linear", "rankme"], "features": features, "linear_epochs": 2}
    run_dir = pretrain(contract.recipe_for(name, eval=judging, runtime="local", output=str(tmp_path / "run")))
    evaluate.main([f"run={run_dir}"])
    again = json.loads((run_dir / "evaluation.json").read_text())["metrics"]
    first = json.loads((run_dir / "results.json").read_text())["metrics"]
    assert again == {name: value for name, value in first.items() if name != "train/loss"}
    assert "eval/knn_top1" in capsys.readouterr().out


def test_evaluate_of_an_encoder_file_alone_needs_only_the_data(run_dir, tmp_path):
    shutil.copy(run_dir / "encoder.safetensors", tmp_path / "mine.safetensors")
    evaluate.main(
        [f"run={tmp_path}/mine.safetensors", "data.name=digits", "data.limit=256", "eval.linear_epochs=2"]
    )
    alone = json.loads((tmp_path / "evaluation.json").read_text())["metrics"]
    first = json.loads((run_dir / "results.json").read_text())["metrics"]
    assert alone["eval/knn_top1"] == first["eval/knn_top1"]


def test_embed_writes_a_row_per_readable_sample(run_dir, tmp_path, capsys):
    embed.main([f"run={run_dir}", f"to={tmp_path}/out.parquet"])
    table = pq.read_table(tmp_path / "out.parquet")
    columns = ["index", "name", "path", "row", "label", "pixels", "height", "width", "embedding"]
    assert table.column_names == columns
    assert table.num_rows == 256
    vectors = np.stack(table.column("embedding").to_numpy(zero_copy_only=False))
    assert vectors.shape == (256, 256)
    assert np.isfinite(vectors).all()
    said = capsys.readouterr().out
    assert "256 embeddings of 256 dimensions" in said
    assert "the run took data.limit=256 of the samples; data.limit= embeds all" in said


def test_embed_takes_all_samples_of_a_limited_run_where_asked(run_dir, tmp_path, capsys):
    embed.main([f"run={run_dir}", f"to={tmp_path}/all.parquet", "data.limit="])
    assert pq.read_table(tmp_path / "all.parquet").num_rows == 1437
    assert "data.limit" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A finished run on a folder of two named classes, nested, with names that are not ASCII."""
    root = tmp_path_factory.mktemp("pets")
    random = np.random.default_rng(0)
    for i in range(60):
        folder = root / "photos" / ("chat été" if i % 2 else "chien & <b>") / "déjà"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{i}.png")
    settings = (f"data.path={root}/photos", "views.size=8", "encoder.name=convnet", "encoder.channels=[4, 8]",
                "train.batch_size=20", "runtime=local", "method.hidden=8", "method.queue_size=40", "train.epochs=1",
                "log.tensorboard=false", "eval.protocols=[knn]", "eval.knn_k=[5]")  # fmt: skip
    return root, pretrain(load_recipe([*settings, f"output={root}/run"]))


def test_embeddings_carry_class_names_relative_paths_model_and_commit(pets):
    root, run_dir = pets
    embed.main([f"run={run_dir}", f"to={root}/new/folder/out.parquet"])
    table = pq.read_table(root / "new" / "folder" / "out.parquet")
    about = json.loads(table.schema.metadata[b"raysurl"])
    assert about["class_names"] == {"0": "chat été", "1": "chien & <b>"}
    paths = table.column("path").to_pylist()
    assert all((root / "photos" / path).is_file() for path in paths)
    assert [f"{about['data']['root']}/{path}" for path in paths] == table.column("name").to_pylist()
    assert set(table.column("row").to_pylist()) == {-1}
    digest = hashlib.sha256((run_dir / "encoder.safetensors").read_bytes()).hexdigest()
    assert about["model"]["sha256"] == digest
    assert (about["model"]["run"], about["model"]["method"], about["model"]["size"]) == ("run", "ressl", 8)
    assert about["model"]["encoder"]["channels"] == [4, 8]
    assert about["commit"] == json.loads((run_dir / "results.json").read_text())["commit"]
    assert [p.name for p in (root / "new" / "folder").iterdir()] == ["out.parquet"]


def test_of_other_data_than_the_runs_no_image_is_left_out_for_the_runs_test_set(pets, tmp_path):
    """A part of the folder was the test set of a run on another folder."""
    root, run_dir = pets
    copy = shutil.copytree(run_dir, tmp_path / "run")
    recipe = yaml.safe_load((copy / "recipe.yaml").read_text())
    recipe["data"]["eval_path"] = f"{root}/photos/chat été"
    (copy / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    embed.main([f"run={copy}", f"to={tmp_path}/others.parquet", f"data.path={root}/photos"])
    assert pq.read_table(tmp_path / "others.parquet").num_rows == 60
    embed.main([f"run={copy}", f"to={tmp_path}/own.parquet"])
    assert pq.read_table(tmp_path / "own.parquet").num_rows == 30


def test_the_report_calls_classes_by_their_names_and_says_that_the_encoder_saw_the_test_images(pets):
    _, run_dir = pets
    text = (run_dir / "report.html").read_text()
    classes = text.partition("<h2>Classes</h2>")[2].partition("</section>")[0]
    figures = [json.loads(data) for data in re.findall(r'application/json">(.*?)</script>', classes)]
    assert len(figures) == 2
    for name in ("chat été", "chien &amp; &lt;b&gt;"):
        for figure in figures:
            assert name in figure["layout"]["yaxis"]["ticktext"]
        assert text.partition("<h2>Nearest neighbours</h2>")[2].partition("</section>")[0].count(name) > 5
    assert "class 0" not in text
    assert "<b>" not in text.partition("<h2>Nearest neighbours</h2>")[2].partition("</section>")[0]
    with np.load(run_dir / "samples" / "confusion.npz") as arrays:
        assert arrays["counts"].shape == (2, 2)
        assert arrays["counts"].sum() == 6  # every tenth of 60
    assert "the encoder trains on the test images, never on their labels" in text
    assert "held-out" not in text


def test_with_a_test_set_nothing_of_the_kind_is_said(run_dir):
    text = (run_dir / "report.html").read_text()
    assert "trains on the test images" not in text
    assert "on held-out images" in text or "<b>Accuracy</b>" not in text
    assert "<h2>Classes</h2>" in text


@pytest.mark.slow
def test_embed_says_at_once_what_it_cannot_write(tmp_path):
    (tmp_path / "there.parquet").touch()
    (tmp_path / "dangling.parquet").symlink_to("nowhere")
    (tmp_path / "file").touch()
    for to, said in (
        ("there.parquet", "exists already"),
        ("dangling.parquet", "exists already"),
        ("file/x.parquet", "is no folder"),
        ("x.csv", "to=FILE.parquet"),
    ):
        code = (
            "import sys\nfrom raysurl.cli import run\nfrom raysurl.commands import embed\ntry:\n"
            f"    run(embed.main, ['run=nothing', 'to={tmp_path}/{to}'])\nfinally:\n    print('torch' in sys.modules)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout.strip()) == (2, "False"), found.stderr
        assert said in found.stderr
        assert len(found.stderr.splitlines()) == 1


def test_report_is_written_again(run_dir):
    (run_dir / "report.html").unlink()
    report.main([f"run={run_dir}"])
    text = (run_dir / "report.html").read_text()
    assert "kNN" in text
    assert "<script src" not in text


@pytest.mark.parametrize(
    ("command", "arguments", "said"),
    [
        (evaluate.main, ["run=nowhere"], "run="),
        (evaluate.main, [], "run=DIR"),
        (evaluate.main, ["run={run}", "encoder.name=resnet18"], "does not fit the recipe's encoder"),
        (evaluate.main, ["run={run}", "train.epochs=3"], "train.epochs is a setting of training"),
        (evaluate.main, ["run={run}", "output=elsewhere"], "output is a setting of training"),
        (
            embed.main,
            ["run={run}", "to=e.parquet", "method.name=rcl"],
            "method.name is a setting of training",
        ),
        (predict.main, ["run={run}", "to=c.csv", "log.wandb=true"], "classifier"),
        (embed.main, ["run={run}"], "to=FILE.parquet"),
        (embed.main, ["run={run}", "to=e.parquet", "data.eval_path=new"], "which is not read here"),
        (index.main, ["run={run}", "output=i", "data.eval_path=new"], "which is not read here"),
        (predict.main, ["run={run}", "to=c.csv", "data.eval_path=new"], "which is not read here"),
        (embed.main, ["run={run}", "to={run}/manifest.parquet"], "exists already"),
        (report.main, ["run=nowhere"], "is not a run directory"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_and_exit_2(command, arguments, said, run_dir, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.run(command, [a.format(run=run_dir) for a in arguments])
    sentence = capsys.readouterr().err
    assert raised.value.code == 2
    assert said in sentence
    assert len(sentence.strip().splitlines()) == 1


def test_a_run_goes_on_with_its_own_method_alone(run_dir):
    with pytest.raises(InputError, match=r"has method\.name=ressl; begin another for simclr"):
        continued({"output": str(run_dir), "resume": "true", "method.name": "simclr"})


def test_a_classifier_refuses_settings_of_training(tmp_path):
    with pytest.raises(InputError, match=r"log\.wandb is a setting of training"):
        predict.main([f"run={finished_run()}", f"to={tmp_path / 'c.csv'}", "log.wandb=true"])
