"""Parts of pages that are made of what stands elsewhere: docstrings of methods, recipes, spaces and kept results.

A part is asked for by a comment, `<!-- KIND: WHAT -->`; `part` gives its Markdown.
"""

from __future__ import annotations

import ast
import html
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from raysurl.shell import settings  # reads the modules' text, and imports no torch

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "raysurl"
NAME = re.compile(r"`([^`]+)`|\b((?:[a-z_]+\.)+[A-Za-z_]+)\b")  # of code, in a docstring
Link = Callable[..., str]

# -------------------------------------------------------------------- docstrings


def module_of(method: str) -> Path:
    path = PACKAGE / "methods" / f"{method}.py"
    return path if path.is_file() else PACKAGE / "methods" / method / "method.py"


@cache
def places(path: Path) -> dict[str, int]:
    """Functions and classes of a module by name, then its fields, then what it assigns, with their line."""
    found: dict[str, int] = {}
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.setdefault(node.name, node.lineno)
    for node in nodes:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, node.lineno)
    for node in nodes:
        if isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.attr if isinstance(node, ast.Attribute) else node.id, node.lineno)
    return found


def place(name: str, module: Path) -> tuple[Path, int | None] | None:
    """Where a name in a module's docstring is: of the module, or dotted, from the package or its methods."""
    if name in (here := places(module)):
        return module, here[name]
    *parts, last = name.split(".")
    for base in (PACKAGE, PACKAGE / "methods") if parts else ():
        folder = base.joinpath(*parts)
        for path in (folder / f"{last}.py", folder / last / "__init__.py"):
            if path.is_file():
                return path, None
        for path in (folder.with_suffix(".py"), *sorted(folder.glob("*.py"))):
            if path.is_file() and last in places(path):
                return path, places(path)[last]
    return None


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def blocks(method: str) -> tuple[list[list[str]], list[str]]:
    """A method's docstring behind its first line: its blocks with equations, line by line, and its other paragraphs."""
    text = docstring(module_of(method))
    maps: list[list[str]] = []
    rest = []
    for block in text.partition("\n\n")[2].split("\n\n"):
        lines = block.splitlines()
        if any(re.search(r"\S\s{2,}\S", line) for line in lines):
            maps.append(lines)
        elif block.strip():
            rest.append(" ".join(lines))
    return maps, rest


def rows(lines: list[str]) -> list[tuple[str, str]]:
    """Lines of `equation    place` as pairs; a line without a gap goes on where the one before it was, or is a row."""
    found: list[tuple[str, str]] = []
    for line in lines:
        left, gap, right = line.partition("  ")
        if gap and left.strip():
            found.append((left.strip(), right.strip()))
        elif gap and found:  # under the places
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif found and not found[-1][1]:
            found[-1] = (f"{found[-1][0]} {line.strip()}", "")
        else:
            found.append((line.strip(), ""))
    return found


def prose(text: str, module: Path | None = None, link: Link | None = None) -> str:
    """Text of a docstring as Markdown; names that are places of the code are links to their line."""

    def named(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = place(name, module) if module and link else None
        if found is None or link is None:
            return f"`{name}`" if match[1] else plain(name)
        address = link(found[0].relative_to(ROOT).as_posix(), found[1])
        return f'<a href="{address}"><code>{html.escape(name)}</code></a>'

    parts, end = [], 0
    for match in NAME.finditer(text):
        parts += [plain(text[end : match.start()]), named(match)]
        end = match.end()
    return "".join([*parts, plain(text[end:])])


def plain(text: str) -> str:
    return re.sub(r"([*_|\[\]<>])", r"\\\1", text)


def equations(method: str, link: Link) -> str:
    """Tables of equation and place, each name of code a link to its line."""
    module = module_of(method)
    tables = []
    for lines in blocks(method)[0]:
        table = ["| paper | code |", "|---|---|"]
        table += [f"| {prose(left)} | {prose(right, module, link)} |" for left, right in rows(lines)]
        tables.append("\n".join(table))
    return "\n\n".join(tables)


def deviations(method: str, link: Link) -> str:
    return "\n\n".join(prose(text, module_of(method), link) for text in blocks(method)[1])


def module(method: str, link: Link) -> str:
    title = prose(" ".join(docstring(module_of(method)).partition("\n\n")[0].split()))
    return "\n\n".join([title, equations(method, link), deviations(method, link)])


def modules() -> list[str]:
    """The files that these parts link to, as paths from the root of the checkout."""
    found = {module_of(name) for name in settings.methods()}
    for name in settings.methods():
        for text in (*(line for lines in blocks(name)[0] for line in lines), *blocks(name)[1]):
            for match in NAME.finditer(text):
                if there := place(match[1] or match[2], module_of(name)):
                    found.add(there[0])
    return sorted(path.relative_to(ROOT).as_posix() for path in [*found, *(ROOT / "results").rglob("*.md")])


# -------------------------------------------------------------------- numbers


def numbers(method: str, link: Link) -> str:
    """A method's recipes with the paper's numbers and kept runs of each; then the paper's tables and kept sweeps."""
    table = ["| recipe | the paper | kept runs |", "|---|---|---|"]
    for recipe in (name for name in settings.recipes() if name.partition("/")[0] == method):
        text = (PACKAGE / "recipes" / f"{recipe}.yaml").read_text(encoding="utf-8")
        cells = [cell for cell in re.findall(r"^# Cell: (.+)$", text, re.MULTILINE) if cell != "none"]
        said = [f"{plain(where)}: {number}" for where, number in map(parted, cells)]
        table.append(f"| `{recipe}` | {'<br>'.join(said) or '–'} | {'<br>'.join(runs(recipe)) or '–'} |")
    return "\n\n".join(["\n".join(table), *spaces(method, link)])


def parted(cell: str) -> tuple[str, str]:
    """`PAPER, Table N | LABEL | … = NUMBER` without the paper's name, as words and the number."""
    where, _, number = cell.partition(", ")[2].rpartition(" = ")
    return where.replace(" | ", ", "), number


def runs(recipe: str) -> Iterator[str]:
    """Kept runs of a recipe by name, with the accuracies that they have."""
    shown = {"linear_top1": "linear", "lbfgs_top1": "L-BFGS", "knn_top1": "kNN"}
    for path in sorted((ROOT / "results").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if f"recipe={recipe}" in record.get("command", "").split():
            found = {word: record["metrics"].get(f"eval/{name}") for name, word in shown.items()}
            said = ", ".join(f"{value:.1f} {word}" for word, value in found.items() if value is not None)
            yield f"{path.stem}: {said}"


def spaces(method: str, link: Link) -> Iterator[str]:
    """The tables of a method's paper that are there as spaces, and what kept sweeps of them say."""
    table = ["| table of the paper | its numbers | space | kept sweep |", "|---|---|---|---|"]
    for path in sorted((PACKAGE / "search_spaces").glob(f"{method}_*.yaml"), key=natural):
        space = yaml.safe_load(path.read_text(encoding="utf-8"))
        page = ROOT / "results" / "sweeps" / f"{path.stem}.md"
        said = "not run"
        if page.is_file():
            line = next(line for line in written_results().splitlines() if f"/{page.name})" in line)
            address = link(page.relative_to(ROOT).as_posix())
            said = f'<a href="{address}">kept</a>: {plain(line.partition("): ")[2])}'
        table.append(
            f"| {plain(space['title'])} | {count(space.get('paper')) or '–'} | `{path.stem}` | {said} |"
        )
    if len(table) > 2:
        yield "\n".join(table)


ABLATIONS = """
import json
from pathlib import Path
from raysurl.sweep.ablations import as_data, cards
print(json.dumps(as_data(cards(Path("results/sweeps"), Path("results/benchmarks/gpu.json")))))
"""


@cache
def ablations() -> dict[str, Any]:
    """The cards of `raysurl ablations`, made in a process of its own: here no torch is imported."""
    done = subprocess.run([sys.executable, "-c", ABLATIONS], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the papers' tables cannot be made: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def tables(method: str, link: Link) -> str:
    """A card for each table of a method's paper: what it concludes, what was seen of that here, and the commands."""
    return "\n\n".join(card(table, link) for table in ablations()["tables"][method])


def card(table: dict[str, Any], link: Link) -> str:
    page = ROOT / "results" / "sweeps" / f"{table['name']}.md"
    lines = [f"### {plain(table['title'])}", ""]
    for claim, verdict, numbers in table["claims"]:
        lines.append(f"- *{plain(claim)}*: {verdict}{': ' if numbers else ''}{plain(numbers)}")
    if page.is_file():
        lines.append(f'- <a href="{link(page.relative_to(ROOT).as_posix())}">The table, cell by cell</a>')
    lines += [f"- {plain(fact)}" for fact in table["facts"]]
    return "\n".join([*lines, "", "```bash", *table["commands"], "```"])


def verdicts(what: str, link: Link) -> str:
    """How many of the papers' claims were supported, contradicted, not seen, and not tried, and what that took."""
    said: str = ablations()["total"]
    return said


def natural(path: Path) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]


def count(paper: Any) -> int:
    """How many numbers of a paper a space holds."""
    if isinstance(paper, dict):
        return sum(count(value) for value in paper.values())
    if isinstance(paper, list):
        return sum(count(value) for value in paper)
    return int(isinstance(paper, int | float))


def compared(what: str, link: Link) -> str:
    """`NAME; ROW; ROW …`: rows of a comparison as docs/results.md has it, with its references."""
    name, *wanted = what.split("; ")
    part = written_results().partition(f"## {name}\n")[2].partition("\n```")[0]
    table = [line for line in part.splitlines() if line.startswith("|")]
    named = {line.split(" | ")[0].strip("| "): line for line in table[2:]}
    if lacking := set(wanted) - set(named):
        raise ValueError(f"docs/results.md: {name} has no row {sorted(lacking)}")
    return "\n".join([*table[:2], *(named[row] for row in (*wanted, "untrained", "pixels") if row in named)])


@cache
def written_results() -> str:
    return (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def of_settings(method: str, link: Link) -> str:
    """A method's own settings with type, default and remark, as `--help` shows them."""
    table = ["| setting | type | default | |", "|---|---|---|---|"]
    for setting in settings.of_method(method)[1:]:
        cells = (f"`{setting.key}`", plain(setting.type), plain(setting.default), plain(setting.about))
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


PARTS: dict[str, Callable[[str, Link], str]] = {
    "equations": equations,
    "deviations": deviations,
    "module": module,
    "numbers": numbers,
    "compared": compared,
    "settings": of_settings,
    "tables": tables,
    "verdicts": verdicts,
}


def part(kind: str, what: str, link: Link) -> str:
    """The Markdown of a part. Raises KeyError for a kind that is not known, so that none is left out unnoticed."""
    return PARTS[kind](what, link)
