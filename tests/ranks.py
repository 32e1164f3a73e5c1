"""Functions on several gloo ranks, as raysurl.testing runs them."""

from raysurl.testing.ranks import on_ranks

__all__ = ["on_ranks"]
