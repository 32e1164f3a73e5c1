"""Each number that a space or a recipe takes from a paper stands in that paper's table, at that row and column."""

import re

import papers
import pytest

from raysurl.recipe import packaged_recipes
from raysurl.sweep.paper import paper_numbers
from raysurl.sweep.space import SPACES, read_space

SPACE_FILES = sorted(SPACES.glob("*.yaml"))
RECIPE_FILES = [SPACES.parent / "recipes" / f"{name}.yaml" for name in packaged_recipes()]
NAMED = re.compile(
    r"(ReSSL|RCL|Super-AND|MV-MR|GenURL)(?: \(journal version\))?, (Tables?|Fig\.) ([IVX]+|\d+[a-c]?)(?: and (\d+))?"
)
# numbers of a figure that are printed elsewhere: axis label -> paper, table, key
ELSEWHERE = {
    "rcl_fig5a": {"200": ("RCL", "Table 1", ("RCL", "200")), "800": ("RCL", "Table 1", ("RCL", "800"))},
    "rcl_fig5b": {"98304": ("RCL", "Table 3", ("3 predictors, 3 levels",))},
}
# of no paper
OWN = (
    "cifar10_cpu",
    "longer_cpu",
    "evening_cpu",
    "mvmr_crops_cpu",
    "distillation_cpu",
    "cora",
    "backbones_cpu",
)
IN_WORDS = {("stl10", 89.71)}  # of an abstract, which is finer than its table
SAID = {("rcl_fig5b", "65536"): (72.6 - 0.36, "0.36%")}  # by the text's words


@pytest.fixture(scope="module")
def tables():
    return papers.tables()


def named(text):
    """Paper, and the tables or the figure that a title or header names first."""
    found = NAMED.search(text)
    if not found:
        return None
    paper, kind, first, second = found.groups()
    kind = "Table" if kind.startswith("Table") else kind
    return paper, [f"{kind} {number}" for number in (first, second) if number]


@pytest.mark.parametrize("path", SPACE_FILES, ids=lambda p: p.stem)
def test_every_space_names_the_table_that_it_is_from(path):
    header = path.read_text().splitlines()[0]
    space = read_space(path.stem)
    if named(space.title) is None:
        assert not paper_numbers(space)
        assert space.search == "optuna" or path.stem in OWN
    else:
        assert named(header) == named(space.title)
        assert path.stem.replace("_", "").startswith(named(space.title)[0].lower().replace("-", ""))


@pytest.mark.parametrize("path", SPACE_FILES, ids=lambda p: p.stem)
def test_the_numbers_of_a_space_are_the_papers_cell_by_cell(path, request):
    space = read_space(path.stem)
    numbers = paper_numbers(space)
    if not numbers or space.read_from_figure:
        return
    tables = request.getfixturevalue("tables")
    paper, names = named(space.title)
    printed = {}
    for name in reversed(names):
        printed |= tables[paper].get(name, {})
    for labels, value in numbers.items():
        if (path.stem, *labels) in SAID:
            expected, words = SAID[(path.stem, *labels)]
            assert words in papers.text(paper)
        elif path.stem in ELSEWHERE:
            other, table, key = ELSEWHERE[path.stem][labels[0]]
            expected = tables[other][table][key]
        else:
            assert labels in printed, f"{names}: there is no cell {labels}; it has {sorted(printed)[:60]}"
            expected = printed[labels]
        assert value == pytest.approx(expected), labels


def test_a_wrong_number_row_or_column_would_be_found(tables):
    printed = tables["ReSSL"]["Table 1"]
    assert printed["STL-10", "0.1", "0.03"] == 88.89
    assert printed["STL-10", "0.1", "0.04"] != 88.89
    assert tables["Super-AND"]["Table 1"]["AND", "CIFAR-10 resnet18"] == 86.3
    assert tables["Super-AND"]["Table 1"]["Super-AND", "SVHN alexnet"] == 91.9
    assert tables["GenURL"]["Table IV"]["mobilenet_v2", "GenURL with M, KD"] == 87.28
    assert tables["RCL"]["Table 4, seconds"]["K-means",] == 1056
    assert ("efficientnet_b1", "multi") not in tables["ReSSL"]["Table 13"]


# -------------------------------------------------------------------- recipes


def header_of(path):
    return [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]


def cells_of(path):
    return [line.removeprefix("Cell: ") for line in header_of(path) if line.startswith("Cell: ")]


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_recipe_names_the_cells_that_it_is_to_give(path, request):
    cells = cells_of(path)
    assert cells, "the header has no line `# Cell: …` (or `# Cell: none`)"
    if cells == ["none"]:
        return
    tables = request.getfixturevalue("tables")
    for cell in cells:
        where, _, number = cell.rpartition(" = ")
        place, *key = where.split(" | ")
        paper, _, table = place.partition(", ")
        printed = tables[paper][table]
        assert tuple(key) in printed, f"{place} has no cell {key}; it has {sorted(printed)[:60]}"
        assert float(number) == pytest.approx(printed[tuple(key)]), cell


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_the_numbers_in_a_headers_words_stand_in_the_tables_that_it_names(path, request):
    listed = re.findall(r"Tables? ((?:(?:[IVX]+|\d+)(?:, | and )?)+)", " ".join(header_of(path)))
    found = {number for numbers in listed for number in re.findall(r"[IVX]+|\d+", numbers)}
    for line in header_of(path):
        numbers = [
            float(n) for n in re.findall(r"(?<![\d.·,^])\d{2}\.\d{1,2}(?![\d.]|\s*(?:px|s\b|MB))", line)
        ]
        if not found or not numbers or line.startswith("Cell:") or "Nearest published" in line:
            continue
        tables = request.getfixturevalue("tables")
        printed = {
            value
            for paper in tables.values()
            for name, cells in paper.items()
            if name.partition(",")[0].removeprefix("Table ") in found
            for value in cells.values()
        }
        for number in numbers:
            assert number in printed or (path.stem, number) in IN_WORDS, line


def test_baselines_on_imagenet_are_there_for_the_tables_that_show_them():
    names = {path.parent.name for path in RECIPE_FILES if path.stem == "imagenet"}
    assert names >= {
        "ressl",
        "rcl",
        "mvmr",
        "genurl",
        "mocov2",
        "mocov3",
        "nnclr",
        "simclr",
        "byol",
        "simsiam",
    }
