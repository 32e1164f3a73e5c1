"""Indexes against exact search, resumed building, and images that are looked up."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from curated import IMAGES, embedded, photos
from sklearn.neighbors import NearestNeighbors
from small_run import finished_run

from raysurl import cli
from raysurl.curation import indexing, stored_index
from raysurl.curation.indexing import build, kind_for, nearest_exactly, rows_at
from raysurl.curation.rows import embeddings_of
from raysurl.curation.stored_index import build_index, open_index


def clustered(count: int = 1200, dim: int = 16) -> np.ndarray:
    random = np.random.default_rng(0)
    middle = random.normal(size=(30, dim))
    return middle[random.integers(30, size=count)] + 0.3 * random.normal(size=(count, dim))


def table_of(rows: np.ndarray) -> pa.Table:
    names = [f"i{n}" for n in range(len(rows))]
    flat = pa.array(rows.astype(np.float32).ravel())
    nothing = np.full(len(rows), -1)
    return pa.table(
        {"name": names, "path": names, "row": nothing, "label": nothing,
         "embedding": pa.FixedSizeListArray.from_arrays(flat, rows.shape[1])}
    )  # fmt: skip


@pytest.mark.parametrize(("kind", "least"), [("flat", 1.0), ("ivf", 0.95), ("pq", 0.3)])
def test_recall_is_what_another_library_measures(kind, least):
    of = embeddings_of(clustered())
    index, found = build(of, kind)
    exact = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute").fit(of.rows)
    truth = exact.kneighbors(of.rows, return_distance=False)[:, 1:]
    other = indexing.without_itself(index.search(of.rows, 11)[1], np.arange(len(of)))
    measured = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(truth, other, strict=True)])
    assert found.recall >= least
    assert measured == pytest.approx(found.recall, abs=0.04)  # of 256 rows, and of all


def test_exact_search_of_a_stream_is_that_of_all_rows():
    of = embeddings_of(clustered(20_000, 4))  # several blocks
    which = np.array([0, 5, 8191, 8192, 19_999])
    queries = rows_at(of, which)
    cosine, index = nearest_exactly(of, queries, 20, which)
    expected = of.rows[which] @ of.rows.T
    expected[np.arange(5), which] = -2
    order = np.argsort(-expected, axis=1, kind="stable")[:, :20]
    assert (queries == of.rows[which]).all()
    assert cosine == pytest.approx(np.take_along_axis(expected, order, 1), abs=1e-6)
    assert (np.sort(index) == np.sort(order)).mean() > 0.98  # of equal cosines any


def test_the_kind_follows_from_size_and_memory(monkeypatch):
    monkeypatch.setattr(indexing, "free_memory", lambda: 2**30)
    assert [kind_for(n, 512) for n in (49_999, 50_000, 500_000, 600_000)] == ["flat", "ivf", "ivf", "pq"]


@pytest.mark.slow
def test_building_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "SHARD", 8192)
    pq.write_table(table_of(clustered(20_000, 8)), tmp_path / "e.parquet")
    real, written = indexing.write_whole, []

    def stopping(index, path):
        written.append(path.name)
        if len(written) == 3:
            raise KeyboardInterrupt
        real(index, path)

    monkeypatch.setattr(indexing, "write_whole", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_index(str(tmp_path / "e.parquet"), tmp_path / "a", "ivf")
    with pytest.raises(ValueError, match="unfinished index of other embeddings"):
        build_index(str(tmp_path / "e.parquet"), tmp_path / "a", "flat")
    build_index(str(tmp_path / "e.parquet"), tmp_path / "a", "ivf")
    assert written == ["empty.faiss", "000000.faiss", "000001.faiss", "000001.faiss", "000002.faiss"]
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["index.faiss", "index.json", "rows.parquet"]
    build_index(str(tmp_path / "e.parquet"), tmp_path / "b", "ivf")
    one, other = (open_index(str(tmp_path / name)) for name in "ab")
    queries = embeddings_of(clustered(50, 8)).rows
    assert (one.search(queries, 10)[1] == other.search(queries, 10)[1]).all()
    assert len(one) == 20_000


# -------------------------------------------------------------------- images


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("index") / "index"
    cli._main_of("index")([f"embeddings={embedded()}", f"output={folder}"])
    return folder


def test_an_image_is_found_first_and_its_copies_with_it(index, tmp_path, capsys):
    asked = tmp_path / "é query.jpg.png"
    shutil.copy(photos() / "00.png", asked)
    cli._main_of("search")([f"index={index}", f"image={asked}", f"output={tmp_path}/out", "k=3"])
    printed = capsys.readouterr().out.splitlines()
    copies = {str(photos() / name) for name in ("00.png", "00 copy.bmp", "é b/00 copy.png")}
    assert {line.split("  ", 1)[1] for line in printed[:3]} == copies
    assert all(line.startswith("1.0000") for line in printed[:3])
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert [(r["query"], r["rank"]) for r in rows] == [(str(asked), str(n)) for n in (1, 2, 3)]
    assert {r["name"] for r in json.loads((tmp_path / "out" / "results.json").read_text())} == copies
    page = (tmp_path / "out" / "page.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page.replace("http-equiv", "")


def test_each_image_of_a_folder_is_looked_up_and_what_is_none_is_left_out(index, tmp_path, capsys):
    for name in ("03.png", "04.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copy(photos() / name, tmp_path / "in")
    (tmp_path / "in" / "bad.png").write_bytes(b"no image")
    cli._main_of("search")([f"index={index}", f"image={tmp_path}/in", f"output={tmp_path}/out", "k=1"])
    assert "skipped" in capsys.readouterr().out
    table = pq.read_table(tmp_path / "out" / "results.parquet")
    assert table["path"].to_pylist() == ["03.png", "04.png"]


WRONG = [
    (["index={index}", "image={here}", "output={o}"], "it is not an image"),
    (["index={index}", "image={o}", "output={o}"], "is not there"),
    (["index={index}", "image={png}", "output={o}", f"k={IMAGES + 4}"], "is more than the"),
    (["index={index}", "image={png}", "output={o}", "k=0"], "k=0 must be"),
    (["index={run}", "image={png}", "output={o}"], "is not an index"),
    (["index={index}", "image={png}", "output={o}", "run={other}"], "is not the run that made"),
    (["index={index}", "image={png}", "output={o}", "data.path=x"], "not a setting of search"),
    (["index={bare}", "image={png}", "output={o}"], "holds no encoder"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_cannot_be_looked_up_is_one_sentence(arguments, said, index, tmp_path, capsys):
    bare, other = tmp_path / "bare", tmp_path / "other"
    shutil.copytree(index, bare)
    (bare / "encoder.safetensors").unlink()
    shutil.copytree(finished_run(), other)
    with (other / "encoder.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    places = {"index": index, "here": __file__, "png": photos() / "01.png", "run": finished_run()}
    places |= {"other": other, "bare": bare, "o": tmp_path / "out"}
    with pytest.raises(SystemExit) as raised:
        cli.run_named("search", [a.format(**places) for a in arguments])
    sentence = capsys.readouterr().err
    assert (raised.value.code, len(sentence.splitlines())) == (2, 1), sentence
    assert said in sentence
    assert not (tmp_path / "out").exists()


def test_a_damaged_index_is_one_sentence(index, tmp_path):
    for name in ("index.faiss", "index.json", "rows.parquet"):
        broken = tmp_path / name.replace(".", "")
        shutil.copytree(index, broken)
        content = (broken / name).read_bytes()
        (broken / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match="is not an index, or not a whole one"):
            stored_index.open_index(str(broken))
