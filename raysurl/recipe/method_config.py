"""A method's settings, and what follows from them before there is a network or a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from raysurl.recipe.schema import Section

if TYPE_CHECKING:
    from raysurl.memory.base import Memory
    from raysurl.method import Progress

Taught = Literal["no", "any", "network", "labels"]
"""From whom a method learns: no teacher, any, one that sees views, or the labels (a supervised reference)."""

Refresh = Literal["no", "itself", "features"]
"""Whether memory is rebuilt now, and of what: what it holds, or the features of the whole data set."""


class MethodConfig(Section):
    """Base of a method's `Config`. A method without a memory or a teacher states its views alone."""

    couples_batch: ClassVar[bool] = False  # the loss is not a mean of per-sample terms

    name: str = ""  # the module of raysurl.methods; set by whoever reads a recipe

    def views(self) -> dict[str, str]:
        """View name -> name of its default augmentation policy (raysurl.views.POLICIES)."""
        return {}

    def remembers(self) -> type[Memory] | None:
        """The class of the method's memory, which says what can be asked of it; None: it remembers nothing."""
        return None

    def memory(self, num_samples: int, seed: int) -> Memory:
        """Build that memory for a data set of so many samples."""
        raise LookupError(f"{self.name} remembers nothing")

    def refresh(self, progress: Progress) -> Refresh:
        """Whether memory is rebuilt before the epoch that starts at `progress`."""
        return "no"

    def learns_from(self) -> Taught:
        """Whether the recipe must name a frozen teacher, and whether that must see views (teacher.view=same)."""
        return "no"

    def largest_batch(self) -> int | None:
        """The most samples that one global batch may have; None where nothing grows faster than the batch."""
        return None

    def check(self, num_samples: int) -> None:
        """Raises InputError where these settings cannot be of so many samples. Called before anything starts."""

    def for_data(self, name: str, path: str | None, limit: int | None) -> Self:
        """These settings for the data `data.name`, `data.path`, where some are to be found there."""
        return self

    def for_teacher(self, dim: Callable[[], int]) -> Self:
        """These settings for the recipe's teacher, whose embeddings have `dim()` values, where some follow from it."""
        return self
