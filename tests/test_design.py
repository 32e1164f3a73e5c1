"""The design rules that can be checked by reading the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "raysurl").rglob("*.py"))
CODE = PACKAGE + sorted((ROOT / "pipelines").rglob("*.py"))
everywhere = pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@everywhere
def test_ray_is_imported_in_scale_only(path):
    if "scale" not in path.relative_to(ROOT).parts:
        assert not [name for name in imported(ast.parse(path.read_text())) if name.split(".")[0] == "ray"]


@everywhere
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320  # about 300: one thought is not split to meet a number
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
    assert path.name not in ("utils.py", "helpers.py", "common.py")


@everywhere
def test_nothing_branches_on_a_methods_name(path):
    from raysurl import methods

    names = set(methods.available()) - {"seed"}  # a key of every recipe too
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            values = [c.value for c in ast.walk(node) if isinstance(c, ast.Constant)]
            assert not names & {v for v in values if isinstance(v, str)}, ast.unparse(node)


def test_methods_see_no_ranks_files_or_optimizers():
    for path in sorted((ROOT / "raysurl" / "methods").glob("*.py")):
        names = set(imported(ast.parse(path.read_text())))
        assert not names & {"torch.distributed", "pathlib", "os", "torch.optim"}, path.name


def test_pipelines_are_thin():
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        assert len(path.read_text().splitlines()) < 80, path.name
