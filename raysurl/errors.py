"""The kinds of failure that a person sees as one sentence, never as a traceback."""


def printable(text: str) -> str:
    """Text on one line: control characters, which names of files and columns may hold, as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class InputError(ValueError):
    """Something given is wrong: the message names it and what would be valid, on one line. Exit code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RunError(RuntimeError):
    """A run that had begun could not go on; what it had finished is kept. Exit code 1."""


class DivergedError(RunError):
    """A loss became infinite or NaN; the message names the step and what can be done."""
