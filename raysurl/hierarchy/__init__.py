"""Online hierarchical clustering of all samples (RCL sec. 4.3)."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysurl.hierarchy.online import Hierarchy

__all__ = ["Hierarchy"]


def __getattr__(name: str) -> Any:
    if name == "Hierarchy":  # what compiles it takes half a second to load, and of a run only memory needs it
        from raysurl.hierarchy.online import Hierarchy

        return Hierarchy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
