"""A little of tests/fuzz.py: each target for a moment, and every case that once failed."""

import pytest
from fuzz import (
    ARRAYS,
    FOLDERS,
    IMAGES,
    MANIFESTS,
    PICKLES,
    TABLES,
    TARGETS,
    ArraysCase,
    FolderCase,
    ImageCase,
    ManifestCase,
    PickleCase,
    TableCase,
    check_arrays,
    check_folders,
    check_image,
    check_manifest,
    check_pickle,
    check_tables,
    search,
)
from fuzz_settings import ARGUMENTS, YAMLS, ArgumentsCase, YamlCase, check_arguments, check_yaml
from fuzz_stored import StoredCase, check_run, check_sweep
from hypothesis import HealthCheck, example, given, settings

few = settings(max_examples=30, suppress_health_check=list(HealthCheck))


@few
@given(IMAGES)
@example(ImageCase("La", "PNG", (1, 1), 0, 1, False, 0, [], None))
@example(ImageCase("LAB", "TIFF", (2, 3), 6, 1, False, 0, [], None))
@example(ImageCase("P", "GIF", (5, 4), 0, 3, True, 1, [], None))
@example(ImageCase("CMYK", "JPEG", (3, 9), 5, 1, False, 1, [], None))
@example(ImageCase("I;16", "PNG", (1, 1), 8, 1, False, 1, [], None))
def test_images(case: ImageCase) -> None:
    check_image(case)


@few
@given(ARRAYS)
@example(ArraysCase({"images": ("u1", ()), "x": ("u1", ()), "": ("u1", (0, 1))}, False, False, [], None))
@example(ArraysCase({"x": ("u1", (3, 4, 4)), "y": ("S3", (3,))}, True, False, [], None))
@example(ArraysCase({"x": ("c8", (3, 4))}, False, True, [], None))
@example(ArraysCase({"labels": (">u2", ()), "images": ("u1", (1, 1))}, False, False, [], None))
@example(ArraysCase({"labels": ("c8", (1,)), "images": ("u1", (1, 1))}, False, False, [], None))
def test_arrays(case: ArraysCase) -> None:
    check_arrays(case)


@few
@given(TABLES)
@example(TableCase([{"é\n": "binary"}], 0, 1, None, [], None))
@example(TableCase([{"image": "lists"}], 5, 2, None, [(37, 1)], None))
@example(TableCase([{"image": "binary", "label": "text"}], 5, 2, None, [(172, 128), (643, 128)], None))
@example(TableCase([{"image": "binary"}, {"image": "struct"}], 3, 2, None, [], None))
@example(TableCase([{"image": "bytes as numbers"}], 3, 2, None, [], None))
@example(TableCase([{"image.bytes": "list of bytes", "image": "struct"}], 1, 1, "none", [], None))
def test_tables(case: TableCase) -> None:
    check_tables(case)


@few
@given(FOLDERS)
@example(FolderCase([[b"\x01"]], b"", "table"))
@example(FolderCase([[b"\xff", b"a"], [b"b"]], b"\xff\xfea\n", None))
@example(FolderCase([[b"a"]], b'path,label\n"a', "table"))
def test_folders(case: FolderCase) -> None:
    check_folders(case)


@few
@given(MANIFESTS)
@example(ManifestCase({"mode": "streaming", "reasons": {"7": "x"}}, {}, 3, [], None))
@example(ManifestCase({"depth": {"low": True, "bits": 99}}, {"readable": "text"}, 3, [], None))
def test_manifests(case: ManifestCase) -> None:
    check_manifest(case)


@few
@given(PICKLES)
@example(PickleCase(0, 2, [], 3))
def test_pickles(case: PickleCase) -> None:
    check_pickle(case)


@few
@given(YAMLS)
@example(YamlCase(False, ["a", ": ", "!x "], 0, None, [], None))
def test_yaml(case: YamlCase) -> None:
    check_yaml(case)


@few
@given(ARGUMENTS)
@example(ArgumentsCase("pretrain", ["[="]))
def test_arguments(case: ArgumentsCase) -> None:
    check_arguments(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        StoredCase("results.json", [(0, "set", None), (2042, "set", True)], [], None),
        StoredCase("metrics.jsonl", [(40, "set", 10**400)], [], None),
        StoredCase("classifier-full.safetensors", [(0, "drop", None)], [], None),
        StoredCase("classifier-full.safetensors", [(2236, "set", float("inf"))], [], None),
        StoredCase("results.json", [(24, "set", "\ud800")], [], None),
        StoredCase("samples/neighbours.npz", None, [(400, 0)], 3000),
    ],
)
def test_runs(case: StoredCase) -> None:
    check_run(case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        StoredCase("sweep.json", [(0, "set", None)], [], None),
        StoredCase("sweep.json", [(509, "drop", None)], [], None),
        StoredCase("sweep.json", [(1579, "set", 3913)], [], None),
        StoredCase("sweep.json", [(1862, "set", 8312), (113, "set", -534752)], [], None),
        StoredCase("cell.json", [(0, "set", [1])], [], None),
    ],
)
def test_sweeps(case: StoredCase) -> None:
    check_sweep(case)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_forty_cases_of_it(target: str) -> None:
    """The same ones each time: what is random looks for new faults by `python tests/fuzz.py`, not in everybody's CI."""
    assert search(target, cases=40, start=0) >= 40
