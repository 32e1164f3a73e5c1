"""Training: the loop, what feeds it, optimizers, checkpoints, and the run directory it writes."""
