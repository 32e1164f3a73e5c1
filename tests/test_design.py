"""The design rules that can be checked by reading the code."""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

PACKAGE = sorted((ROOT / "raysurl").rglob("*.py"))
CODE = PACKAGE + sorted((ROOT / "pipelines").rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def nodes_of(tree: ast.Module) -> list[ast.AST]:
    return list(ast.walk(tree))


@cache
def imported(tree: ast.Module) -> list[str]:
    """Dotted names of all that is imported, also inside functions, but for what only type checkers see."""
    unseen = {
        id(inner)
        for node in nodes_of(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: list[str] = []
    for node in nodes_of(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def test_ray_is_imported_in_scale_only():
    found = [path for path in CODE if any(name.split(".")[0] == "ray" for name in imported(parsed(path)))]
    assert [name_of(path) for path in found if "scale" not in path.relative_to(ROOT).parts] == []


def test_files_and_functions_stay_readable():
    # about 300 lines: one thought is not split to meet a number
    assert [name_of(path) for path in CODE if len(path.read_text().splitlines()) > 320] == []
    functions = [(path, n) for path in CODE for n in nodes_of(parsed(path)) if isinstance(n, ast.FunctionDef)]
    assert [(name_of(path), n.name) for path, n in functions if n.end_lineno - n.lineno >= 60] == []
    assert [name_of(path) for path in CODE if path.name in ("utils.py", "helpers.py", "common.py")] == []


def test_nothing_branches_on_a_methods_name():
    from raysurl import method

    names = set(method.available()) - {"seed"}  # a key of every recipe too
    compared = [(path, n) for path in CODE for n in nodes_of(parsed(path)) if isinstance(n, ast.Compare)]
    found = [
        (name_of(path), ast.unparse(node))
        for path, node in compared
        if names
        & {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    ]
    assert found == []


SEEDING = {
    *(
        "manual_seed",
        "manual_seed_all",
        "seed",
        "initial_seed",
        "set_rng_state",
        "fork_rng",
        "seed_everything",
    ),
    *("default_rng", "Philox", "PCG64", "MT19937", "Generator", "RandomState", "SeedSequence"),
}
DRAWING = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "bernoulli",
    "multinomial",
    "rand_like",
    "randn_like",
    "bernoulli_",
}


def draws_or_seeds(tree: ast.Module) -> list[str]:
    """Calls that make or seed a random generator, and those that draw from one that the process shares."""
    found = []
    shared = ["np.random", "numpy.random", "torch.random", *({"random"} & set(imported(tree)))]
    for node in nodes_of(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        of, _, name = ast.unparse(node.func).rpartition(".")
        generator = any(keyword.arg == "generator" for keyword in node.keywords)
        draws = name in DRAWING and (of == "torch" or name.endswith("_")) and not generator
        if name in SEEDING or of in shared or draws:
            found.append(f"{of}.{name}")
    return found


def test_random_numbers_come_from_streams_alone():
    # nested's marks must differ between processes: they come from the system; and a check disturbs what is shared
    own = {"raysurl/streams.py", "raysurl/scale/nested.py", "raysurl/testing/shared.py"}
    found = {name_of(path): calls for path in PACKAGE if (calls := draws_or_seeds(parsed(path)))}
    assert {name: calls for name, calls in found.items() if name not in own} == {}


@pytest.mark.parametrize(
    "line",
    [
        "torch.manual_seed(0)",
        "np.random.default_rng(1)",
        "np.random.shuffle(x)",
        "import random; random.random()",
        "torch.randperm(4)",
        "x.bernoulli_(0.5)",
        "torch.Generator()",
    ],
)
def test_a_planted_seed_or_draw_is_found(line):
    assert draws_or_seeds(ast.parse(line))


# -------------------------------------------------------------------- layers


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def modules() -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports."""
    names = {module_name(path): path for path in PACKAGE}
    return {
        name: {found for found in imported(parsed(path)) if found in names and found != name}
        for name, path in names.items()
    }


def unit(module: str) -> str:
    """The package or loose module below raysurl."""
    return module.split(".")[1]


def layers() -> list[list[str]]:
    text = (ROOT / "docs" / "architecture.md").read_text()
    return [
        line.split() for line in text.partition("<!-- layers -->\n```\n")[2].partition("```")[0].splitlines()
    ]


def test_layers_import_what_stands_below_them_alone():
    place = {name: i for i, layer in enumerate(layers()) for name in layer}
    there = {unit(module) for module in modules() if module != "raysurl"}
    assert set(place) == there - {"__main__"}
    for module, others in modules().items():
        for other in others - {"raysurl"}:
            if module not in ("raysurl", "raysurl.__main__") and unit(module) != unit(other):
                assert place[unit(module)] < place[unit(other)], f"{module} imports {other}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Paths of a directed graph that come back to where they began, one per way back that a walk meets."""
    found, done, path = [], set(), []

    def walk(node: str) -> None:
        if node in path:
            found.append(path[path.index(node) :])
        elif node not in done:
            path.append(node)
            for other in sorted(graph.get(node, ())):
                walk(other)
            done.add(path.pop())

    for node in sorted(graph):
        walk(node)
    return found


def test_no_module_imports_itself_by_others():
    packages = {module.rpartition(".")[0] for module in modules()}
    # a package's __init__ is imported with every module of it, and imports some of them: that is no circle
    graph = {m: {o for o in others if o not in packages} for m, others in modules().items()}
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


# -------------------------------------------------------------------- methods

HIDDEN = {"torch.distributed", "pathlib", "os", "torch.optim"}
METHODS = sorted((ROOT / "raysurl" / "methods").rglob("*.py"))


def what_a_method_must_not_see(tree: ast.Module) -> set[str]:
    from raysurl.testing.methods import ranks_in

    return set(imported(tree)) & HIDDEN | ranks_in(tree)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: str(p.relative_to(ROOT)))
def test_methods_see_no_ranks_files_or_optimizers(path):
    assert not what_a_method_must_not_see(parsed(path))


@pytest.mark.parametrize(
    "planted",
    [
        "x = distributed.rank()",
        "from torch import distributed as d\nd.get_rank()",
        "import torch.optim",
        "rank()",
    ],
)
def test_a_planted_rank_is_found(planted):
    assert what_a_method_must_not_see(ast.parse(planted))


def test_no_setting_of_a_method_is_untyped():
    for path in PACKAGE:
        assert not re.search(r"\bconfig: Any\b", path.read_text()), path


# -------------------------------------------------------------------- what a person sees


def test_pipelines_are_thin():
    for path in sorted((ROOT / "pipelines").glob("*.py")):
        assert len(path.read_text().splitlines()) < 80, path.name


def test_the_recipe_needs_no_torch():
    heavy = "[m for m in ('torch', 'pyarrow', 'ray', 'numpy') if m in sys.modules]"
    code = f"import sys, raysurl.recipe, raysurl.cli; print({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


def loaded_by(module: str) -> set[str]:
    """All that importing a module of the package imports with it, by reading: not what waits inside functions."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        # a package that is imported is run, and so are the packages above a module
        parts = name.split(".")
        for dotted in {".".join(parts[: i + 1]) for i in range(len(parts))} - seen:
            seen.add(dotted)
            if dotted.split(".")[0] != "raysurl":
                continue
            base = ROOT / dotted.replace(".", "/")
            path = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            if path.is_file():
                now = ast.Module([node for node in parsed(path).body if runs(node)], [])
                waiting += imported(now)
    return seen


def runs(node: ast.stmt) -> bool:
    return not isinstance(node, ast.FunctionDef | ast.ClassDef)


SELDOM = {"torchvision", "scipy.stats", "sklearn", "torch._dynamo", "timm"}


@pytest.mark.parametrize("module", ["raysurl.scale.train", "raysurl.run"])
def test_a_worker_begins_without_what_few_runs_need(module):
    """Each of these is a second or so of every driver, worker and trial."""
    loaded = loaded_by(module)
    # it reads what is there
    assert {"torch", "raysurl.evaluate.detecting"} <= loaded
    assert not {name.split(".")[0] for name in loaded} & SELDOM
    assert not loaded & SELDOM


METHODS = sorted(p.stem for p in (ROOT / "raysurl" / "methods").iterdir() if p.name[0] != "_")


@pytest.mark.parametrize("name", METHODS)
def test_nor_does_its_method_bring_them(name):
    loaded = loaded_by(f"raysurl.methods.{name}")
    assert not loaded & SELDOM
    assert not {name.split(".")[0] for name in loaded} & SELDOM


@pytest.mark.parametrize(
    "command", ["pretrain", "evaluate", "embed", "predict", "export", "report", "outliers", "duplicates"]
)
def test_what_is_of_one_run_needs_neither_ray_nor_sweeps(command):
    """On one machine, runtime=local, which may have neither."""
    assert not loaded_by(f"raysurl.commands.{command}") & {"ray", "optuna"}


def test_the_tree_of_the_docs_is_the_real_one():
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.partition("## Where things are\n")[2].partition("```\n")[2].partition("```")[0]
    entries = [re.split(r"\s{2,}", line.strip())[0].split() for line in tree.splitlines()]
    named = {word for entry in entries for word in entry}
    real = {
        p.name if p.suffix else f"{p.name}/" for p in (ROOT / "raysurl").iterdir() if p.name[0] not in "_."
    }
    real -= {"py.typed"}
    assert real <= named, f"not in the tree of docs/architecture.md: {sorted(real - named)}"
    for word in named - real:
        assert (ROOT / word).exists(), f"the tree has {word}, which is not there"


def test_no_two_classes_share_a_name():
    """But for what scikit-learn's users call by the name of what it trains: raysurl.GenURL, and raysurl.Encoder."""
    names = [node.name for path in PACKAGE for node in parsed(path).body if isinstance(node, ast.ClassDef)]
    assert {name for name, count in Counter(names).items() if count > 1} == {"GenURL", "Encoder"}
