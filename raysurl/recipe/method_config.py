"""A method's settings, and what follows from them before there is a network or a sample."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from raysurl import plugins
from raysurl.errors import InputError
from raysurl.recipe.schema import Section

if TYPE_CHECKING:
    from raysurl.memory.base import Memory
    from raysurl.method import Progress

TeacherKind = Literal["no", "any", "network", "labels"]
"""From whom a method learns: no teacher, any, one that sees views, or the labels (a supervised reference)."""

Refresh = Literal["no", "itself", "features"]
"""Whether memory is rebuilt now, and of what: what it holds, or the features of the whole data set."""


def built_in() -> list[str]:
    """Names of the package's own methods: the modules of raysurl.methods, of which none is imported."""
    return sorted(module.name for module in pkgutil.iter_modules(_package().submodule_search_locations))


def available() -> list[str]:
    """Names of all methods: the package's own, and those that installed packages offer."""
    return sorted({*built_in(), *plugins.names("method")})


def method_class(name: str) -> type[Any]:
    """The class of a method, which brings torch: of the module of this name, or from outside the package.

    Raises InputError, which names the methods there are, and for what is no method.
    """
    if name in built_in():
        module = importlib.import_module(f"{_package().name}.{name}")
        own = [
            c
            for c in vars(module).values()
            if isinstance(c, type) and c.__module__.startswith(module.__name__)
        ]
        (found,) = [c for c in own if _has_config(c)]
        return found
    if not plugins.offered("method", name):
        hint = plugins.near("method", name, built_in())
        raise InputError(
            f"method.name={name!r} is not a method; choose one of {', '.join(available())}{hint}"
        )
    found = plugins.load("method", name)
    # by its name, for the class itself stands above this layer
    bases = {f"{c.__module__}.{c.__qualname__}" for c in found.__mro__} if isinstance(found, type) else set()
    if "raysurl.method.Method" not in bases:
        what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
        raise InputError(
            f"method.name={name} is {what}, which is not a raysurl.method.Method; name a subclass of it"
        )
    if not _has_config(found):
        raise InputError(
            f"method.name={name}: its Config is not a raysurl.method.MethodConfig; make it a subclass"
        )
    return found


def _has_config(found: type) -> bool:
    config = getattr(found, "Config", None)
    return isinstance(config, type) and issubclass(config, MethodConfig)


def _package() -> ModuleSpec:
    found = importlib.util.find_spec("raysurl.methods")
    assert found is not None
    return found


class MethodConfig(Section):
    """Base of a method's `Config`. A method without a memory or a teacher states its views alone."""

    couples_batch: ClassVar[bool] = False  # the loss is not a mean of per-sample terms
    freezes_patches: ClassVar[bool] = False  # a network that cuts images into patches keeps its first layer

    name: str = ""  # of the method; set by whoever reads a recipe

    def views(self) -> dict[str, str]:
        """View name -> name of its default policy (raysurl.views.POLICIES), or of the view whose policy it shares."""
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

    def learns_from(self) -> TeacherKind:
        """Whether the recipe must name a frozen teacher, and whether that must see views (teacher.view=same)."""
        return "no"

    def reads_hidden(self) -> bool:
        """Whether it reads what enters the encoder's last layer, which only the encoder mlp shows."""
        return False

    def largest_batch(self) -> int | None:
        """The most samples that one global batch may have; None where nothing grows faster than the batch."""
        return None

    def check(self, num_samples: int) -> None:
        """Raises InputError where these settings cannot be of so many samples. Called before anything starts."""

    def rule(self) -> str:
        """Which of several rules these settings take, where a number means little without it: said beside each."""
        return ""

    def for_data(self, name: str, path: str | None, limit: int | None) -> Self:
        """These settings for the data `data.name`, `data.path`, where some are to be found there."""
        return self

    def for_teacher(self, dim: Callable[[], int]) -> Self:
        """These settings for the recipe's teacher, whose embeddings have `dim()` values, where some follow from it."""
        return self


def config_class(name: str) -> type[MethodConfig]:
    """The Config of the method of this name."""
    config: type[MethodConfig] = method_class(name).Config
    return config
