"""Online hierarchical clustering of all samples (RCL sec. 4.3)."""

from raysurl.hierarchy.online import Hierarchy

__all__ = ["Hierarchy"]
