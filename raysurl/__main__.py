"""`python -m raysurl`, and the command `raysurl`: nothing is imported before a signal is understood."""

import os
import signal
from types import FrameType

_BY = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


def _end(signum: int, frame: FrameType | None) -> None:
    os.write(2, f"raysurl: stopped by {_BY[signal.Signals(signum)]}\n".encode())
    os._exit(128 + signum)


def main() -> None:
    for signum in _BY:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, _end)
    from raysurl import cli  # what it imports takes a while; when it works, it listens for itself

    cli.main()


if __name__ == "__main__":
    main()
