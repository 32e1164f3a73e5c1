"""Whatever a person writes into a recipe, a search space or a command line: it is taken, or refused in one sentence."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from fuzzing import CHANGES, CUT, FLIPS, ODD, Change, Flips, changed, damaged, is_one_sentence
from hypothesis import strategies as st

from raysurl import cli
from raysurl.errors import InputError
from raysurl.recipe import dump, load_recipe, read_recipe_file
from raysurl.shell import settings
from raysurl.sweep.plan import SweepRequest, make_plan
from raysurl.sweep.space import SPACES, read_space

# -------------------------------------------------------------------- YAML files

RECIPES, SPACE_NAMES = settings.recipes(), settings.spaces()
TOKENS = [
    "a",
    "train",
    "epochs",
    ": ",
    ":",
    "- ",
    "\n",
    "\n  ",
    "{",
    "}",
    "[",
    "]",
    ",",
    "&a ",
    "*a",
    "!!python/name:os.system ",
    "!!binary ",
    "!x ",
    "<<",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "---\n",
    "...\n",
    "1",
    "1e9",
    ".inf",
    "2024-02-30",
    "~",
    "0x",
    "\t",
    "é",
    "\0",
    "\ufeff",
    "method",
    "name",
    "data",
    "axes",
]


class YamlCase(NamedTuple):
    """A text of `tokens` where there are some; else a packaged file, changed in its tree or else in its bytes."""

    space: bool
    tokens: list[str]
    file: int
    changes: list[Change] | None
    flips: Flips
    cut: int | None


YAMLS = st.builds(
    YamlCase,
    space=st.booleans(),
    tokens=st.one_of(st.just([]), st.lists(st.sampled_from(TOKENS), max_size=12)),
    file=st.integers(0, 10**4),
    changes=st.one_of(st.none(), CHANGES),
    flips=FLIPS,
    cut=CUT,
)


def _text_of(case: YamlCase) -> bytes:
    if case.tokens:
        return "".join(case.tokens).encode(errors="surrogatepass")
    if case.space:
        content = (SPACES / f"{SPACE_NAMES[case.file % len(SPACE_NAMES)]}.yaml").read_bytes()
    else:
        tree = read_recipe_file(RECIPES[case.file % len(RECIPES)])
        content = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True).encode()
    if case.changes is None:
        return damaged(content, case.flips, case.cut)
    tree = changed(yaml.safe_load(content), case.changes)
    with contextlib.suppress(yaml.YAMLError, ValueError):
        return yaml.safe_dump(tree, sort_keys=False).encode(errors="surrogatepass")
    return b""


def check_yaml(case: YamlCase) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.yaml"
        path.write_bytes(_text_of(case))
        try:
            if case.space:
                make_plan(SweepRequest(space=read_space(str(path)), scale="full"), listed=True)
                return
            recipe = load_recipe([f"recipe={path}"])
        except InputError as error:
            is_one_sentence(error)
            return
        text = dump(recipe)
        path.write_text(text)
        assert dump(load_recipe([f"recipe={path}"]).model_copy(update={"recipe": recipe.recipe})) == text


# -------------------------------------------------------------------- the command line

COMMANDS = settings.commands()
KEYS = [s.key for name in settings.methods() for s in settings.of_recipe(name)]
KEYS += [s.key for name in COMMANDS for s in settings.of_command(name)]
KEYS = sorted(set(KEYS))
VALUES = st.one_of(
    ODD.map(str),
    st.sampled_from(
        [
            "a'",
            "'",
            "''",
            "[",
            "{",
            "[1,2",
            "{a: b}",
            "[[[]]]",
            "[" * 2000,
            "null",
            "on",
            "a: b",
            "*x",
            "1_0",
            "0x10",
            "1:30",
            "~",
            "~nobody/x",
            "s3://a/b",
            "hf://x",
            "x" * 300,
            "\udce9",
            "a\0b",
            "../..",
            "/dev/null",
        ]
    ),
    st.text(max_size=6),
)


class ArgumentsCase(NamedTuple):
    command: str
    arguments: list[str]


ARGUMENTS = st.builds(
    ArgumentsCase,
    command=st.sampled_from(COMMANDS),
    arguments=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
            st.tuples(st.sampled_from(KEYS), VALUES).map("=".join),
            st.tuples(st.text(max_size=5), VALUES).map("=".join),
            st.sampled_from(
                [
                    "ressl_table2",
                    "space=ressl_table2",
                    "recipe=rcl/digits",
                    "preset=quick",
                    "=",
                    "-",
                    "--",
                    "",
                ]
            ),
            st.text(max_size=6).filter(lambda text: not text.startswith("-")),
        ),
        max_size=4,
    ),
)


def check_arguments(case: ArgumentsCase) -> None:
    """The command as a shell would start it, in an empty folder; what could begin work is only listed."""
    printed = {"pretrain": "--print", "sweep": "--print", "reproduce": "--print"}.get(case.command)
    arguments = [*case.arguments, *([printed] if printed else [])]
    # of the embedded digits alone these would do their work
    if case.command == "shuffle":
        arguments.append("data.path=/nowhere")
    before, said = Path.cwd(), io.StringIO()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                cli.run_named(case.command, arguments)
            code: Any = 0
        except SystemExit as ending:
            code = ending.code
        finally:
            os.chdir(before)
        left = os.listdir(folder)
    assert code in (0, 2), said.getvalue()
    if code == 2:
        assert said.getvalue().startswith("raysurl: ")
        assert len(said.getvalue().splitlines()) == 1, said.getvalue()
        assert not left
