"""The kinds of failure that a person sees as one sentence, never as a traceback."""


class InputError(ValueError):
    """Something given is wrong: the message names it and what would be valid. Exit code 2."""


class RunError(RuntimeError):
    """A run that had begun could not go on; what it had finished is kept. Exit code 1."""


class DivergedError(RunError):
    """A loss became infinite or NaN; the message names the step and what can be done."""
