"""evaluate, embed and report on a finished run, as a person starts them."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

pytest.importorskip("ray")
pytest.importorskip("optuna")


from raysurl import cli
from raysurl.commands import embed, evaluate, report
from raysurl.recipe import load_recipe
from raysurl.run import pretrain

SETTINGS = (
    "runtime=local", "method.hidden=32", "method.dim=16", "data.limit=256", "train.batch_size=64", "train.epochs=2",
    "eval.linear_epochs=2", "log.tensorboard=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands") / "run"
    return pretrain(load_recipe([*SETTINGS, f"output={folder}"]))


def test_evaluate_of_a_run_repeats_its_final_metrics(run_dir, capsys):
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
    assert table.column_names == ["index", "name", "label", "embedding"]
    assert table.num_rows == 256
    vectors = np.stack(table.column("embedding").to_numpy(zero_copy_only=False))
    assert vectors.shape == (256, 256)
    assert np.isfinite(vectors).all()
    assert "256 embeddings of 256 dimensions" in capsys.readouterr().out


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
        (embed.main, ["run={run}"], "to=FILE.parquet"),
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
