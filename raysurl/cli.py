"""`raysurl <command> [key=value …]`: the same functions as the scripts in pipelines/."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence

from raysurl import commands
from raysurl.errors import InputError, RunError


def main() -> None:
    names = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    if len(sys.argv) < 2 or sys.argv[1] not in names:
        fail(f"usage: raysurl {{{','.join(names)}}} [key=value …]", code=2)
    run(importlib.import_module(f"raysurl.commands.{sys.argv[1]}").main, sys.argv[2:])


def run(command: Callable[[Sequence[str]], None], arguments: Sequence[str] | None = None) -> None:
    """Run a command; a person's mistake is one sentence and exit code 2, a failed run one and exit code 1."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
    except InputError as error:
        fail(str(error), code=2)
    except RunError as error:
        fail(str(error), code=1)
    except KeyboardInterrupt:
        fail("interrupted; continue with resume=true output=DIR", code=130)


def fail(sentence: str, *, code: int) -> None:
    print(f"raysurl: {sentence}", file=sys.stderr, flush=True)
    sys.exit(code)
