"""`python -m raysurl` is `raysurl`."""

from raysurl.cli import main

main()
