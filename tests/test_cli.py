"""The command line: help, versions and exit codes, without torch where none is needed."""

import importlib
import subprocess
import sys

import pytest
from click.testing import CliRunner

from raysurl import cli


def called(*arguments):
    return CliRunner().invoke(cli.group, arguments, prog_name="raysurl")


def test_help_lists_every_command_with_what_it_does():
    found = called("--help")
    assert found.exit_code == 0
    for name in cli.available():
        assert f"  {name} " in found.output
    assert "Exit codes" in found.output
    assert called("--version").output.startswith("raysurl, version ")


@pytest.mark.parametrize("name", cli.available())
def test_every_command_has_a_main_and_help(name):
    assert callable(importlib.import_module(f"raysurl.commands.{name}").main)
    found = called(name, "--help")
    assert (found.exit_code, found.output.startswith(f"Usage: raysurl {name} ")) == (0, True)


@pytest.mark.parametrize("name", cli.available())
def test_every_command_refuses_what_it_does_not_know(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = called(name, "no.such.thing=3")
    assert found.exit_code == 2
    assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_command_is_exit_2():
    assert called("pretain").exit_code == 2


PATHS = [
    *(("pretrain", ["runtime=local", "eval.protocols=[rankme]"], key) for key in ("output", "recipe")),
    *(("pretrain", ["runtime=local"], key) for key in ("init_from", "data.path")),
    ("pretrain", ["runtime=local", "recipe=seed/cifar10", "data.name=digits"], "teacher.name"),
    ("pretrain", ["resume=true"], "output"),
    ("pretrain", [], "data.labels"),
    ("evaluate", [], "run"),
    ("embed", ["to=x.parquet"], "run"),
    ("report", [], "run"),
    ("report", [], "sweep"),
    ("sweep", [], "space"),
    ("sweep", ["space=ressl_table2"], "data_root"),
    ("sweep", ["space=ressl_table2", "seeds=1"], "output"),
]
NO_PATHS = {
    "too long": "x" * 300,
    "too long within": "a/" + "é" * 200 + "/b",
    "null byte": "a\0b",
    "nobody's home": "~nobody-has-this-name/x",
    "a URI": "s3x://bucket/run",
    "no text": "\ud800",
    "too long as a whole": "/".join(["x" * 200] * 30),
}


@pytest.mark.parametrize("what", NO_PATHS)
@pytest.mark.parametrize(("command", "others", "key"), PATHS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_cannot_be_a_path_is_one_sentence(command, others, key, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = called(command, *others, f"{key}={NO_PATHS[what]}")
    assert found.exit_code == 2, found.exception
    assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["pretrain", "train.epoch=3"], ["sweep", "--help"]])
def test_help_and_mistakes_outside_a_method_need_no_torch(arguments):
    code = (
        "import sys\nfrom raysurl.cli import main\nsys.argv[1:] = " + repr(arguments) + "\ntry:\n    main()\n"
        "finally:\n    print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.splitlines()[-1] == "False"
