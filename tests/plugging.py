"""The package of tests/plugin_package, installed: its modules beside a `.dist-info`, as pip leaves them."""

import shutil
import tomllib
from functools import cache
from pathlib import Path

from places import made_once

PACKAGE = Path(__file__).with_name("plugin_package")


@cache
def installed() -> Path:
    """The folder that it was installed into, made once in a process; for sys.path or PYTHONPATH."""
    folder = made_once("plugged")
    install(folder, tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"])
    shutil.copytree(PACKAGE / "raysurl_example", folder / "raysurl_example")
    return folder


def install(folder: Path, project: dict) -> None:
    """What `pip install --target folder` writes about a project."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
