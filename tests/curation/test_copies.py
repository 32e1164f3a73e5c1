"""Exact and near copies, within a data set and across a split, against walks and loops."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from curated import IMAGES, embedded, given, groups_by_loops, of_rows, photos
from hypothesis import example, settings
from hypothesis import given as any_of
from hypothesis import strategies as st

from raysurl import cli, curation
from raysurl.curation import copies, embedding, near
from raysurl.curation.copies import duplicates, leaks
from raysurl.curation.whitening import whitened
from raysurl.errors import InputError


def planted(
    seed: int, count: int, centres: int, spread: float, digests: int
) -> tuple[np.ndarray, list[bytes]]:
    random = np.random.default_rng(seed)
    middle = random.normal(size=(centres, 5))
    rows = middle[random.integers(centres, size=count)] + spread * random.normal(size=(count, 5))
    pixels = random.integers(0, digests, count)
    # one network sees equal pixels alike
    first = {n: i for i, n in reversed(list(enumerate(pixels.tolist())))}
    return rows[[first[n] for n in pixels.tolist()]], [bytes([n]) for n in pixels]


cases = any_of(
    st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 4), st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([3, 250]), st.sampled_from([0.5, 0.9, 0.99]),
)  # fmt: skip


@settings(max_examples=40)
@cases
@example(0, 60, 1, 0.0, 250, 0.9)  # more copies than neighbours are looked at
def test_groups_are_what_a_walk_finds(seed, count, centres, spread, digests, threshold):
    rows, pixels = planted(seed, count, centres, spread, digests)
    found = duplicates(of_rows(rows, pixels), threshold, whiten=False)
    expected = groups_by_loops(rows, pixels, threshold)
    assert [set(np.flatnonzero(found.group == g).tolist()) for g in range(found.groups)] == expected
    assert found.recall == 1
    assert found.keep.sum() == count - sum(len(group) - 1 for group in expected)
    assert found.exact.tolist() == [pixels.count(own) > 1 for own in pixels]


def test_the_largest_is_kept_and_of_equal_ones_the_first():
    rows = np.ones((5, 3))
    found = duplicates(of_rows(rows, areas=[4, 9, 9, 1, 2]), 1.0)
    assert found.keep.tolist() == [False, True, False, False, False]
    assert not found.exact.any()
    assert not found.pixels


def test_pairs_are_those_nearest_to_the_threshold():
    angles = np.cumsum([0, 0.05, 0.1, 0.2, 0.4, 0.8])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1)
    found = duplicates(of_rows(rows), float(np.cos(0.25)), whiten=False)
    cosine = rows @ rows.T
    expected = sorted(((cosine[i, j], i, j) for i in range(6) for j in range(i + 1, 6)), reverse=True)
    assert [tuple(p) for p in found.pairs.tolist()] == [(i, j) for _, i, j in expected]
    assert found.cosines == pytest.approx([c for c, _, _ in expected], abs=1e-6)
    assert found.steps[0.98] == 4


@settings(max_examples=30)
@cases
def test_leaks_are_what_loops_find(seed, count, centres, spread, digests, threshold):
    rows, pixels = planted(seed, count + 7, centres, spread, digests)
    train, test = of_rows(rows[7:], pixels[7:]), of_rows(rows[:7], pixels[:7])
    found = leaks(train, test, threshold, whiten=False)
    cosine = test.rows.astype(np.float64) @ train.rows.T
    same = np.array([[a == b for b in pixels[7:]] for a in pixels[:7]])
    expected = np.flatnonzero((same | (cosine >= threshold - 1e-6)).any(axis=1))
    assert found.leaked.tolist() == expected.tolist()
    assert all(same[q, n] == e for (q, n), e in zip(found.pairs.tolist(), found.exact.tolist(), strict=True))
    if count < copies.NEIGHBOURS:
        assert {tuple(p) for p in found.pairs.tolist()} == set(
            zip(*np.nonzero(same | (cosine >= threshold - 1e-6)), strict=True)
        )


def test_what_is_too_much_for_exact_search_is_found_by_an_index(monkeypatch):
    monkeypatch.setattr(near, "EXACT", 10)
    random = np.random.default_rng(0)
    rows = random.normal(size=(400, 16))
    rows[::4] = rows[1::4] + 0.01 * random.normal(size=(100, 16))
    found = duplicates(rows, 0.99)
    assert 0.9 < found.recall <= 1
    assert found.groups == 100
    assert (found.group[::4] == found.group[1::4]).all()


def test_whitened_rows_have_no_axis_in_common_and_tell_copies_from_others():
    random = np.random.default_rng(0)
    rows = 5 + random.normal(size=(500, 12)) * np.geomspace(1, 0.05, 12)
    rows[:50] = rows[50:100] + 0.01 * random.normal(size=(50, 12))
    white = whitened(of_rows(rows))
    assert np.linalg.norm(white.rows, axis=1) == pytest.approx(1, abs=1e-5)
    values = np.linalg.eigvalsh(np.cov(white.rows.T))
    assert values.max() / values.min() < 4
    alone = np.linalg.eigvalsh(np.cov(of_rows(rows).rows.T))
    assert alone.max() / alone.min() > 100
    some = np.arange(0, 500, 7)
    again = whitened(of_rows(rows[some]), of_rows(rows))
    assert again.rows == pytest.approx(white.rows[some], abs=1e-5)
    assert duplicates(rows, 0.9).group[100:].max() == -1
    assert (duplicates(rows, 0.9).group[:50] == duplicates(rows, 0.9).group[50:100]).all()
    assert duplicates(rows, 0.9, whiten=False).groups == 1  # all is a copy of all


def test_embeddings_of_other_networks_are_not_compared():
    one, other = of_rows(np.ones((3, 4))), of_rows(np.ones((3, 5)))
    with pytest.raises(InputError, match="of 4 and of 5 values"):
        leaks(one, other)
    one.about["model"], narrow = {"sha256": "a"}, of_rows(np.ones((3, 4)))
    narrow.about["model"] = {"sha256": "b"}
    with pytest.raises(InputError, match="different networks"):
        leaks(one, narrow)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_rows_without_a_direction_are_named(bad):
    rows = np.ones((4, 3), np.float32)
    rows[2] = bad
    with pytest.raises(InputError, match="row 2"):
        curation.duplicates(rows)


# -------------------------------------------------------------------- files


def run(name: str, *arguments: str) -> None:
    cli._main_of(name)(arguments)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """What `duplicates` writes of the photos, one of which has gone since."""
    folder = tmp_path_factory.mktemp("duplicates") / "out"
    table = pq.read_table(embedded())
    gone = photos() / "é b" / "00 copy.png"
    shutil.move(gone, gone.with_suffix(".away"))
    try:
        pq.write_table(table, folder.with_name("e.parquet"))
        run("duplicates", f"embeddings={folder.with_name('e.parquet')}", f"output={folder}", "threshold=1")
    finally:
        shutil.move(gone.with_suffix(".away"), gone)
    return folder


def test_copies_are_listed_whatever_their_files_look_like(found):
    rows = list(csv.DictReader((found / "duplicates.csv").open()))
    assert rows == [{k: str(v) for k, v in row.items()} for row in _as_csv(found / "duplicates.json")]
    group = next(r["group"] for r in rows if r["path"] == "00.png")
    exact = {r["path"] for r in rows if r["group"] == group and r["exact"] == "true"}
    assert exact == {"00.png", "00 copy.bmp", "é b/00 copy.png"}
    assert len([r for r in rows if r["group"] == group and r["keep"] == "true"]) == 1
    names = (found / "delete.txt").read_text().splitlines()
    assert sorted(names) == sorted(r["name"] for r in rows if r["keep"] == "false")
    assert pq.read_table(found / "duplicates.parquet").num_rows == len(rows)


def _as_csv(path: Path) -> list[dict[str, object]]:
    text = {True: "true", False: "false"}
    return [
        {
            k: text[v] if isinstance(v, bool) else (int(v) if v == 1.0 and k == "similarity" else v)
            for k, v in row.items()
        }
        for row in json.loads(path.read_text())
    ]


def test_the_page_shows_what_is_there_and_counts_what_is_not(found):
    page = (found / "page.html").read_text()
    assert "1 of " in page
    assert "images are no longer where they were" in page
    assert page.count("no picture") == page.count('class="gone"')
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    assert "00 copy.bmp" in page


def test_leaks_of_a_file_with_itself_are_all_and_can_end_with_1(tmp_path, capsys):
    both = [f"train={embedded()}", f"test={embedded()}", "threshold=1"]
    run("leaks", *both, f"output={tmp_path}/a")
    count = IMAGES + 3
    assert f"{count} of {count} test images have a copy" in capsys.readouterr().out
    assert len((tmp_path / "a" / "test.txt").read_text().splitlines()) == count
    with pytest.raises(SystemExit) as raised:
        cli.run_named("leaks", [*both, f"output={tmp_path}/b", "fail=true"])
    assert raised.value.code == 1
    assert (tmp_path / "b" / "page.html").is_file()


def test_interrupted_embedding_goes_on_and_is_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(embedding, "PART", 10)
    whole, target = tmp_path / "whole.parquet", tmp_path / "e.parquet"
    embedding.write_embeddings(given(), whole)
    real, calls = embedding.embedded, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(embedding, "embedded", stopping)
    with pytest.raises(KeyboardInterrupt):
        embedding.write_embeddings(given(), target)
    assert not target.exists()
    with pytest.raises(InputError, match="unfinished embeddings"):
        embedding.write_embeddings(given(**{"data.max_unreadable": "0.5"}), target)
    embedding.write_embeddings(given(), target)
    assert len(calls) == 4  # one, one that was stopped, and the two that were missing
    assert pq.read_table(target).equals(pq.read_table(whole))
    assert pq.read_metadata(target).num_row_groups == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.parquet", "whole.parquet"]
    capsys.readouterr()
    embedding.write_embeddings(given(), target)
    assert "there already" in capsys.readouterr().out


WRONG = [
    (["embeddings={e}", "output={o}", "threshold=0"], "threshold=0 must be"),
    (["embeddings={e}", "output={o}", "threshold=1.5"], "threshold=1.5 must be"),
    (["embeddings={e}", "output={o}", "threshold=nan"], "threshold=nan must be"),
    (["embeddings={e}", "output={o}", "data.path=x"], "leave one of them out"),
    (["embeddings={e}"], "output=DIR"),
    (["output={o}"], "embeddings=FILE.parquet"),
    (["embeddings={o}/none.parquet", "output={o}"], "is not there"),
    (["embeddings={e}", "output={here}"], "exists already"),
    (["embeddings={e}", "output={e}/x"], "is no folder"),
    (["embeddings={here}/curated.py", "output={o}"], "is not a readable Parquet file"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_what_cannot_be_used_is_one_sentence(arguments, said, tmp_path, capsys):
    given = {"e": embedded(), "o": tmp_path / "out", "here": Path(__file__).parent}
    with pytest.raises(SystemExit) as raised:
        cli.run_named("duplicates", [a.format(**given) for a in arguments])
    sentence = capsys.readouterr().err
    assert (raised.value.code, len(sentence.splitlines())) == (2, 1)
    assert said in sentence
    assert not list(tmp_path.iterdir())
