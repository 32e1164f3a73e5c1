"""The tables of the five papers as they stand in their text: a table's name → key of a cell → its number."""

import re
from functools import cache

import pytest
from places import SHARED

PAPERS = {"ReSSL": "ressl", "RCL": "rcl", "Super-AND": "superand", "MV-MR": "mvmr", "GenURL": "genurl"}
ROMAN = {"I": 1, "II": 2, "III": 3, "IV": 4, "VI": 6, "VII": 7, "VIII": 8}
Cells = dict[tuple[str, ...], float]


@cache
def text(paper: str) -> str:
    path = SHARED / "papers" / f"{PAPERS[paper]}.txt"
    if not path.exists():
        pytest.skip(f"the text of {paper} is not at hand (set RAYSURL_SHARED)")
    return path.read_text()


def rows(paper: str, first: str, last: str) -> list[list[str]]:
    """The lines of the text from one that holds `first` to one that holds `last`, each divided at its tabulators."""
    begin = text(paper).index(first)
    block = text(paper)[begin : text(paper).index(last, begin + len(first)) + len(last)]
    return [[plain(cell) for cell in line.split("\t")] for line in block.splitlines()]


def plain(cell: str) -> str:
    """A cell without what sets it in type, and without references."""
    cell = re.sub(r"</?\w+>|\$|\*\*|†", "", cell).replace("\\checkmark", "✓")
    return re.sub(r"\s*\[\d+\]|±[\d.]+", "", cell).strip()


def number(cell: str) -> float | None:
    found = re.fullmatch(r"\d+(?:\.\d+)?", cell)
    return float(cell) if found else None


def named(paper, first, last, columns, name=lambda cell: cell) -> Cells:
    """Rows whose first cell is a name, and whose others stand in `columns`; None: not taken."""
    found: Cells = {}
    for row in rows(paper, first, last):
        for column, cell in zip(columns, row[1:], strict=False):
            if column is not None and number(cell) is not None:
                found[name(row[0]), *([column] if column else [])] = number(cell)
    return found


# -------------------------------------------------------------------- ReSSL

DATASETS = ("CIFAR-10", "CIFAR-100", "STL-10", "Tiny ImageNet")
TAU_T = ("0.01", "0.02", "0.03", "0.04", "0.05", "0.06", "0.07", "0.08", "0.09", "0.1")


def temperatures(first, last) -> Cells:
    found: Cells = {}
    for row in rows("ReSSL", first, last):
        name = row[0]
        if name in DATASETS:  # one τ_s is missing in our copy: the second row of a data set
            tau = row[1] or ("0.2" if (name, "0.1", "0.01") in found else "0.1")
            found |= {(name, tau, t): number(cell) for t, cell in zip(TAU_T, row[2:], strict=True)}
    return found


def ticked(paper, first, last, names, columns, all_of=None) -> Cells:
    """Rows of ticks under `names`, then a number for each of `columns`."""
    found: Cells = {}
    for row in rows(paper, first, last):
        if len(row) < len(names) + len(columns) or number(row[len(names)]) is None:
            continue
        given = [name for name, cell in zip(names, row, strict=False) if cell]
        label = " + ".join(given) or "none"
        label = all_of if all_of and len(given) == len(names) else label
        for column, cell in zip(columns, row[len(names) :], strict=False):
            found[(column, label) if column else (label,)] = number(cell)
    return found


def last_column(paper, first, last) -> Cells:
    """A row's name, and its epochs where it has such a column → its last number."""
    found: Cells = {}
    for row in rows(paper, first, last):
        if len(row) > 2 and number(row[-1]) is not None:
            found.setdefault((row[0].replace(" *", "*"),), number(row[-1]))
            epochs = [cell for cell in row[1:-1] if re.fullmatch(r"\d{2,4}", cell)]
            for count in epochs:
                found.setdefault((row[0].replace(" *", "*"), count), number(row[-1]))
    return found


def light_backbones() -> Cells:
    nets = {"ResNet-18": "resnet18", "ResNet-34": "resnet34", "EfficientNet-B0": "efficientnet_b0",
            "EfficientNet-B1": "efficientnet_b1", "MobileNet-V3-Large": "mobilenet_v3_large"}  # fmt: skip
    crops = {"ReSSL (1 Crop)": "1 crop", "ReSSL (2 Crops)": "2 crops", "ReSSL (Multi)": "multi"}
    found: Cells = {}
    net = ""
    for row in rows("ReSSL", "TABLE 13", "TABLE 14"):
        net = nets.get(row[0], net)
        if row[0] in crops and number(row[-1]) is not None:
            found[net, crops[row[0]]] = number(row[-1])
    return found


TRANSFER = ("CIFAR-10", "CIFAR-100", "Food-101", "Cars", "DTD", "Pets", "Flowers", "Aircraft", "Caltech101")
FEW = ("1 %, top 1", "1 %, top 5", "10 %, top 1", "10 %, top 5")
SHOTS = ("k=4", "k=8", "k=16", "k=32", "k=64", "Full")


def own(cells: Cells) -> Cells:
    """The same under names without a paper's mark of its own rows."""
    return {(name.removesuffix(" (Ours)"), *rest): value for (name, *rest), value in cells.items()}


def light_and_few() -> Cells:
    nets = {"ResNet-18": "resnet18", "ResNet-34": "resnet34", "EfficientNet-B0": "efficientnet_b0",
            "EfficientNet-B1": "efficientnet_b1", "MobileNet-V3-Large": "mobilenet_v3_large"}  # fmt: skip
    found: Cells = {}
    net = ""
    for row in rows("ReSSL", "TABLE 14", "5.2 Results on Lightweight"):
        net = nets.get(row[0], net)
        if row[0] == "ReSSL (Multi)":
            found |= {(net, "1 %"): number(row[3]), (net, "10 %"): number(row[4])}
    return found


def queue_sizes() -> Cells:
    found: Cells = {}
    for row in rows("ReSSL", "TABLE 6", "5.1 Results"):
        if re.fullmatch(r"\d{3,5}", row[0]):
            found |= {(d, row[0]): number(cell) for d, cell in zip(DATASETS, row[1:], strict=False)}
    return found


# -------------------------------------------------------------------- the others


def genurl_stl() -> Cells:
    """By epochs, and by epochs and what is done with the labels."""
    found = named("GenURL", "TABLE I ", "TABLE II", GENURL_STL)
    for (name, column), value in list(found.items()):
        semi = column.startswith("semi ")
        found[name, column.removeprefix("semi ").removesuffix("ep"), "semi" if semi else "linear"] = value
    return found


def genurl_loss() -> Cells:
    names, found = ("STL-10", "CIFAR-10", "CIFAR-100", "Tiny ImageNet"), {}
    for row in rows("GenURL", "TABLE III", "Moreover, we compare"):
        if row[0] in ("MSE", "BCE", "GKL"):
            found |= {(d, f"{row[0]}, {row[1]}"): number(c) for d, c in zip(names, row[2:], strict=True)}
    return found


def genurl_distillation() -> Cells:
    students, found = ("resnet18", "mobilenet_v2", "shufflenet_v2_x1_0"), {}
    for row in rows("GenURL", "TABLE IV", "samples, which is similar"):
        if len(row) != 11 or row[2] == "SSL" or row[0] == "KD methods":
            continue
        name = row[0]
        if name == "GenURL" and ("resnet18", "GenURL, KD") in found:
            name = "GenURL with M"  # its second row, with a dagger
        for s, student in enumerate(students):
            ssl, kd, both = (number(cell) for cell in row[2 + 3 * s : 5 + 3 * s])
            cells = {"SSL": ssl, f"{name}, KD": kd, f"{name}, KD+SSL": both}
            found |= {(student, label): value for label, value in cells.items() if value is not None}
    return found


def genurl_memory() -> Cells:
    found: Cells = {}
    for row in rows("GenURL", "TABLE VI\n", "Fig. 7."):
        if row[0] in ("256", "2048"):
            labels = [f"{kind}{m}" for kind in ("MSE", "BCE", "GKL") for m in ("", ", M")]
            found |= {(row[0], label): number(cell) for label, cell in zip(labels, row[1:], strict=True)}
    return found


def genurl_nodes() -> Cells:
    found: Cells = {}
    for row in rows("GenURL", "TABLE VII ", "and attributed features with"):
        if match := re.fullmatch(r"GenURL\((\w+)\)", row[0]):
            for graph, cell in zip(("Cora", "CiteSeer", "PubMed"), row[2:], strict=True):
                found[graph, f"{match[1]}, {row[1]}"] = number(cell)
    return found


def genurl_points(measure: int) -> Cells:
    """Of trustworthiness, continuity and accuracy the one."""
    found: Cells = {}
    for row in rows("GenURL", "TABLE VIII", "Fig. 10."):
        if match := re.fullmatch(r"GenURL\((\w+)\)", row[0]):
            for i, data in enumerate(("MNIST", "FMNIST", "COIL-20")):
                found[data, match[1]] = number(row[1 + 3 * i + measure])
    return found


def mvmr_augmentations() -> Cells:
    """In our copy the numbers of the last two rows stand below them, top 1 and top 5 by turns."""
    values = [number(row[-1]) for row in rows("MV-MR", "Random Crop\tHor", "Table 7:")]
    values = [value for value in values if value is not None and value < 90]
    names = ("crop", "flip", "colour", "gray", "blur")
    return {(" + ".join(names[: i + 1]),): value for i, value in enumerate(values)}


def mvmr_losses() -> Cells:
    cells = ticked("MV-MR", "1 loss", "Table 5:", ("L1", "L2", "L3"), ("",))
    pair = [row for row in rows("MV-MR", "2 losses", "3 losses") if row[:3] == ["✓"] * 3]
    (misprint,) = pair  # three ticks in the section of pairs
    return {**cells, ("L2 + L3",): number(misprint[3])}


def mvmr_projectors() -> Cells:
    found = {
        (row[0],): number(row[1]) for row in rows("MV-MR", "Projector size", "Table 8:")[1:] if len(row) > 1
    }
    names = {"1024-1024-1021": "1024-1024-1024", "without projector": "none"}
    return {(names.get(key, key),): value for (key,), value in found.items()}


def rcl_rows() -> Cells:
    """Two tables side by side: method and epochs → top 1."""
    found: Cells = {}
    for row in rows("RCL", "Table 1.", "5.2 "):
        for half in (row[:5], row[5:]):
            if len(half) == 5 and number(half[3]) is not None:
                name = half[0].replace(" (Ours)", "")
                found[name, half[2]] = found[f"{name}, {half[2]}", "top 1"] = number(half[3])
                if number(half[4]) is not None:
                    found[f"{name}, {half[2]}", "top 5"] = number(half[4])
    return found


def rcl_levels() -> Cells:
    found: Cells = {}
    for row in rows("RCL", "Table 3.", "Table 4."):
        if len(row) == 4 and number(row[3]) is not None:
            one, levels = (
                f"{n} {what}{'s' * (n != '1')}" for n, what in ((row[1], "predictor"), (row[2], "level"))
            )
            found[(f"{one}, {levels}",)] = number(row[3])
    return found


def rcl_clusterings(column: int) -> Cells:
    names = {"No (NNCLR)": "none (NNCLR)", "Online Hierarchical Clustering": "online"}
    found: Cells = {}
    for row in rows("RCL", "Table 4. Ab", "776 s\n"):
        if len(row) == 5 and number(row[3]) is not None:
            found[(names.get(row[0], row[0]),)] = float(row[column].removesuffix(" s"))
    return found


def superand_coarse() -> Cells:
    columns = [f"{d} {n}" for d in ("CIFAR-10", "CIFAR-100", "SVHN") for n in ("resnet18", "alexnet")]
    return named("Super-AND", "from the	previous", "Dataset\tSD", columns)


def superand_small() -> dict[str, Cells]:
    """Tables 2, 3 and 4, which stand side by side."""
    fine: Cells = {}
    nets: Cells = {}
    parts: Cells = {}
    named_parts = {
        "Full": "full",
        "w/o UE": "without UE",
        "w/o Sobel": "without Sobel",
        "w/o Aug": "without Aug",
    }
    for row in rows("Super-AND", "Dataset\tSD", "Table 2:"):
        if len(row) == 7 and number(row[6]) is not None:
            fine |= {(row[0], "Stanford Dogs"): number(row[1]), (row[0], "CUB-200"): number(row[2])}
            nets |= {(row[3].lower(),): number(row[4])} if row[3] else {}
            parts[(named_parts[row[5]],)] = number(row[6])
    return {"Table 2": fine, "Table 3": nets, "Table 4": parts}


def superand_init() -> Cells:
    (values,) = [
        row[1:] for row in rows("Super-AND", "Initialization method", "4.3 ") if row[0] == "Accuracy"
    ]
    return {(name,): number(v) for name, v in zip(("random", "instance", "full"), values, strict=True)}


GENURL_STL = ["400ep", "800ep", "1600ep", "semi 400ep", "semi 800ep", "semi 1600ep"]
GENURL_CIFAR = [f"{d} {e}ep" for d in ("CIFAR-10", "CIFAR-100", "Tiny ImageNet") for e in (400, 800)]
TEACHER_VIEW = ("crop", "flip", "jitter", "gray", "blur")
FEATURES = ("image", "ScatNet", "augmented", "HOG", "LSD")


def tables() -> dict[str, dict[str, Cells]]:
    """Paper → table → its cells. A table whose text is not here skips the test that asks for it."""
    crops = {("ReSSL (1 Crop)",): ("1 crop",), ("ReSSL (2 Crops)",): ("2 crops",)}
    return {
        "ReSSL": {
            "Table 1": temperatures("TABLE 1 ", "Effec\t"),
            "Table 2": temperatures("Effec\t", "performance is increasing"),
            "Table 3": {
                (d, w): v for (d, w), v in named("ReSSL", "TABLE 3", "4.4 ", ["without", "with"]).items()
            },
            "Table 4": ticked("ReSSL", "TABLE 4", "Fig. 2.", TEACHER_VIEW, DATASETS, all_of="all"),
            "Table 6": queue_sizes(),
            "Table 7": last_column("ReSSL", "TABLE 7", "Linear Evaluation."),
            "Table 9": own(named("ReSSL", "Method\tEpochs\tCIFAR-10", "icantly", [None, *TRANSFER])),
            "Table 10": own(named("ReSSL", "TABLE 10", "Semi-Supervised Learning.", [None, *FEW])),
            "Table 11": own(named("ReSSL", "TABLE 11", "Transfer Learning on Low-shot", [None, *SHOTS])),
            "Table 12": own(named("ReSSL", " TABLE 12", "setting in [36]", ["AP box", "AP mask"])),
            "Table 14": light_and_few(),
            "Table 8": last_column("ReSSL", "TABLE 8", "Working with Multi-Crops and")
            | {new: last_column("ReSSL", "TABLE 7", "Linear Evaluation.")[old] for old, new in crops.items()}
            | {
                (new,): last_column("ReSSL", "TABLE 8", "Working with Multi-Crops and")[(old,)]
                for old, new in {"ReSSL (Multi)": "multi", "ReSSL (Strong)": "multi, strong"}.items()
            },
            "Table 13": light_backbones(),
        },
        "RCL": {
            "Table 1": rcl_rows(),
            "Table 2": own(named("RCL", "Table 2. Comparison", "e.g., SwAV", FEW)),
            "Table 3": rcl_levels(),
            "Table 4": rcl_clusterings(3),
            "Table 4, seconds": rcl_clusterings(4),
        },
        "Super-AND": {"Table 1": superand_coarse(), **superand_small(), "Table 5": superand_init()},
        "MV-MR": {
            "Table 1": named(
                "MV-MR",
                "Method\tLinear\t\tSemi",
                "Table 1:",
                ["top 1", "top 5", "1 %, top 1", "10 %, top 1", "1 %, top 5", "10 %, top 5"],
            ),
            "Table 2": named("MV-MR", "Method\tSTL10", "Table 2:", [""]),
            "Table 3": named("MV-MR", "Linear Classification\t", "Table 3:", [""]),
            "Table 4": named("MV-MR", "Approach\tParam", "Table 4:", [None, "STL10", "ImageNet-1K"]),
            "Table 5": mvmr_losses(),
            "Table 6": ticked("MV-MR", "1 feature", "Table 6:", FEATURES, ("",)),
            "Table 7": mvmr_augmentations(),
            "Table 8": mvmr_projectors(),
        },
        "GenURL": {
            "Table I": genurl_stl(),
            "Table II": named(
                "GenURL", "TABLE II ", "## B.", [*GENURL_CIFAR, "ImageNet resnet18", "ImageNet resnet50"]
            ),
            "Table III": genurl_loss(),
            "Table IV": genurl_distillation(),
            "Table VI": genurl_memory(),
            "Table VII": genurl_nodes(),
            "Table VIII": genurl_points(2),
            "Table VIII, trustworthiness": genurl_points(0),
            "Table VIII, continuity": genurl_points(1),
        },
    }
