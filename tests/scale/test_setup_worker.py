"""How processes of a Ray of one run are started: as Ray starts them, without importing it for that."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray")

from ray._private.runtime_env.context import RuntimeEnvContext
from ray.core.generated.common_pb2 import Language

from raysurl.scale import setup_worker

CONTEXTS = {
    "variables": {"env_vars": {"GIVEN": "a b", "FROM": "${GIVEN}/${NOTHING}/$HOME"}},
    "this python": {"env_vars": {}, "py_executable": sys.executable},
    "nothing": {},
}


@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
def test_a_process_with_variables_is_started_as_ray_starts_it(context, monkeypatch):
    words = ["-s", "/a folder/default_worker.py", "--port=1"]
    asked = [*words, "--language=PYTHON", f"--serialized-runtime-env-context={json.dumps(context)}"]
    found, ran = [], []
    for start in (
        lambda: setup_worker.command(asked),
        lambda: RuntimeEnvContext(**context).exec_worker(words, Language.Value("PYTHON")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", {"HOME": "/home/me", "PATH": "/bin"})
            patch.setattr(os, "execvp", lambda file, args: ran.append(shlex.split(args[-1])[1:]))
            found.append((start() or ran[0], dict(os.environ)))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "asked",
    [
        ["w.py", '--serialized-runtime-env-context={"command_prefix": ["nice"]}', "--language=PYTHON"],
        ["w.py", '--serialized-runtime-env-context={"py_executable": "uv run python"}', "--language=PYTHON"],
        ["w.jar", "--serialized-runtime-env-context={}", "--language=JAVA"],
        ["-m", "ray.util.client.server"],
    ],
)
def test_whatever_else_a_process_needs_is_left_to_ray(asked):
    python, script, *words = setup_worker.command(asked)
    assert python == sys.executable
    assert script.endswith("ray/_private/workers/setup_worker.py")
    assert Path(script).is_file()
    assert words == asked


def test_ray_is_not_imported_for_it():
    code = "import sys; from raysurl.scale.setup_worker import command; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_tests_own_ray_starts_its_processes_so(ray_session):
    import ray

    def told():
        return os.environ["TOLD"]

    assert ray.get(ray.remote(num_cpus=0, runtime_env={"env_vars": {"TOLD": "a b"}})(told).remote()) == "a b"
    ours = setup_worker.__file__.encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    assert any(b"/raylet" in words and ours in words for words in found)
