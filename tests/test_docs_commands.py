"""Every command line and every block of Python in README and docs/: run in a small folder, or at least read as given.

`pretrain`, `sweep` and `reproduce` print what they would do; the other commands do their work on a run of sixty digits
and a few images, but for those below, each with its reason.
"""

import ast
import contextlib
import importlib
import inspect
import io
import re
import shlex
import shutil
import sys
import textwrap
from functools import cache
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fuzz_stored import finished_sweep
from PIL import Image
from places import ROOT
from small_run import finished_run
from voc_files import voc_files

import raysurl
from raysurl import cli
from raysurl.commands import embed
from raysurl.commands.results import BEGIN, END, PAGE
from raysurl.errors import InputError
from raysurl.recipe import load_recipe, split_argument
from raysurl.shell import settings

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\S*)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
OURS = re.compile(r"(?:^|[:$] )((?:python pipelines/\w+\.py|raysurl [a-z]+)\b.*)$")
# lines of other programs, by how they begin
OTHERS = {
    "python3 -m venv": ".ci/run makes such an environment",
    "pip install": ".ci/run installs the package",
    ".venv/bin/pip install": ".ci/run installs the package",
    ".venv/bin/pytest": "the tests themselves",
    ".venv/bin/ruff": ".ci/run",
    ".venv/bin/mypy": ".ci/run",
    "mkdocs build": "tests/test_site.py",
    "eval $(_RAYSURL_COMPLETE": "tests/test_cli.py completes in bash",
    "python docs/screenshots.py": "tests/report/test_browser.py",
    "curl ": "tests/serving and tests/scale/test_serving.py ask the same",
    "openssl rand": "any random text",
    "docker run": "needs an image",
}
# lines of which only the settings are read
READ = {
    "data.name=coco:2017": "a detector trains for hours; tests/evaluate/test_detection.py trains a small one",
    "teacher.name=open_clip": "its weights are not at hand; tests/teachers judges made-up ones",
    "pipelines/benchmark.py": "measures a machine for minutes",
    "raysurl serve": "answers until it is stopped; tests/scale/test_serving.py asks it",
}
# where the work of a command is too long or needs a cluster, and what it does before is enough
STOPPED = {"export": ("raysurl.export.writing", "write"), "shuffle": ("raysurl.scale.shuffle", "shuffle")}
# settings that make a line shorter, and change nothing of what it is given
SHORTER = {"eval.protocols=[svm": ["eval.svm_draws=1", "eval.svm_costs=[0.5]", "eval.svm_shots=[4]"]}
PRINTED = ("pretrain", "sweep", "reproduce")
# pages whose blocks of Python another test runs as they stand
PYTHON = {
    "python.md": "tests/interface/test_python.py",
    "export.md": "tests/export/test_export.py",
    "plugins.md": "tests/test_plugins_page.py",
    "serving.md": "tests/scale/test_serving.py",
}
DOWNLOADS = ("pretrained=True",)  # a block with this fetches something: its names are looked at


class ReachedError(Exception):
    pass


def lines(text):
    """(line, its words) of each command of a page, `&&` and `\\` taken apart."""
    for language, _, block in BLOCK.findall(text):
        if language not in ("bash", "console", ""):
            continue
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            if language == "bash":
                given = line
            elif language == "console":
                given = line.removeprefix("$ ") if line.startswith("$ ") else ""
            else:
                given = OURS.search(line)[1] if OURS.search(line) else ""
            words = shlex.split(given, comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield " ".join(words[:end]), words[:end]
                words = words[end + 1 :]


def command(words):
    """Name and arguments of a command of the package; None for another program."""
    if words[:3] == ["ray", "job", "submit"]:
        words = words[words.index("--") + 1 :]
    if words[0].endswith("python") and words[1].startswith("pipelines/"):
        name = words[1].removeprefix("pipelines/").removesuffix(".py")
        return {"subset": "select"}.get(name, name), words[2:]
    return (words[1], words[2:]) if words[0] == "raysurl" else None


# -------------------------------------------------------------------- a folder to work in


def pictures(folder, count=120):
    folder.mkdir(parents=True)
    draws = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(draws.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{i:06}.png")


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """What the pages speak of: runs, images, a sweep, a page of results."""
    folder = tmp_path_factory.mktemp("pages") / "template"
    for name in ("mine", "photos", "digits"):
        shutil.copytree(finished_run(), folder / "runs" / name)
    shutil.copy(
        finished_run() / "classifier-full.safetensors",
        folder / "runs" / "mine" / "classifier-ressl_10.safetensors",
    )
    for name in ("t2", "cifar10"):
        shutil.copytree(finished_sweep(), folder / "sweeps" / name)
    for name in ("DIR_OR_URI", "OTHER_IMAGES", "LABELLED", "photos", "Mes photos"):
        pictures(folder / name)
    voc_files(folder / "ROOT")
    bytes_of = io.BytesIO()
    Image.new("RGB", (8, 8)).save(bytes_of, "png")
    (folder / "DIR").mkdir()
    pq.write_table(pa.table({"image": [bytes_of.getvalue()] * 8}), folder / "DIR" / "a.parquet")
    embeddings = ["run=runs/mine", "data.path=photos", "data.labels=none", "data.limit="]
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        embed.main([*embeddings, "to=train.parquet"])
    shutil.copy(folder / "train.parquet", folder / "test.parquet")
    (folder / PAGE).parent.mkdir()
    (folder / PAGE).write_text(f"{BEGIN}\n{END}\n")
    (folder / "results" / "sweeps").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "sweeps" / "superand_table5.csv", folder / "results" / "sweeps")
    return folder


@pytest.fixture
def here(template, tmp_path, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def read_alone(name, arguments):
    """The settings of a line: the command's own are known, the others are a recipe's and valid."""
    own = {setting.key for setting in settings.of_command(name)}
    taken = {setting.key for setting in settings.taken(name)}
    given = dict(split_argument(argument) for argument in arguments)
    for key in set(given) - own - taken:
        raise InputError(f"{key} is no setting of {name}")
    # a teacher goes with methods that have one: the rest is read as a recipe
    load_recipe([f"{k}={v}" for k, v in given.items() if k in taken and not k.startswith("teacher.")])


def stop(*args, **kwargs):
    raise ReachedError


def call(line, name, arguments, monkeypatch, capfd):
    """Do what a line says, as far as this test goes; fails with what the program said."""
    if name == "--help" or "--help" in arguments:
        found = CliRunner().invoke(cli.group, [name, *arguments])
        assert found.exit_code == 0, f"{line}: {found.output}"
        return
    reached = False
    with monkeypatch.context() as patched:
        if name in STOPPED:
            module, function = STOPPED[name]
            if name == "shuffle":  # it imports Ray
                patched.setitem(sys.modules, module, SimpleNamespace(shuffle=stop))
            else:
                patched.setattr(importlib.import_module(module), function, stop)
        printed = ["--print"] if name in PRINTED and "--print" not in arguments else []
        try:
            cli.run_named(name, [*arguments, *printed])
        except SystemExit as ended:
            pytest.fail(f"{line}: exit {ended.code}: {capfd.readouterr().err}")
        except ReachedError:
            reached = True
    assert reached == (name in STOPPED), line


# -------------------------------------------------------------------- the pages


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_lines_and_blocks_of_a_page_work(page, here, monkeypatch, capfd):
    text = page.read_text()
    monkeypatch.setitem(raysurl.GenURL.__init__.__kwdefaults__, "epochs", 5)
    for name, block in re.findall(r"^```\w+ file=(\S+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        (here / name).write_text(block)
    for line, words in lines(text):
        found = command(words)
        if found is None:
            assert any(line.startswith(begin) for begin in OTHERS), f"not known how to try: {line}"
        elif any(words in line for words in READ):
            if "benchmark.py" not in line:
                read_alone(*found)
        else:
            shorter = [setting for words, more in SHORTER.items() if words in line for setting in more]
            call(line, found[0], [*found[1], *shorter], monkeypatch, capfd)
    run_python(page, text)


def run_python(page, text):
    draws = np.random.default_rng(0)
    names = {"matrix": draws.normal(size=(60, 5)), "z": draws.normal(size=(600, 8))}
    for language, about, block in BLOCK.findall(text):
        if language != "python" or "file=" in about:
            continue
        if "no-run" in about or any(word in block for word in DOWNLOADS):
            check_calls(block)
        elif page.name in PYTHON:
            assert page.name in (ROOT / PYTHON[page.name]).read_text()
        else:
            exec(textwrap.dedent(block), names)


def check_calls(block):
    """Of a block that is not run: it can be read, and what it calls of the package takes such arguments."""
    for node in ast.walk(ast.parse(block)):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("raysurl."):
            continue
        parts = ast.unparse(node.func).split(".")[1:]
        if not all(part.isidentifier() for part in parts):  # a method of what a call gives
            continue
        target = raysurl
        for part in parts:
            target = getattr(target, part)
        keywords = {keyword.arg: None for keyword in node.keywords}
        inspect.signature(target).bind(*[None] * len(node.args), **keywords)


# -------------------------------------------------------------------- the test itself


def test_a_line_is_found_wherever_it_stands():
    text = "```bash\na && raysurl x b=1 \\\n  c=2  # why\n```\n```console\n$ raysurl y\nprinted\n```\n"
    text += "```\nname: python pipelines/z.py q='a b'\n  cli.py `raysurl <command>`\n```\n"
    assert [line for line, _ in lines(text)] == [
        "a",
        "raysurl x b=1 c=2",
        "raysurl y",
        "python pipelines/z.py q=a b",
    ]
    assert command(["ray", "job", "submit", "--", "python", "pipelines/subset.py", "n=1"]) == (
        "select",
        ["n=1"],
    )


@pytest.mark.slow
def test_a_line_that_is_wrong_fails(here, monkeypatch, capfd):
    for line in ("pretrain recipe=ressl/cifar10 train.epoch=1", "sweep space=no_such", "report run=nowhere"):
        name, *arguments = line.split()
        with pytest.raises(pytest.fail.Exception):
            call(line, name, arguments, monkeypatch, capfd)
    with pytest.raises(InputError):
        read_alone("evaluate", ["run=x", "eval.protocol=[knn]"])
    with pytest.raises(TypeError):
        check_calls("raysurl.load('x', no_such=1)")


def test_each_command_is_in_the_docs():
    found = {command(words)[0] for page in PAGES for _, words in lines(page.read_text()) if command(words)}
    assert set(settings.commands()) <= found, set(settings.commands()) - found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_recipes_and_spaces_that_a_page_names_are_there(page):
    text = page.read_text()
    assert set(re.findall(r"recipe=([a-z0-9_]+/[a-z0-9_]+)", text)) <= set(settings.recipes())
    listed = set(re.findall(r"`([a-z0-9]+/[a-z0-9]+(?:_[a-z0-9]+)*)`", text))
    named = {name for name in listed if name.partition("/")[0] in settings.methods()}
    assert named <= set(settings.recipes()), named - set(settings.recipes())
    spaces = set(re.findall(r"space=([a-z0-9_]+)(?=[\s`)])", text))
    assert spaces <= set(settings.spaces()), spaces - set(settings.spaces())


@cache
def all_settings():
    own = {setting.key for name in settings.commands() for setting in settings.of_command(name)}
    return own | {setting.key for setting in settings.of_recipe()}


def settings_in_prose(text):
    """`section.key=value` in backticks, outside blocks: (key, value)."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for code in re.findall(r"`([^`\n]+)`", prose):
        yield from re.findall(r'(?:^|[ "])([a-z_]+(?:\.[a-zA-Z_]+)+)=([^ "]*)', code)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_settings_that_a_page_names_are_there(page):
    open_ended = ("encoder.options.", "data.options.", "views.policies.", "eval.detection.", "method.")
    for key, value in settings_in_prose(page.read_text()):
        assert key in all_settings() or key.startswith(open_ended), f"{key}={value}"
        if (
            key.startswith("method.") and page.stem in settings.methods()
        ):  # a page of that method: its value too
            load_recipe([f"recipe={page.stem}/cifar10", f"{key}={value}"])


def test_a_setting_that_is_not_there_is_noticed():
    assert list(settings_in_prose("`a.b=1 c.d=x` and `x=1`\n```\n`e.f=2`\n```\n")) == [
        ("a.b", "1"),
        ("c.d", "x"),
    ]
