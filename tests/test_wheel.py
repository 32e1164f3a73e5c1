"""What is installed from a wheel: recipes, search spaces and types come with it."""

import os
import subprocess
import sys
import zipfile

import pytest
from places import ROOT

BUILD = (
    "import os, sys; from setuptools import build_meta; os.chdir(sys.argv[1]);"
    " print(build_meta.build_wheel(sys.argv[2]))"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the files of a wheel that was built from a copy of the tracked files."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ("source", "wheels", "site"))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = subprocess.run(
        [sys.executable, "-c", BUILD, str(source), str(wheels)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(installed, where, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "raysurl", *arguments],
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_a_space_and_a_recipe_are_found_by_name_from_another_directory(installed, tmp_path):
    found = run(installed, tmp_path, "sweep", "space=ressl_table2", "scale=cpu", "--print")
    assert found.returncode == 0, found.stderr
    assert "60 trials" in found.stdout
    found = run(installed, tmp_path, "pretrain", "recipe=rcl/cifar10", "--print")
    assert "name: rcl" in found.stdout
    where = run(installed, tmp_path, "pretrain", "recipe=nothing")
    assert where.returncode == 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_licence_and_the_marker_of_types_are_in_it(installed):
    assert (installed / "raysurl" / "py.typed").is_file()
    (metadata,) = installed.glob("raysurl-*.dist-info/METADATA")
    assert "License-Expression: Apache-2.0" in metadata.read_text()
