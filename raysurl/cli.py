"""`raysurl COMMAND [key=value …]`: the same functions as the scripts in pipelines/."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from raysurl import __version__, commands, stopping
from raysurl.errors import InputError, RunError, storage_error

Command = Callable[[Sequence[str]], None]
# click keeps the lines of a paragraph that begins with \b
EXIT_CODES = """\b
Exit codes:
  0    done
  1    the work failed, or none of it came out: diverged, disk full, no trial finished
  2    an argument, a file or a data set is wrong; nothing was started
  130  stopped by Ctrl-C (SIGINT), after saving
  143  stopped by SIGTERM, after saving
What was stopped is saved, and says how to continue."""


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
            callback=lambda arguments: run_named(name, arguments),
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


def run_named(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command by its name; what it imports is loaded where a signal is already understood."""
    run(lambda given: _main_of(name)(given), arguments, name)


def _docstrings(name: str) -> tuple[str, str]:
    """Of the command's module, and of its `main`."""
    tree = ast.parse((Path(commands.__path__[0]) / f"{name}.py").read_text())
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    return ast.get_docstring(tree) or "", ast.get_docstring(function) or ""


def run(command: Command, arguments: Sequence[str] | None = None, name: str | None = None) -> None:
    """Run a command, `name` where it is not that of its module; every way in which it can end has its exit code.

    A person's mistake is one sentence and 2, a failed run one and 1, a stopped one says how to continue.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = name or command.__module__.rpartition(".")[2]
    with stopping.signals():
        try:
            command(arguments)
        except InputError as error:
            fail(str(error), code=2)
        except RunError as error:
            fail(str(error), code=1)
        except KeyboardInterrupt as stop:
            stopped(stop, stopping.command_line(name, arguments))
        except BrokenPipeError:  # whoever read the output wants no more of it
            stopping.end(1)
        except OSError as error:
            said = storage_error(error, Path.cwd())
            if said is None:
                raise
            fail(str(said), code=1)


def stopped(stop: KeyboardInterrupt, again: str) -> None:
    """Say how to go on, and end: at once where it was a signal, for nothing is left to be waited for."""
    if not isinstance(stop, stopping.StoppedError):
        stop = stopping.StoppedError(signal.SIGINT)
    stop.how = stop.how or f"start it again with: {again}"
    say(str(stop))
    if stopping.came():
        stopping.end(stop.exit_code)
    sys.exit(stop.exit_code)


def say(sentence: str) -> None:
    print(f"raysurl: {sentence}", file=sys.stderr, flush=True)


def fail(sentence: str, *, code: int) -> None:
    say(sentence)
    sys.exit(code)
