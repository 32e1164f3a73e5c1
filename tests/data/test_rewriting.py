"""A data set written again in random order: nothing is lost, nothing half-written is taken for whole."""

import io
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import image_folder, parquet_file, random_png
from PIL import Image

from raysurl import cli
from raysurl.commands import shuffle as shuffle_command
from raysurl.data import rewriting
from raysurl.data.names import open_samples
from raysurl.errors import InputError
from raysurl.recipe import Data
from raysurl.windows import classes_in_batches


def samples_of(**data):
    return open_samples(Data(**data), "train", 0)


def sorted_folder(root, classes=20, each=10):
    for label in range(classes):
        for i in range(each):
            path = root / f"kind {label:02}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(random_png(label * each + i, 4, 4))
    return root


@pytest.fixture
def small(monkeypatch):
    """Files of a few samples."""
    monkeypatch.setattr(rewriting, "PART_BYTES", 4000)
    monkeypatch.setattr(rewriting, "GROUP_ROWS", 4)


def written(samples, folder, *, seed=0, step=37, order=reversed):
    """Both passes in this process, in any order."""
    work = rewriting.rewriting_of(samples, seed, folder)
    for path in (work.scattered, work.done):
        path.mkdir(parents=True, exist_ok=True)
    for begin in order(range(0, len(samples), step)):
        rewriting.scatter(work, begin, min(begin + step, len(samples)))
    rows = [rewriting.collect(work, number) for number in range(work.files)]
    return work, rows


@pytest.mark.usefixtures("small")
def test_bytes_labels_and_names_are_kept_and_the_order_is_random(tmp_path):
    root = sorted_folder(tmp_path / "images")
    samples = samples_of(name="folder", path=str(root))
    work, rows = written(samples, tmp_path / "to")
    assert (sum(rows), work.files > 3) == (200, True)
    again = samples_of(name="parquet", path=str(work.done))
    table = pa.concat_tables([pq.read_table(path) for path in sorted(work.done.iterdir())])
    index = table.column("index").to_numpy()
    assert sorted(index.tolist()) == list(range(200))
    assert again.read(range(200)) == samples.read(index)
    assert again.class_names == samples.class_names
    assert again.labels.tolist() == samples.labels[index].tolist()
    assert table.column("name").to_pylist() == [samples.name_of(i) for i in index]
    assert abs(np.corrcoef(np.arange(200), index)[0, 1]) < 0.2
    mixed = classes_in_batches(np.arange(200), again.labels, 20)
    assert mixed > 11  # of 13 in a full shuffle, of 2 before
    other, _ = written(samples, tmp_path / "other", seed=1)
    assert other.place.tolist() != work.place.tolist()


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["numbers", "gaps", "names", "none", "some"])
def test_labels_of_every_kind_come_back(kind, tmp_path):
    values = {
        "numbers": np.arange(40) % 3, "gaps": np.array([3, 70, 500])[np.arange(40) % 3], "none": None,
        "names": np.arange(40) % 3, "some": [None if i % 4 else i % 3 for i in range(40)],
    }[kind]  # fmt: skip
    columns = {"image": [random_png(i, 4, 4) for i in range(40)]}
    table = pa.table(columns if values is None else {**columns, "label": values})
    if kind == "names":
        features = {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=7)
    samples = samples_of(name="parquet", path=str(tmp_path / "in"))
    work, _ = written(samples, tmp_path / "to")
    again = samples_of(name="parquet", path=str(work.done))
    index = np.argsort(work.place)
    assert (again.labels is None) == (samples.labels is None)
    if samples.labels is not None:
        assert again.original_labels().tolist() == samples.original_labels()[index].tolist()
        assert again.labels.tolist() == samples.labels[index].tolist()
        assert again.class_names == samples.class_names


@pytest.mark.usefixtures("small")
def test_stopped_work_goes_on_with_what_is_whole(tmp_path, monkeypatch):
    samples = samples_of(name="folder", path=str(sorted_folder(tmp_path / "images")))
    whole, _ = written(samples, tmp_path / "whole")
    work = rewriting.rewriting_of(samples, 0, tmp_path / "to")
    for path in (work.scattered, work.done):
        path.mkdir(parents=True)
    rewriting.scatter(work, 0, 37)
    (work.scattered / "000000000037-000000000074.arrow.999").write_bytes(b"half")
    read = []
    real = rewriting._bytes_of
    monkeypatch.setattr(rewriting, "_bytes_of", lambda s, index: read.append(int(index[0])) or real(s, index))
    written(samples, tmp_path / "to", order=iter)
    assert 0 not in read
    assert 37 in read
    for path in sorted(whole.done.iterdir()):
        assert pq.read_table(path).equals(pq.read_table(work.done / path.name))


@pytest.mark.usefixtures("small")
def test_what_is_not_whole_is_no_data_set(tmp_path):
    samples = samples_of(name="folder", path=str(sorted_folder(tmp_path / "images")))
    written(samples, tmp_path / "to")
    with pytest.raises(InputError, match=r"no \.parquet file"):
        samples_of(name="parquet", path=str(tmp_path / "to"))


@pytest.mark.usefixtures("small")
def test_lost_samples_are_left_out_and_named(tmp_path):
    root = image_folder(tmp_path / "images", 30)
    samples = samples_of(name="folder", path=str(root))
    (root / "003.png").unlink()
    work, rows = written(samples, tmp_path / "to")
    assert sum(rows) == 29
    (lost,) = rewriting.lost_of(work)
    assert (lost.index, "003.png" in lost.name) == (3, True)


def test_pixels_without_a_file_become_one_that_loses_nothing():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7), dtype=np.uint8)
    file = rewriting.encoded(pixels)
    with Image.open(io.BytesIO(file)) as image:
        assert (np.asarray(image).transpose(2, 0, 1) == pixels).all()
    assert rewriting.encoded(b"x") == b"x"
    with pytest.raises(rewriting.DecodeError, match="float32"):
        rewriting.encoded(np.zeros((3, 2, 2), np.float32))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "to=FOLDER"),
        (["to=s3://x/y", "data.path=."], "to=s3://x/y is a URI"),
        (["to={}/new"], "no data.path="),
        (["to={}", "data.path=."], "exists already"),
        (["to={}/new", "train.epochs=3"], "train.epochs= is not known"),
        (["to={}/new", "data.name=npz", "data.path={}/a.npy"], "held in memory"),
        (["to={}/new", "data.path={}/nowhere"], "does not exist"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(SystemExit) as ended:
        cli.run(shuffle_command.main, [a.format(tmp_path) for a in arguments])
    sentence = capsys.readouterr().err
    assert (ended.value.code, said in sentence) == (2, True), sentence
    assert len(sentence.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy"]


# -------------------------------------------------------------------- on a cluster


@pytest.mark.slow
def test_a_killed_rewriting_is_gone_on_with_and_the_order_is_that_of_the_seed(
    ray_session, tmp_path, capsys, monkeypatch
):
    from raysurl.scale import shuffle

    parquet_file(tmp_path / "in" / "a.parquet", 400, row_group_size=30)
    command = [f"data.path={tmp_path / 'in'}", "data.name=parquet", "seed=5"]
    monkeypatch.setattr(rewriting, "PART_BYTES", 9000)
    shuffle_command.main([*command, f"to={tmp_path / 'whole'}"])
    assert "400 samples in random order" in capsys.readouterr().out
    assert not (tmp_path / "whole.unfinished").exists()

    def stop(what, done, of):
        if what == "written":
            raise KeyboardInterrupt

    samples = samples_of(name="parquet", path=str(tmp_path / "in"))
    with pytest.raises(KeyboardInterrupt):
        shuffle.shuffle(samples, tmp_path / "to", seed=5, max_unreadable=0.01, progress=stop)
    assert not (tmp_path / "to").exists()
    with pytest.raises(InputError, match="unfinished work of other data or another seed"):
        shuffle.shuffle(samples, tmp_path / "to", seed=6, max_unreadable=0.01)
    shuffle_command.main([*command, f"to={tmp_path / 'to'}"])
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "to").iterdir())
    for name in files:
        if name.endswith(".parquet") and name[0] != ".":
            assert pq.read_table(tmp_path / "whole" / name).equals(pq.read_table(tmp_path / "to" / name))
    again = samples_of(name="parquet", path=str(tmp_path / "to"))
    assert sorted(again.read(range(400))) == sorted(samples.read(range(400)))
    shutil.rmtree(tmp_path / "to")
