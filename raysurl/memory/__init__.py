"""What methods remember between steps: a FIFO queue, and a bank addressed by sample index."""

from raysurl.memory.bank import Bank
from raysurl.memory.queue import Queue

__all__ = ["Bank", "Queue"]
