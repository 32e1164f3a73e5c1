"""Similarities of pairs from their distances, and losses between them (GenURL eqs. 1, 7-10).

Both are of B² pairs, whose passes through memory are a third of a step to the plane: gradients are written down, so
that there are as few of them as can be.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raysurl.errors import InputError

LARGEST = 1 - 1e-6  # q of which log(1−q) is taken


def log_student_kernel(distance: Tensor, nu: float | Tensor) -> Tensor:
    """log κ(d, ν) of GenURL eq. 1: κ is √(2π) times the density of Student's t with ν degrees of freedom.

    κ(d, ν) = √(2π)·Γ((ν+1)/2) / (√(νπ)·Γ(ν/2)) · (1 + d²/ν)^(−(ν+1)/2), which is exp(−d²/2) as ν → ∞. `distance` of
    any shape, `nu` > 0 (a number, or a tensor that broadcasts). float64 stays float64, anything else becomes fp32.
    Raises InputError for a `nu` that is not positive.
    """
    if not isinstance(nu, Tensor) and not nu > 0:
        raise InputError(f"the degrees of freedom of Student's kernel must be positive, not nu={nu}")
    d, nu = _at_least_fp32(distance), torch.as_tensor(nu, dtype=torch.float64)
    exact = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * torch.log(nu / 2)
    # beyond, the difference of lgammas loses its digits
    at_zero = torch.where(nu < 1e5, exact, -1 / (4 * nu))
    log_kernel = at_zero - (nu + 1) / 2 * torch.log1p(d.square() / nu)
    return log_kernel.to(d.dtype)


def log_student_of_rows(a: Tensor, b: Tensor, nu: float) -> Tensor:
    """`log_student_kernel` of the Euclidean distances of rows (A, D), (B, D) of few dimensions -> (A, B).

    Raises InputError for a `nu` that is not positive.
    """
    at_zero = float(log_student_kernel(torch.zeros((), dtype=torch.float64), nu))
    rows: Tensor = _LogStudentOfRows.apply(_at_least_fp32(a), _at_least_fp32(b), float(nu), at_zero)
    return rows


class _LogStudentOfRows(torch.autograd.Function):
    """∂ log κ/∂a_i = −(ν+1)/ν · (a_i − b_j) / (1 + d²/ν), which is zero where a_i = b_j."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, nu: float, at_zero: float) -> Tensor:
        stretch = a.new_zeros(len(a), len(b))
        for x, y in zip(a.unbind(1), b.unbind(1), strict=True):
            difference = x[:, None] - y
            stretch.addcmul_(difference, difference, value=1 / nu)
        log_kernel = stretch.log1p().mul_(-(nu + 1) / 2).add_(at_zero)
        ctx.save_for_backward(a, b, stretch.add_(1))
        ctx.nu = nu
        return log_kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor, None, None]:
        a, b, stretch = ctx.saved_tensors
        force = (slope / stretch).mul_(-(ctx.nu + 1) / ctx.nu)
        of_a, of_b = torch.empty_like(a), torch.empty_like(b)
        for column, (x, y) in enumerate(zip(a.unbind(1), b.unbind(1), strict=True)):
            along = (x[:, None] - y).mul_(force)
            of_a[:, column], of_b[:, column] = along.sum(dim=1), -along.sum(dim=0)
        return of_a, of_b, None, None


def similarity_loss(
    p: Tensor,
    q: Tensor | None = None,
    *,
    log_q: Tensor | None = None,
    kind: str,
    gamma: float = 0.1,
    mask: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """How far similarities q are from their targets p (GenURL eqs. 7-10), over pairs; p has no gradient.

    mse (p−q)²;  kl p·log(p/q), the sign under which minimising it brings q to p (eq. 8 has the other);
    bce −p·log q − (1−p)·log(1−q);  gkl −p·log q + γ|p−q|.
    `p` and `q`, or log q where it is known and q may underflow, are of one shape, q in [0, 1]; of both, log q has the
    gradient. `mask` bool, of the same shape: True = the pair counts. `reduction`: the mean over the pairs that count
    (0 if none does), or their sum as in the paper. log(1−q) is that of q ≤ 1−10⁻⁶. Raises InputError for an unknown
    kind or reduction, or shapes that differ.
    """
    if q is None and log_q is None:
        raise InputError("similarity_loss takes the similarities as q, as log_q, or as both")
    given = _at_least_fp32(q if log_q is None else log_q)  # type: ignore[arg-type]
    q = given.detach().exp() if q is None else q.detach().to(given.dtype)
    p = p.detach().to(given.dtype)
    if any(x is not None and x.shape != given.shape for x in (p, q, mask)):
        shapes = [tuple(x.shape) for x in (p, q, log_q, mask) if x is not None]
        raise InputError(f"targets, similarities and mask must be of one shape, not {shapes}")
    if kind not in _LOSSES:
        raise InputError(f"the similarity loss {kind!r} is not known; choose one of {', '.join(_LOSSES)}")
    if reduction not in ("mean", "sum"):
        raise InputError(f"reduction={reduction!r} is not known; choose mean or sum")
    total: Tensor = _SimilarityLoss.apply(given, q, log_q is not None, p, mask, kind, gamma)
    if reduction == "sum":
        return total
    return total / (p.numel() if mask is None else mask.sum().clamp(min=1))


class _SimilarityLoss(torch.autograd.Function):
    """The sum over pairs of ℓ(p, q, log q), whose slope in q is ∂ℓ/∂q + ∂ℓ/∂log q / q, and in log q q times that."""

    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor,
        q: Tensor,
        logarithms: bool,
        p: Tensor,
        mask: Tensor | None,
        kind: str,
        gamma: float,
    ) -> Tensor:
        """`given` is log q where `logarithms` are given, else q itself."""
        tiny = torch.finfo(q.dtype).tiny
        log_q = given if logarithms else q.clamp(min=tiny).log()
        pairs, by_q, by_log_q = _LOSSES[kind](p, q, log_q, gamma)
        if logarithms:
            by_q.mul_(q)
        else:
            by_log_q = torch.where(q > tiny, by_log_q / q, 0)
        slope = by_q.add_(by_log_q)
        if mask is not None:
            left_out = ~mask
            slope.masked_fill_(left_out, 0)
            pairs.masked_fill_(left_out, 0)
        ctx.save_for_backward(slope)
        return pairs.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        (of_pairs,) = ctx.saved_tensors
        return of_pairs * slope, None, None, None, None, None, None


# of each pair ℓ, ∂ℓ/∂q and ∂ℓ/∂log q, all new tensors, which the caller may write over
Terms = tuple[Tensor, Tensor, Tensor]


def _mse(p: Tensor, q: Tensor, log_q: Tensor, gamma: float) -> Terms:
    away = q - p
    return away.square(), 2 * away, torch.zeros_like(p)


def _kl(p: Tensor, q: Tensor, log_q: Tensor, gamma: float) -> Terms:
    return torch.xlogy(p, p).addcmul_(p, log_q, value=-1), torch.zeros_like(p), -p


def _bce(p: Tensor, q: Tensor, log_q: Tensor, gamma: float) -> Terms:
    most = math.log(LARGEST)
    rest = log_q.clamp(max=most).expm1_().neg_()  # 1 − q, with all its digits
    log_rest = rest.log()
    pairs = (log_rest - log_q).mul_(p).sub_(log_rest)
    return pairs, (1 - p).div_(rest).masked_fill_(log_q > most, 0), -p


def _gkl(p: Tensor, q: Tensor, log_q: Tensor, gamma: float) -> Terms:
    away = q - p
    return away.abs().mul_(gamma).addcmul_(p, log_q, value=-1), away.sign_().mul_(gamma), -p


_LOSSES = {"mse": _mse, "kl": _kl, "bce": _bce, "gkl": _gkl}


def _at_least_fp32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
