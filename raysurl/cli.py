"""`raysurl COMMAND [key=value …]`: the same functions as the scripts in pipelines/."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from raysurl import __version__, commands, stopping
from raysurl.errors import InputError, RunError, first_line, out_of_memory, storage_error
from raysurl.shell import completion, settings
from raysurl.shell.definitions import Setting

Command = Callable[[Sequence[str]], None]
# click keeps the lines of a paragraph that begins with \b
EXIT_CODES = """\b
Exit codes:
  0    done
  1    the work failed, or none of it came out: diverged, disk full, no trial finished
  2    an argument, a file or a data set is wrong; nothing was started
  3    reproduce: what the paper says can be seen at this size neither to hold nor not to
  130  stopped by Ctrl-C (SIGINT), after saving
  143  stopped by SIGTERM, after saving
What was stopped is saved, and says how to continue."""
COMPLETION = (
    'Completion: eval "$(_RAYSURL_COMPLETE=bash_source raysurl)" in a start file; or zsh_source, fish_source.'
)
_GIVEN = "raysurl.given"  # in a context: the arguments as they were typed


def main() -> None:
    completion.register()
    try:
        group(prog_name="raysurl")
    except OSError as error:  # of the help: a command's are understood in `run`
        said = storage_error(error, Path("what is printed"))
        if said is None:
            raise
        fail(str(said), code=1)


class _Commands(click.Group):
    """Each module of raysurl.commands as a command; its help is read from its text, so that nothing is imported."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(settings.commands())

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in settings.commands():
            return None
        about, usage = settings.about_command(name)
        arguments = click.Argument(
            ["arguments"],
            nargs=-1,
            type=click.UNPROCESSED,
            metavar="[KEY=VALUE]...",
            shell_complete=lambda context, _, incomplete: completion.complete(
                name, context.params, incomplete
            ),
        )
        return _Command(
            name,
            params=[arguments],
            callback=lambda arguments: run_named(name, arguments),
            help=f"{about}\n\n{usage}",
            short_help=about.partition("\n")[0],
            epilog=EXIT_CODES,
            context_settings={"ignore_unknown_options": True, "max_content_width": 120},
        )


class _Command(click.Command):
    """Its help lists settings too: its own, and those of the recipe that it takes, of the method that was named."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        context.meta[_GIVEN] = list(args)  # --help is answered before they are read
        return super().parse_args(context, args)

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(context, formatter)
        name = str(self.name)
        method = settings.method_of(context.meta.get(_GIVEN, ()))
        sections = {"Settings": settings.of_command(name)}
        for setting in settings.taken(name, method):
            section = setting.key.partition(".")[0] if "." in setting.key else "the run"
            sections.setdefault(f"Settings of {section}", []).append(setting)
        for title, found in sections.items():
            if found:
                with formatter.section(title):
                    formatter.write_dl([(s.key, _described(s)) for s in found], col_max=34)


def _described(setting: Setting) -> str:
    default = f", default {setting.default}" if setting.default else ""
    return f"{setting.type}{default}: {setting.about}"


@click.command(
    cls=_Commands, epilog=f"{EXIT_CODES}\n\n{COMPLETION}", context_settings={"max_content_width": 120}
)
@click.version_option(__version__, prog_name="raysurl")
def group() -> None:
    """Learn an image encoder from images without labels, and use it."""


def _main_of(name: str) -> Command:
    command: Command = importlib.import_module(f"{commands.__name__}.{name}").main
    return command


def run_named(name: str, arguments: Sequence[str] | None = None) -> None:
    """Run a command by its name; what it imports is loaded where a signal is already understood."""
    run(lambda given: _main_of(name)(given), arguments, name)


def run(command: Command, arguments: Sequence[str] | None = None, name: str | None = None) -> None:
    """Run a command, `name` where it is not that of its module; every way in which it can end has its exit code.

    A person's mistake is one sentence and 2, a failed run one and 1 (or 3), a stopped one says how to continue.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = name or command.__module__.rpartition(".")[2]
    with stopping.signals():
        try:
            _stopped_as_such(command, arguments)
        except InputError as error:
            fail(str(error), code=2)
        except RunError as error:
            fail(str(error), code=error.exit_code)
        except KeyboardInterrupt as stop:
            stopped(stop, stopping.command_line(name, arguments))
        except BrokenPipeError:  # whoever read the output wants no more of it
            stopping.end(1)
        except OSError as error:
            said = storage_error(error, Path.cwd())
            if said is None:
                raise
            fail(str(said), code=1)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            fail(f"out of memory: {first_line(error)}; smaller batches or views take less", code=1)


def _stopped_as_such(command: Command, arguments: Sequence[str]) -> None:
    """Whatever a signal has become on its way through a library, which may be any error, is the stop again."""
    try:
        command(arguments)
        sys.stdout.flush()  # a full disk or a reader that has gone shows here
    except Exception:
        signum = stopping.came()
        if not signum:
            raise
        raise stopping.StoppedError(signum) from None


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
