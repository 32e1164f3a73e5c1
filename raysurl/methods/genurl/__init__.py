"""GenURL: similarities of embeddings follow those of the input."""

from raysurl.methods.genurl.method import GenURL

__all__ = ["GenURL"]
