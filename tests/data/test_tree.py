"""Folders as they are on disks: links, files under several names, names of any bytes, and what cannot be opened."""

import os
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import image_folder, parquet_file, random_png

from raysurl.data import storage, tree
from raysurl.data.dataset import Samples
from raysurl.data.names import open_samples
from raysurl.data.source import Source, open_source
from raysurl.errors import InputError, printable
from raysurl.recipe import Data


def listed(root: Path) -> list[str]:
    return [entry.path for entry in tree.walk(str(root)).files]


def opened(path: Path, **more: object) -> tuple[Samples, Source]:
    data = Data(**{"name": "folder", "path": str(path), **more})
    samples = open_samples(data, "train", 0)
    assert samples is not None
    return samples, open_source(samples, data)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """data/c0, c1, c2 with two images each; beside it a folder with another."""
    image_folder(tmp_path / "data", 6, classes=3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "far.png").write_bytes(random_png(9))
    return tmp_path / "data"


ONCE = [f"class{c}/{i:03}.png" for c in range(3) for i in (c, c + 3)]


# -------------------------------------------------------------------- one file under several paths


@pytest.mark.parametrize(
    "links",
    [
        {"class0/self": ".", "class1/self": ".", "class2/self": "."},
        {"class0/up": ".."},
        {"class0/up": "../.."},
        {"class0/root": "/"},
        {"again": "class0", "class1/deep": "../class2"},
        {"aaa.png": "class0/000.png", "class2/zzz.png": "../class0/000.png"},
        {"a": "b", "b": "c", "c": "class0"},
        {"class0/x": "../class1/y", "class1/y": "../class0"},
    ],
    ids=["itself", "parent", "above the root", "/", "folders", "files", "chain", "two that meet"],
)
def test_a_link_to_what_is_listed_adds_nothing(three: Path, links: dict[str, str]) -> None:
    for name, target in links.items():
        (three / name).symlink_to(target)
    found = tree.walk(str(three))
    assert [entry.path for entry in found.files] == ONCE
    assert found.repeated == sorted(links)
    assert f"{len(links)} path" in found.remark()
    samples, source = opened(three)
    assert len(samples) == 6
    assert samples.class_names == ("class0", "class1", "class2")
    assert sorted(links)[0] in source.describe()


def test_what_a_run_has_written_is_no_data(three: Path) -> None:
    for name in ("runs/first", "class1/second"):
        written = three / name / "samples"
        written.mkdir(parents=True)
        (written / "thumbnails.webp").write_bytes(random_png(1))
        for file in tree.OF_A_RUN:
            (three / name / file).write_text("")
    found = tree.walk(str(three))
    assert [entry.path for entry in found.files] == ONCE
    assert found.runs == ["class1/second", "runs/first"]
    samples, source = opened(three)
    assert samples.class_names == ("class0", "class1", "class2")
    assert "2 folders of runs are left out: class1/second, runs/first" in source.describe()
    # what is asked for by its own name is read
    assert listed(three / "runs" / "first") == sorted([*tree.OF_A_RUN, "samples/thumbnails.webp"])


def test_a_folder_outside_is_followed_once_and_its_files_keep_the_first_path(three: Path) -> None:
    for name in ("z", "class0/y", "class1/far.png"):
        (three / name).symlink_to(three.parent / "other" / ("far.png" if name.endswith("png") else ""))
    found = tree.walk(str(three))
    assert [entry.path for entry in found.files] == sorted([*ONCE, "class0/y/far.png"])
    assert found.repeated == ["class1/far.png", "z"]
    assert listed(three) == listed(three)


def test_hard_links_and_links_whose_files_link_back(three: Path) -> None:
    os.link(three / "class0/000.png", three / "class1/copy.png")
    (three.parent / "other" / "back").symlink_to(three)
    (three / "class2" / "out").symlink_to(three.parent / "other")
    found = tree.walk(str(three))
    assert [entry.path for entry in found.files] == sorted([*ONCE, "class2/out/far.png"])
    assert found.repeated == ["class1/copy.png", "class2/out/back"]


def test_the_root_may_be_a_link_itself_and_classes_may_be_links(three: Path) -> None:
    (three.parent / "alias").symlink_to(three)
    assert listed(three.parent / "alias") == ONCE
    view = three.parent / "view"
    view.mkdir()
    for name in ("class0", "class2"):
        (view / name).symlink_to(three / name)
    samples, _ = opened(view)
    assert (len(samples), samples.class_names) == (4, ("class0", "class2"))


def test_hidden_folders_are_reached_by_links_alone(tmp_path: Path) -> None:
    image_folder(tmp_path / ".store", 3)
    for i in range(3):
        (tmp_path / f"{i}.png").symlink_to(f".store/{i:03}.png")
    assert listed(tmp_path) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_what_the_test_set_holds_is_not_trained_on(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        image_folder(tmp_path / "data", 12, classes=3)
        image_folder(tmp_path / "test", 3, classes=3)
        for c in range(3):
            (tmp_path / f"data/class{c}/held").symlink_to(tmp_path / f"test/class{c}")
    else:
        parquet_file(tmp_path / "data/a.parquet", 12)
        parquet_file(tmp_path / "test/b.parquet", 3)
        (tmp_path / "data/c.parquet").symlink_to(tmp_path / "test/b.parquet")
    paths = {"path": tmp_path / "data", "name": kind, "eval_path": str(tmp_path / "test")}
    samples, source = opened(**paths)
    assert len(samples) == 12
    assert "that data.eval_path holds too left out of training" in source.describe()
    assert len(open_samples(Data(**{**paths, "path": str(paths["path"])}), "eval", 0) or []) == 3
    same, told = opened(tmp_path / "test", name=kind, eval_path=str(tmp_path / "test"))
    assert len(same) == 3
    assert "say nothing of new images" in told.describe()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_links_whatsoever_list_each_file_once(tmp_path_factory: pytest.TempPathFactory, data) -> None:
    root = tmp_path_factory.mktemp("tree")
    folders = [root / "t", root / "t/a", root / "t/a/b", root / "t/c", root / "out"]
    for folder in folders:
        folder.mkdir()
        (folder / "x.png").write_bytes(str(folder).encode())
    places = [*folders, *(folder / "x.png" for folder in folders), root, root / "nowhere"]
    for k in range(data.draw(st.integers(0, 6))):
        at, to = data.draw(st.sampled_from(folders)), data.draw(st.sampled_from(places))
        (at / f"{data.draw(st.sampled_from('akz'))}{k}").symlink_to(to)
    found = tree.walk(str(root / "t"))
    real = [os.path.realpath(root / "t" / entry.path) for entry in found.files]
    assert len(real) == len(set(real))
    inner = {os.path.realpath(folder / "x.png") for folder in folders[:4]}
    assert inner <= set(real) <= inner | {os.path.realpath(root / "out/x.png")}
    assert {"x.png", "a/x.png", "a/b/x.png", "c/x.png"} <= {entry.path for entry in found.files}  # their own


# -------------------------------------------------------------------- what cannot be opened


def test_dangling_links_pipes_and_sockets_are_counted_and_named(tmp_path: Path) -> None:
    image_folder(tmp_path, 40)
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png")) if len(str(tmp_path)) < 90 else (tmp_path / "s.png").symlink_to(
            "x"
        )
    (tmp_path / "notes.txt").symlink_to("nowhere.txt")  # no image by its ending
    with pytest.raises(
        InputError, match=r"4 of 44 samples are unreadable.*data\.max_unreadable=0\.01.*gone\.png"
    ):
        opened(tmp_path)
    for mode in ("resident", "streaming"):
        _, source = opened(tmp_path, max_unreadable=0.1, mode=mode)
        names = [Path(lost.name).name for lost in source.skipped]
        assert names == ["gone.png", "loop.png", "pipe.png", "s.png"]
        assert source.readable.sum() == 40


def test_a_folder_that_is_gone_counts_as_its_neighbours_do(tmp_path: Path) -> None:
    image_folder(tmp_path, 60, classes=3)
    (tmp_path / "class3").symlink_to("/nowhere/at/all")
    with pytest.raises(
        InputError, match=r"about 20 of 80 samples.*class3 \(it is a link to /nowhere/at/all.*about 20"
    ):
        opened(tmp_path)
    samples, source = opened(tmp_path, max_unreadable=0.25)
    assert len(samples) == 60
    assert samples.class_names == ("class0", "class1", "class2")
    assert "20 unreadable samples skipped" in source.describe()
    assert "class3" in source.describe()


@pytest.fixture
def as_nobody():
    """This process without root's right to open everything."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def shut(*paths: Path) -> None:
    for path in paths:
        path.chmod(0)


def test_no_permission(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if os.geteuid() == 0:
        for above in [tmp_path, *tmp_path.parents][:-2]:
            above.chmod(above.stat().st_mode | 0o055)
    root = image_folder(tmp_path / "images", 50, classes=5)
    parquet_file(tmp_path / "table/a.parquet", 30)
    parquet_file(tmp_path / "table/b.parquet", 30)
    shut(root / "class0/000.png", root / "class4", tmp_path / "table/b.parquet")
    request.getfixturevalue("as_nobody")
    with pytest.raises(
        InputError, match=r"class4 \(it cannot be listed: permission denied, about 10 samples\)"
    ):
        opened(root, max_unreadable=0.1)
    samples, source = opened(root, max_unreadable=0.3)
    assert len(samples) == 40
    assert [Path(lost.name).name for lost in source.skipped] == ["000.png", "class4"]
    assert "permission denied" in source.skipped[0].reason
    with pytest.raises(InputError, match=r"about 30 of 60 samples.*b\.parquet .*permission denied"):
        opened(tmp_path / "table", name="parquet")
    rows, source = opened(tmp_path / "table", name="parquet", max_unreadable=0.5)
    assert len(rows) == 30
    assert "b.parquet" in source.describe()
    with pytest.raises(InputError, match=r"cannot be listed: permission denied"):
        opened(root / "class4")


def test_shards_that_are_gone_or_broken(tmp_path: Path) -> None:
    for name in "abc":
        parquet_file(tmp_path / f"{name}.parquet", 30)
    (tmp_path / "d.parquet").symlink_to("nowhere.parquet")
    (tmp_path / "b.parquet").write_bytes((tmp_path / "b.parquet").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"about 60 of 120 samples.*d\.parquet.*b\.parquet"):
        opened(tmp_path, name="parquet", max_unreadable=0.4)
    samples, source = opened(tmp_path, name="parquet", max_unreadable=0.6)
    assert len(samples) == 60
    assert "60 unreadable samples skipped" in source.describe()
    for name in "ac":
        (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(InputError, match="no Parquet file could be opened"):
        opened(tmp_path, name="parquet", max_unreadable=1)


def test_a_path_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for path, says in (
        (tmp_path / "gone", "is a link to nowhere, which does not exist"),
        (tmp_path / "loop", "too many levels"),
        (tmp_path / "pipe", "neither a file nor a folder"),
        (tmp_path / ("x" * 300), "too long"),
        (f"{tmp_path}/a\0b", "null byte"),
        (f"{tmp_path}/caf\udce9", "not UTF-8"),
    ):
        for name in ("folder", "parquet", "npz"):
            with pytest.raises(InputError, match=says) as caught:
                open_samples(Data(name=name, path=str(path)), "train", 0)
            assert "\n" not in str(caught.value)


# -------------------------------------------------------------------- names


@settings(max_examples=200)
@given(st.binary(max_size=40))
def test_every_name_has_a_text_and_comes_back(name: bytes) -> None:
    there = os.fsdecode(name)
    text = tree.text_of(there)
    text.encode()
    assert tree.name_of(text) == there
    assert "\n" not in printable(text)


NAMES = st.binary(min_size=1, max_size=12).filter(
    lambda name: not {0, ord("/")} & set(name) and not name.startswith(b".")
)


@settings(max_examples=25)
@given(st.lists(NAMES, min_size=2, max_size=5, unique=True), st.booleans())
def test_files_and_folders_of_any_name_are_read(
    tmp_path_factory: pytest.TempPathFactory, names: list[bytes], folders: bool
) -> None:
    root = tmp_path_factory.mktemp("names")
    for i, name in enumerate(names):
        above = os.fsencode(root) + (b"/" + name if folders else b"")
        os.makedirs(above, exist_ok=True)
        with open(above + b"/" + name + b".png", "wb") as file:
            file.write(random_png(i))
    samples, source = opened(root, labels="folder" if folders else None)
    assert len(samples) == len(names)
    assert not source.skipped
    assert all(isinstance(sample, np.ndarray) for sample in samples.load(range(len(names))))
    if folders:
        assert samples.class_names == tuple(sorted(tree.text_of(os.fsdecode(name)) for name in names))
    assert "\n" not in source.describe()


def test_names_that_are_no_utf8_in_a_run_and_its_resumption(tmp_path: Path) -> None:
    image_folder(tmp_path / "data", 8, classes=2)
    parquet_file(tmp_path / "table/a.parquet", 8)
    os.rename(tmp_path / "data/class0", os.fsencode(tmp_path) + b"/data/caf\xe9")
    os.rename(tmp_path / "table/a.parquet", os.fsencode(tmp_path) + b"/table/\xff\n.parquet")
    (tmp_path / "data/plain\\x41").mkdir()
    (tmp_path / "data/plain\\x41/a.png").write_bytes(random_png(3))
    for name, folder, count in (("folder", "data", 9), ("parquet", "table", 8)):
        data = Data(name=name, path=str(tmp_path / folder))
        for _ in range(2):
            samples = open_samples(data, "train", 0)
            assert samples is not None
            source = open_source(samples, data, manifest_path=tmp_path / f"{name}.manifest")
            assert source.readable.sum() == count
    assert open_samples(Data(name="folder", path=str(tmp_path / "data")), "train", 0).class_names == (  # type: ignore[union-attr]
        "caf\\xe9",
        "class1",
        "plain\\x5cx41",
    )


@pytest.mark.parametrize("folder", ["set[1]", "[", "a*b", "what?", "[!x]", "[z-a]"])
def test_wildcards_in_names_that_exist_are_letters(tmp_path: Path, folder: str) -> None:
    parquet_file(tmp_path / folder / "x[1].parquet", 3)
    for path in (folder, f"{folder}/x[1].parquet"):
        assert len(opened(tmp_path / path, name="parquet")[0]) == 3, path


def test_globs(tmp_path: Path) -> None:
    for name in ("a1/x.parquet", "a2/y.parquet", "b1/deep/z.parquet", "a1/x.txt"):
        parquet_file(tmp_path / name, 2)
    for glob, count in (
        ("a?/*.parquet", 4),
        ("a[12]/*", 6),
        ("a[!1]/*", 2),
        ("**/*.parquet", 6),
        ("[ab]1/**/*.parquet", 4),
    ):
        assert len(opened(tmp_path / glob, name="parquet")[0]) == count, glob
    with pytest.raises(InputError, match=r"does not exist|no file matches"):
        opened(tmp_path / "[/x.parquet", name="parquet")
    with pytest.raises(InputError, match="no file matches"):
        opened(tmp_path / "[*/[.parquet", name="parquet")


def test_local_uris_are_local_folders(three: Path) -> None:
    (three / "class0/self").symlink_to(".")
    for scheme in ("file", "local"):
        assert len(storage.list_files(f"{scheme}://{three}", "data.path").files) == 6
