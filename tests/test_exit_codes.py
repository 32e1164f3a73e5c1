"""Every command ends with 0, 1, 2, 130 or 143 as `raysurl --help` says, whatever of its work it is at."""

import errno
import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from places import ROOT
from small_run import SETTINGS, finished_index, finished_run

from raysurl import cli, stopping
from raysurl.commands.results import BEGIN, END, PAGE
from raysurl.shell import settings

# command -> arguments with which it does its work, and a function in the midst of it
SWEEP = ["space=ressl_table2", "only.dataset=CIFAR-10", "seeds=0", "--print"]
WORK = {
    "ablations": (["results=tables", "output=a.html"], "raysurl.sweep.ablations.read_folder"),
    "pretrain": ([*SETTINGS, "output=new"], "raysurl.train.trainer.train_step"),
    "evaluate": (["run=run", "eval.protocols=[knn]"], "raysurl.evaluate.evaluator.Evaluator.final"),
    "embed": (["run=run", "to=a/x.parquet"], "raysurl.curation.embedding.joined"),
    "predict": (["run=run", "data.name=digits", "to=a/x.csv"], "raysurl.commands.predict.write_new"),
    "export": (["run=run", "to=torchscript", "output=a/x"], "raysurl.export.writing.difference"),
    "duplicates": (["run=run", "output=a/copies"], "raysurl.curation.copies.duplicates"),
    "outliers": (["run=run", "output=a/out"], "raysurl.curation.outlying.outliers"),
    "cluster": (["run=run", "k=3", "output=a/out"], "raysurl.curation.clustering.cluster"),
    "select": (["run=run", "n=3", "output=a/out"], "raysurl.curation.selection.select"),
    "index": (["run=run", "output=a/index"], "raysurl.curation.stored_index.build_index"),
    "search": (
        ["index=index", "image=digit.png", "output=a/found"],
        "raysurl.curation.searching.search_images",
    ),
    "leaks": (["run=run", "output=a/copies"], "raysurl.curation.copies.leaks"),
    "serve": (["run=run", "port=0"], "raysurl.serving.model.load_served"),
    "report": (["run=run"], "raysurl.report.page.document"),
    "results": (["add=run", "name=mine"], "raysurl.commands.results.table"),
    "recipes": (["digits"], "raysurl.commands.recipes._matching"),
    "shuffle": (["data.path=images", "to=mixed"], "raysurl.commands.shuffle.open_samples"),
    "sweep": (SWEEP, "raysurl.sweep.plan.make_plan"),
    "reproduce": (["ressl_table2", *SWEEP[1:]], "raysurl.sweep.plan.make_plan"),
}
NEEDS_RAY = ("shuffle", "serve")  # to its end; of the second: scale/test_serve.py
OF_THE_RUN = ("recipe", "runtime", "eval.protocols", "encoder.channels", "eval.knn_k")
WRONG = {
    "ablations": ["results=images", "output=a.html"],
    "pretrain": ["train.epochs=none"],
    "evaluate": ["run=nowhere"],
    "embed": ["run=run", "to=run/manifest.parquet"],
    "predict": ["run=run", "to=run/x/y/z"],
    "export": ["run=run", "to=torchscript", "output=run"],
    "duplicates": ["embeddings=run/manifest.parquet", "output=copies"],
    "outliers": ["embeddings=run/manifest.parquet", "output=out", "k=0"],
    "cluster": ["embeddings=run/manifest.parquet", "output=out", "thresholds=1,2"],
    "select": ["embeddings=run/manifest.parquet", "output=out", "n=x"],
    "index": ["embeddings=run/manifest.parquet", "output=index"],
    "search": ["index=run", "image=nowhere", "output=found"],
    "leaks": ["train=run/manifest.parquet", "test=run/manifest.parquet", "output=copies"],
    "serve": ["run=nowhere", "port=0"],
    "report": ["run=nowhere"],
    "results": ["add=nowhere"],
    "recipes": ["no such recipe"],
    "shuffle": ["data.path=nowhere", "to=mixed"],
    "sweep": ["space=nowhere"],
    "reproduce": ["nowhere"],
}


@pytest.fixture
def called(tmp_path, monkeypatch, capfd):
    """A command in a folder with a finished run, one of images, a page of results: its exit code, and what it said."""
    shutil.copytree(finished_run(), tmp_path / "run")
    (tmp_path / PAGE).parent.mkdir()
    (tmp_path / PAGE).write_text(f"# é\n{BEGIN}\n{END}\n", encoding="utf-8")
    (tmp_path / "images").mkdir()
    shutil.copytree(finished_index(), tmp_path / "index")
    (tmp_path / "tables").mkdir()
    shutil.copy(ROOT / "results" / "sweeps" / "superand_table5.csv", tmp_path / "tables")
    Image.new("L", (8, 8), 9).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stopping, "end", lambda code: (_ for _ in ()).throw(SystemExit(code)))

    def call(name, arguments):
        code = 0
        try:
            cli.run_named(name, arguments)
        except SystemExit as ended:
            code = ended.code
        return code, capfd.readouterr().err

    return call


def raising_at(monkeypatch, place, raise_):
    """The function at a dotted place does this instead."""
    module, name = place.rsplit(".", 1)
    try:
        holder = importlib.import_module(module)
    except ModuleNotFoundError:  # a method
        module, inside = module.rsplit(".", 1)
        holder = getattr(importlib.import_module(module), inside)
    monkeypatch.setattr(holder, name, raise_)


def test_every_command_is_tried():
    assert set(WORK) == set(WRONG) == set(settings.commands())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(WORK) - set(NEEDS_RAY)))
def test_done_is_0(name, called):
    assert called(name, WORK[name][0])[0] == 0


SPACE = {
    "title": "Small and quick",
    "recipe": "ressl/digits",
    "fixed": {
        **dict(argument.split("=") for argument in SETTINGS if argument.partition("=")[0] not in OF_THE_RUN),
        "eval.protocols": ["knn"],
        "encoder.channels": [4],
        "eval.knn_k": [5],
    },
    "axes": {"method.tau_teacher": [0.05]},
    "objectives": {"eval/knn5_top1": "max"},
    "paper": [50.0],
    "band": {"points": 100.0},
    "seeds": [0],
}


def test_what_needs_ray_is_0_when_done_and_1_where_it_came_out_otherwise(called, ray_session):
    """A table that is outside its band, and one that has no finished trial, are failures."""
    for i in range(4):
        Image.new("RGB", (8, 8), (i * 40, 0, 0)).save(f"images/{i}.png")
    assert called("shuffle", WORK["shuffle"][0])[0] == 0
    assert len(list(Path("mixed").glob("part-*.parquet"))) == 1
    space, where = Path("small.yaml"), ["scale=full", "output=s"]
    space.write_text(yaml.safe_dump(SPACE))
    code, said = called("sweep", [f"space={space}", *where])
    assert code == 0, said
    assert len(list(Path("s/trials").glob("*/trial.json"))) == 1
    code, said = called("reproduce", [str(space), *where])
    assert code == 0, said
    space.write_text(yaml.safe_dump({**SPACE, "paper": [-50.0], "band": {"points": 1.0}}))
    assert called("reproduce", [str(space), *where]) == (
        1,
        "raysurl: Small and quick: otherwise than in the paper\n",
    )
    lost = ["train.optimizer.lr=1e30", "scale=full", "output=lost"]
    code, said = called("sweep", [f"space={space}", *lost])
    assert (code, len(said.splitlines())) == (1, 1), said
    assert "finished (1 diverged)" in said


@pytest.mark.parametrize("name", WRONG)
def test_a_mistake_is_2_and_one_sentence(name, called, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, said = called(name, WRONG[name])
    assert (code, len(said.splitlines())) == (2, 1), said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", WORK)
def test_a_full_disk_is_1_and_one_sentence(name, called, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file")

    raising_at(monkeypatch, WORK[name][1], full)
    code, said = called(name, WORK[name][0])
    assert code == 1
    assert [line for line in said.splitlines() if line.startswith("raysurl: ")] == said.splitlines()
    assert "disk full" in said


NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 1 TB\nframe 0"
    ),
)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("name", ["pretrain", "embed", "predict", "evaluate"])
def test_too_little_memory_is_1_and_one_sentence(name, error, called, monkeypatch):
    def full(*args, **kwargs):
        raise error

    raising_at(monkeypatch, WORK[name][1], full)
    code, said = called(name, WORK[name][0])
    assert (code, len(said.splitlines())) == (1, 1), said
    assert said.startswith("raysurl: out of memory: ")


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    "becomes", [None, AttributeError("half imported"), OSError(errno.EIO, "interrupted")]
)
@pytest.mark.parametrize("name", WORK)
def test_a_signal_is_130_or_143_and_says_how_to_go_on(name, becomes, signum, code, called, monkeypatch):
    """Also where a library makes another error of it, as NumPy does when it is stopped while it is imported."""

    def stop(*args, **kwargs):
        try:
            os.kill(os.getpid(), signum)
        except stopping.StoppedError:
            if becomes is None:
                raise
            raise becomes from None

    raising_at(monkeypatch, WORK[name][1], stop)
    found, said = called(name, WORK[name][0])
    assert found == code, said
    last = said.splitlines()[-1]
    assert last.startswith(f"raysurl: stopped by {'Ctrl-C' if signum == signal.SIGINT else 'SIGTERM'}; ")
    assert f"raysurl {name}" in last or name in last


# -------------------------------------------------------------------- before a command begins

IN_AN_IMPORT = """
import os, sys
from raysurl import __main__
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            os.kill(os.getpid(), {signum})
sys.meta_path.insert(0, Finder())
__main__.main()
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_program_is_imported_is_no_traceback(signum, code):
    found = subprocess.run(
        [sys.executable, "-c", IN_AN_IMPORT.format(signum=int(signum))], capture_output=True, text=True
    )
    assert (found.returncode, len(found.stderr.splitlines())) == (code, 1), found.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["recipes"], ["pretrain", "--help"], ["pretrain", "--print"]]
)
def test_what_cannot_be_printed_is_1_and_one_sentence(arguments):
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "raysurl", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (found.returncode, len(found.stderr.splitlines())) == (1, 1), found.stderr
    assert "disk full" in found.stderr
