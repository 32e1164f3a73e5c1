"""`raysurl COMMAND [key=value …]`: the same functions as the scripts in pipelines/."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from raysurl import __version__, commands
from raysurl.errors import InputError, RunError

Command = Callable[[Sequence[str]], None]
EXIT_CODES = "Exit codes: 0 done, 1 the work failed, 2 an argument or a file is wrong, 130 and 143 stopped."


def main() -> None:
    group(prog_name="raysurl")


def available() -> list[str]:
    """Names of all commands: the modules of raysurl.commands, of which none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(commands.__path__))


class _Commands(click.Group):
    """Each module of raysurl.commands as a command; its help is read from its text, so that nothing is imported."""

    def list_commands(self, context: click.Context) -> list[str]:
        return available()

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in available():
            return None
        about, usage = _docstrings(name)
        arguments = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED, metavar="[KEY=VALUE]...")
        return click.Command(
            name,
            params=[arguments],
            callback=lambda arguments: run(_main_of(name), arguments),
            help=f"{about}\n\n{usage}",
            short_help=about.partition("\n")[0],
            epilog=EXIT_CODES,
            context_settings={"ignore_unknown_options": True},
        )


@click.command(cls=_Commands, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="raysurl")
def group() -> None:
    """Learn an image encoder from images without labels, and use it."""


def _main_of(name: str) -> Command:
    command: Command = importlib.import_module(f"{commands.__name__}.{name}").main
    return command


def _docstrings(name: str) -> tuple[str, str]:
    """Of the command's module, and of its `main`."""
    tree = ast.parse((Path(commands.__path__[0]) / f"{name}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return ast.get_docstring(tree) or "", ast.get_docstring(function) or ""


def run(command: Command, arguments: Sequence[str] | None = None) -> None:
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
