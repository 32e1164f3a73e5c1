"""The command line: help, versions and exit codes, without torch where none is needed."""

import importlib
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from raysurl import cli
from raysurl.commands.results import BEGIN, END, PAGE
from raysurl.recipe import load_recipe, method_config
from raysurl.report.recipe import flatten
from raysurl.shell import settings
from raysurl.views import POLICIES


def called(*arguments):
    runner = CliRunner(env={"COLUMNS": "120"})
    return runner.invoke(cli.group, arguments, prog_name="raysurl")


def test_help_lists_every_command_with_what_it_does():
    found = called("--help")
    assert found.exit_code == 0
    for name in settings.commands():
        assert f"  {name} " in found.output
    assert "Exit codes" in found.output
    assert called("--version").output.startswith("raysurl, version ")


@pytest.mark.parametrize("name", settings.commands())
def test_every_command_has_a_main_and_help(name):
    assert callable(importlib.import_module(f"raysurl.commands.{name}").main)
    found = called(name, "--help")
    assert (found.exit_code, found.output.startswith(f"Usage: raysurl {name} ")) == (0, True)


@pytest.mark.parametrize("name", settings.commands())
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
    ("predict", ["to=x.csv"], "run"),
    ("export", ["to=torchscript", "output=x"], "run"),
    ("export", ["to=torchscript", "run=x"], "output"),
    *(("embed", ["run=x"], "to.parquet"), ("predict", ["run=x"], "to.csv")),
    *(("results", [], "add"), ("results", ["add=x"], "name")),
    *(("reproduce", ["ressl_table2"], key) for key in ("data_root", "output")),
    *(("ablations", [], key) for key in ("results", "speeds", "output.html")),
    *(("duplicates", ["output=x"], key) for key in ("embeddings", "run")),
    *(("index", ["embeddings=x.parquet"], "output"), ("leaks", ["train=x", "output=y"], "test")),
    *(("search", ["index=x", "output=y"], "image"), ("search", ["image=x", "output=y"], "index")),
    ("shuffle", ["data.path=x"], "to"),
    ("shuffle", ["to=x"], "data.path"),
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


@pytest.mark.slow
@pytest.mark.parametrize("what", NO_PATHS)
@pytest.mark.parametrize(("command", "others", "key"), PATHS, ids=lambda x: x if isinstance(x, str) else "")
def test_what_cannot_be_a_path_is_one_sentence(command, others, key, what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / PAGE).parent.mkdir()
    (tmp_path / PAGE).write_text(f"{BEGIN}\n{END}\n")
    key, _, ending = key.partition(".")
    if key == "data":
        key, ending = f"{key}.{ending}", ""
    found = called(command, *others, f"{key}={NO_PATHS[what]}{ending and '.'}{ending}")
    assert found.exit_code == 2, found.exception
    assert len(found.stderr.strip().splitlines()) == 1
    assert os.listdir(tmp_path) == ["docs"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("pretrain", ["runtime=local", "output={}"]),
        ("pretrain", ["runtime=local", "output={}/a"]),
        ("sweep", ["space=ressl_table2", "--print", "output={}"]),
        ("ablations", ["output={}.html"]),
        ("embed", ["run=x", "to={}.parquet"]),
        ("predict", ["run=x", "to={}.csv"]),
        ("duplicates", ["embeddings=x", "output={}"]),
        ("shuffle", ["data.path=x", "to={}"]),
        ("export", ["run=x", "to=torchscript", "output={}"]),
        ("report", ["run={}"]),
    ],
)
def test_names_that_are_not_utf8_are_not_written(command, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = called(command, *(a.format("caf\udce9") for a in arguments))
    assert found.exit_code == 2, found.exception
    assert len(found.stderr.strip().splitlines()) == 1
    assert "caf\\xe9" in found.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_working_directory_that_is_not_utf8_holds_no_results(tmp_path, monkeypatch):
    there = tmp_path / "caf\udce9"
    there.mkdir()
    monkeypatch.chdir(there)
    for arguments in (["runtime=local"], ["runtime=local", "output=out"]):
        found = called("pretrain", *arguments)
        assert (found.exit_code, "is not UTF-8" in found.stderr) == (2, True), found.exception
    assert not list(there.iterdir())


LIGHT = [
    ["--help"],
    ["pretrain", "train.epoch=3"],
    ["sweep", "--help"],
    ["sweep", "space=no_such_space"],
    ["sweep", "spcae=ressl_table2"],
    ["reproduce", "no_such_space"],
    ["pretrain", "recipe=rcl/cifar10", "--help"],
    ["recipes"],
    ["recipes", "no such thing at all"],
]


def test_help_and_mistakes_outside_a_method_need_no_torch():
    code = (
        f"import sys\nfrom raysurl.cli import main\nfor arguments in {LIGHT!r}:\n    sys.argv[1:] = arguments\n"
        "    try:\n        main()\n    except SystemExit:\n        pass\n"
        "    assert 'torch' not in sys.modules, arguments\nprint('all', end='')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.endswith("all"), found.stderr


# -------------------------------------------------------------------- settings in --help


def defaults(method):
    """Dotted key -> default, from the types themselves."""
    tree = load_recipe(["data.path=x"]).model_dump(mode="json")
    tree["data"]["path"] = None
    tree["method"] = method_config({"name": method}).model_dump(mode="json")
    found = flatten(tree) | {"method.name": "ressl"}
    found.pop("method.hierarchy.name", None)  # of MethodConfig, where it is a section of another
    policy = POLICIES["plain"].model_dump(mode="json")
    return found | {f"views.policies.VIEW.{key}": value for key, value in policy.items()}


@pytest.mark.parametrize("method", ["ressl", "rcl", "seed", "superand", "mvmr"])
def test_help_knows_every_setting_of_a_recipe_with_its_type_and_default(method):
    read = {setting.key: setting for setting in settings.of_recipe(method)}
    expected = defaults(method)
    assert set(read) == set(expected)
    for key, setting in read.items():
        assert setting.about, key
        assert setting.type[0].islower() or setting.type[0] in "[0123456789", (key, setting.type)
        value = expected[key]
        if isinstance(value, bool):
            assert (setting.default, setting.choices[:2]) == (str(value).lower(), setting.choices[:2])
        elif isinstance(value, int | float):
            assert float(setting.default) == value, key
        elif value is None or isinstance(value, str):
            assert setting.default == str(value).replace("None", "none"), key
    help_text = called("pretrain", f"method.name={method}", "--help").output
    assert not [key for key in expected if f"  {key} " not in help_text]


def test_every_method_s_settings_are_described():
    for method in settings.methods():
        for setting in settings.of_method(method):
            assert setting.about, (method, setting.key)
    assert settings.of_method("ressl")[0].choices == settings.methods()


def test_choices_are_those_that_are_valid():
    for setting in settings.of_recipe():
        if setting.key.startswith(("views.policies", "method.name", "recipe", "data.name", "eval.protocols")):
            continue
        for choice in setting.choices:
            arguments = ["data.path=x", f"{setting.key}={choice}"]
            if setting.key not in ("resume", "train.sampler", "eval.features"):  # of a method's memory
                load_recipe(arguments)


@pytest.mark.parametrize("name", sorted({*settings.commands()} - {"recipes"}))
def test_a_command_s_settings_are_in_its_help(name):
    own, of_recipe = settings.of_command(name), settings.taken(name)
    assert own or of_recipe
    help_text = called(name, "--help").output
    for setting in [*own, *of_recipe]:
        assert f"  {setting.key} " in help_text
        assert setting.about
    module = importlib.import_module(f"raysurl.commands.{name}")
    if hasattr(module, "KEYS"):
        assert {s.key for s in own} == {*module.KEYS, "only.AXIS"}


def test_recipes_lists_recipes_data_and_methods_with_their_papers():
    from raysurl.data.names import KINDS
    from raysurl.recipe import packaged_recipes
    from raysurl.recipe.method_config import available

    output = called("recipes").output
    listed = {line.split()[0] for line in output.splitlines() if line.startswith("  ") and line[2] != " "}
    assert listed == {*packaged_recipes(), *KINDS, *available()}
    flat = " ".join(output.split())
    for paper in ("Zheng et al.", "Kinakh et al., 2023", "TNNLS 2023", "2019", "Caron et al. 2020"):
        assert paper in flat
    only = called("recipes", "stl10", "GenURL").output
    assert "genurl/stl10" in only
    assert "genurl/cifar10" not in only
    assert called("recipes", "no such thing").exit_code == 2


# -------------------------------------------------------------------- completion


def offered(*words):
    """What bash is told for the last of these words, as its own variables give them."""
    given = {
        "_RAYSURL_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    runner = CliRunner(env=given)
    output = runner.invoke(cli.group, [], prog_name="raysurl", complete_var="_RAYSURL_COMPLETE").output
    return [line.partition(",")[::2] for line in output.splitlines()]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["raysurl", "pret"], ("plain", "pretrain")),
        (["raysurl", "pretrain", "train.ep"], ("plain", "train.epochs=")),
        (["raysurl", "pretrain", "recipe", "=", "rcl/ci"], ("plain", "rcl/cifar10")),
        (["raysurl", "pretrain", "recipe=rcl/ci"], ("plain", "recipe=rcl/cifar10")),
        (["raysurl", "pretrain", "method.name", "=", "superand", "method.ag"], None),
        (
            ["raysurl", "pretrain", "method.name", "=", "superand", "method.aug_t"],
            ("plain", "method.aug_tau="),
        ),
        (
            ["raysurl", "pretrain", "recipe=rcl/cifar10", "method.hierarchy.k"],
            ("plain", "method.hierarchy.kind="),
        ),
        (["raysurl", "pretrain", "runtime", "=", "lo"], ("plain", "local")),
        (["raysurl", "sweep", "space", "=", "ressl_table2"], ("plain", "ressl_table2")),
        (["raysurl", "embed", "to", "=", "x"], ("file", "x")),
        (["raysurl", "export", "to", "=", "hug"], ("plain", "huggingface")),
    ],
    ids=str,
)
def test_shells_are_offered_keys_and_values(words, expected):
    assert offered(*words) == [expected or ("", "")]


def test_bash_completes_with_it(tmp_path):
    (tmp_path / "raysurl").write_text(f'#!/bin/sh\nexec {sys.executable} -m raysurl "$@"\n')
    (tmp_path / "raysurl").chmod(0o755)
    script = (
        'eval "$(_RAYSURL_COMPLETE=bash_source raysurl)"; COMP_WORDS=(raysurl pretrain runtime = l); COMP_CWORD=4;'
        ' _raysurl_completion raysurl; echo "${COMPREPLY[@]}"'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert found.stdout.strip() == "local"
