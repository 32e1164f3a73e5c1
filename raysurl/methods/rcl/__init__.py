"""RCL: relative contrastive learning with an online hierarchical clustering."""

from raysurl.methods.rcl.method import RCL

__all__ = ["RCL"]
