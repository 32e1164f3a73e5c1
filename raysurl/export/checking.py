"""An exported form against the original, on random inputs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from raysurl import streams
from raysurl.errors import RunError

BATCHES = (1, 3, 8)  # of several sizes, so that no size is built in
LIMIT = 1e-4  # of the largest difference; of outputs beyond 1 relative to the largest, as fp32 has it

Apply = Callable[[Tensor], Tensor]


def difference(
    target: str,
    original: nn.Module,
    exported: Apply,
    shape: tuple[int, ...],
    span: tuple[float, float] = (-2.0, 2.0),
) -> float:
    """The largest one between outputs for inputs (b, *shape) fp32 in `span`. Raises RunError beyond LIMIT."""
    worst = 0.0
    draws = streams.torch_stream(0, "export")
    for count in BATCHES:
        given = torch.rand(count, *shape, generator=draws) * (span[1] - span[0]) + span[0]
        with torch.no_grad():
            wanted, found = original(given), exported(given)
        if found.shape != wanted.shape or not torch.isfinite(wanted).all():
            raise RunError(
                f"to={target}: the encoder gives {_said(wanted)} for {count} inputs and its export {_said(found)};"
                " nothing was written"
            )
        off = float((found - wanted).abs().max())
        if not off <= LIMIT * max(1.0, float(wanted.abs().max())):
            raise RunError(
                f"to={target}: the export differs from the encoder by {off:.2g}, more than {LIMIT:g}; nothing was"
                " written"
            )
        worst = max(worst, off)
    return worst


def _said(out: Tensor) -> str:
    return (
        f"{'finite' if torch.isfinite(out).all() else 'infinite or NaN'} values of shape {tuple(out.shape)}"
    )


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without what exporters say of themselves: their result is compared with the original."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
