"""Gradient estimators: which components of the gradient pass through the rounding.

The backward of a quantizer is ``grad_x_h = M ⊙ grad_values`` (quest.md, "Backward"): M is 1 where
the quantized value can be trusted, that is where its error is small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from questtrain.quant.grid import UniformGrid

ONE_BIT_TRUST = 1.30
ONE_BIT_TRUST_UNROTATED = 1.25


class Estimator(Protocol):
    """Decides which components to trust."""

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """bool ``[..., K]`` from the operand, its quantized values, and the scale ``[..., 1]``."""


@dataclass(frozen=True)
class OuterTrust:
    """Trust everything up to ``t`` times the grid's half-width: ``|x| ≤ t·s``.

    t = n/(n-1) is half a step of error on a uniform grid; t = 1 is clipping; t = ∞ is the
    straight-through estimator.
    """

    outer_trust_scale: float

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        return x.abs() <= self.outer_trust_scale * scale


@dataclass(frozen=True)
class ErrorTrust:
    """Trust an error of at most ``max_error`` row rms, wherever in the grid it occurs.

    ``alpha`` is the scale's, which turns ``s`` back into the rms.
    """

    max_error: float
    alpha: float

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        return (x - values).abs() <= (self.max_error / self.alpha) * scale


class _MaskedStraightThrough(torch.autograd.Function):
    """Forward: the quantized values. Backward: the gradient where the mask is set."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(mask)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return grad * mask, None, None


def straight_through(x: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """``values``, with the gradient ``mask ⊙ grad`` towards ``x``."""
    out: Tensor = _MaskedStraightThrough.apply(x, values, mask)  # type: ignore[no-untyped-call]
    return out


def default_trust_scale(grid: UniformGrid, rotated: bool) -> float:
    """t of the published runs: half a step, except the wider clip of 1 bit (figure 10)."""
    if grid.levels == 2:
        return ONE_BIT_TRUST if rotated else ONE_BIT_TRUST_UNROTATED
    return grid.half_step_trust
