"""Gradient estimators: what the backward of a rounding is.

With a Gaussian scale it is ``grad_x_h = M ⊙ grad_values`` (quest.md, "Backward"): M is 1 where the
quantized value can be trusted, that is where its error is small. With a learned scale M is 1
inside the clipping range, and the scale has a gradient of its own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Estimator(Hashable, Protocol):
    """Gives quantized values a gradient towards the operand, and towards a learned scale."""

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """M, bool ``[..., K]``: the components of the gradient that pass."""

    def __call__(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        """``values`` with this estimator's backward; scale ``[..., 1]`` or a learned ``[1]``."""


def is_exporting() -> bool:
    """Whether torch.export traces. torch 2.11 says so in all that torch.compile traces, too, where
    gradients would be lost."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def has_backward() -> bool:
    """Whether what is computed now can get a gradient. Not what torch.export makes: its graph is
    for use, and with a part that nothing reads, as masks would be there, torch 2.13 cannot load it
    from a file."""
    return torch.is_grad_enabled() and not is_exporting()


class _Trust:
    """Passes the gradient where the mask is set, and none to the scale."""

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError

    def __call__(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        if not has_backward():
            return values
        with torch.no_grad():
            mask = self.mask(x, values, scale)
        out: Tensor = _MaskedStraightThrough.apply(  # type: ignore[no-untyped-call]
            x, values, mask
        )
        return out


@dataclass(frozen=True)
class OuterTrust(_Trust):
    """Trust everything up to ``t`` times the grid's half-width: ``|x| ≤ t·s``.

    t = n/(n-1) is half a step of error on a uniform grid; t = 1 is clipping; t = ∞ is the
    straight-through estimator.
    """

    outer_trust_scale: float

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        return x.abs() <= self.outer_trust_scale * scale


@dataclass(frozen=True)
class ErrorTrust(_Trust):
    """Trust an error of at most ``max_error`` row rms, wherever in the grid it occurs.

    ``alpha`` is the scale's, which turns ``s`` back into the rms. A few roundings of slack let an
    error of exactly T pass in every dtype: that of zero on a centred grid is half a step.
    """

    max_error: float
    alpha: float

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        slack = 1 + 4 * torch.finfo(x.dtype).eps
        return (x - values).abs() <= (self.max_error / self.alpha * slack) * scale


@dataclass(frozen=True)
class LearnedRange:
    """The gradient of clipping to a learned ``[-s, s]`` and rounding there.

    The operand's passes inside the range; the scale's is the sign of what lies outside. LSQ
    (``rounding``) adds how far rounding moved each value inside, ``(v - x)/s``; PACT takes the
    rounding for the identity.
    """

    rounding: bool

    def mask(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        return x.abs() <= scale

    def __call__(self, x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
        if not has_backward():
            return values
        with torch.no_grad():
            inside = self.mask(x, values, scale)
            moved = (values - x) / scale if self.rounding else torch.zeros_like(x)
            slope = torch.where(inside, moved, x.sign())
        out: Tensor = _LearnedRangeFunction.apply(  # type: ignore[no-untyped-call]
            x, values, scale, inside, slope
        )
        return out


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


class _LearnedRangeFunction(torch.autograd.Function):
    """Backward: ``inside ⊙ grad`` to the operand, ``Σ slope·grad`` to the scale ``[1]``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, values: Tensor, scale: Tensor, inside: Tensor, slope: Tensor
    ) -> Tensor:
        ctx.save_for_backward(inside, slope)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor, None, None]:
        inside, slope = ctx.saved_tensors
        return grad * inside, None, (grad * slope).sum().reshape(1), None, None
