"""Start a process of a Ray of one run with the environment variables that it is given.

Ray's own script of this name, by which its raylet knows it, imports Ray for that, and so does the process then: .45 s
of a core for each of Ray Train's processes. Whatever is asked for besides variables is left to that script.
"""

import json
import os
import re
import sys
from importlib.util import find_spec

CONTEXT, LANGUAGE = "--serialized-runtime-env-context=", "--language="


def command(arguments: list[str]) -> list[str]:
    """The words of the process that these arguments of a raylet ask for. Sets its variables."""
    asked = next((word.removeprefix(CONTEXT) for word in arguments if word.startswith(CONTEXT)), "{}")
    context = json.loads(asked)
    variables, python = context.pop("env_vars", None) or {}, context.pop("py_executable", None)
    # another Python may be words of a shell: `uv run python`
    other = python not in (None, sys.executable)
    if other or any(context.values()) or LANGUAGE + "PYTHON" not in arguments:
        ray = find_spec("ray")
        assert ray is not None  # its raylet has begun this
        script = os.path.join(os.path.dirname(str(ray.origin)), "_private", "workers", "setup_worker.py")
        return [sys.executable, script, *arguments]
    for name, value in variables.items():
        # ${NAME} of what is not set is nothing, as with Ray
        os.environ[name] = re.sub(r"\$\{[A-Z0-9_]+\}", "", os.path.expandvars(value))
    return [sys.executable, *(word for word in arguments if not word.startswith((CONTEXT, LANGUAGE)))]


if __name__ == "__main__":
    words = command(sys.argv[1:])
    os.execv(words[0], words)
