"""The language model's head: logits and their cross-entropy, never whole.

``linear_cross_entropy`` goes through the rows in chunks. A chunk's logits are replaced by their
gradient as soon as their losses are known, so that the forward makes the gradients too:

    G = softmax(x·wᵀ) - onehot        grad_x = G·w        grad_w = Gᵀ·x, over chunks in fp32

They are those of the summed loss; the backward multiplies them by the gradient that comes in. This
saves 2 to 3 matrices ``[M, V]`` of memory, and a forward whose gradients nobody asks for skips
theirs. Shape suffixes are left out: M rows, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from questtrain.kernels.checks import FLOATING, check_matrix, check_vector
from questtrain.kernels.extension import never_compiled
from questtrain.kernels.library import register
from questtrain.kernels.ops.weight_gradient import add_product_

MOST_ROWS = 4096
ROWS = {"cpu": 1024}
"""Rows of a chunk by the device's type, elsewhere `MOST_ROWS`: a CPU's caches hold fewer logits."""


@never_compiled
def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignored: int = -100,
    rows: int | None = None,
) -> Tensor:
    """Summed cross-entropy of ``x·weightᵀ`` in nats, an fp32 scalar.

    ``x [M, D]`` in bf16, fp16 or fp32 is the products' dtype, under autocast too; ``weight [V, D]``
    is fp32 or that dtype; ``targets`` int64 ``[M]``, those that are ``ignored`` count nothing.
    ``rows`` are those of a chunk, by default `ROWS`. The backward runs once. A target outside the
    vocabulary makes the loss NaN; other wrong arguments raise RuntimeError.

    A compiled caller breaks its graph here: traced, each chunk's logits would be a new buffer.
    """
    rows = ROWS.get(x.device.type, MOST_ROWS) if rows is None else rows
    _check_linear(x, weight, targets, rows)
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            loss: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
                x, weight, targets, ignored, rows
            )
            return loss
        return _run_chunks(x, weight, targets, ignored, rows, None, None)


@register("cross_entropy_(Tensor(a!) logits, Tensor targets, int ignored) -> Tensor")
def cross_entropy_(logits: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Losses in nats, fp32 ``[M]``; ``logits [M, V]`` become the gradient of their sum.

    ``targets`` int64 ``[M]``; where one is ``ignored``, loss and gradient are 0. Arithmetic is in
    fp32. NaN, where a target is not in the vocabulary or a logit is NaN or +inf, are the row's
    loss and its gradient. Other wrong arguments raise RuntimeError.
    """
    op = "cross_entropy_"
    check_matrix(op, "logits", logits, None, None, FLOATING, logits)
    if not logits.shape[1]:
        raise RuntimeError(f"{op}: logits must have columns, not shape {list(logits.shape)}")
    check_vector(op, "targets", targets, logits.shape[0], (torch.int64,), logits)
    counted = targets != ignored
    exists = (targets >= 0) & (targets < logits.shape[1])
    places = torch.where(exists, targets, 0).unsqueeze(1)
    log_softmax = logits.log_softmax(1, dtype=torch.float32)
    of_target = log_softmax.gather(1, places)
    torch.exp(log_softmax, out=logits)
    logits.scatter_(1, places, (of_target.exp() - 1).to(logits.dtype))
    logits[~exists] = math.nan
    logits[~counted] = 0.0
    losses = torch.where(exists, -of_target.squeeze(1), math.nan)
    return torch.where(counted, losses, 0.0)


class _LinearCrossEntropy(torch.autograd.Function):
    """Holds the gradients that its forward made until the backward takes them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, ignored: int, rows: int
    ) -> Tensor:
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.weight_dtype, ctx.gradients = weight.dtype, (grad_x, grad_weight)
        return _run_chunks(x, weight, targets, ignored, rows, grad_x, grad_weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("linear_cross_entropy: the backward runs once, not again")
        # Given away, so that weight.grad can be this tensor and not its copy.
        (grad_x, grad_weight), ctx.gradients = ctx.gradients, None
        factor = grad.reshape(1)  # unlike a scalar it keeps its fp32 beside 16 bits
        for gradient in (grad_x, grad_weight):
            if gradient is not None:
                gradient.mul_(factor)
        if grad_weight is not None:
            grad_weight = grad_weight.to(ctx.weight_dtype)
        return grad_x, grad_weight, None, None, None


def _run_chunks(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    ignored: int,
    rows: int,
    grad_x: Tensor | None,
    grad_weight: Tensor | None,
) -> Tensor:
    """The summed loss; writes ``grad_x`` and adds to the fp32 ``grad_weight`` where given."""
    weight = weight.to(x.dtype)
    logits = x.new_empty((min(rows, x.shape[0]), weight.shape[0]))
    loss = x.new_zeros((), dtype=torch.float32)
    for start in range(0, x.shape[0], rows):
        chunk = slice(start, start + rows)
        gradient = torch.mm(x[chunk], weight.T, out=logits[: x.shape[0] - start])
        loss += cross_entropy_(gradient, targets[chunk], ignored).sum()
        if grad_x is not None:
            torch.mm(gradient, weight, out=grad_x[chunk])
        if grad_weight is not None:
            add_product_(grad_weight, gradient, x[chunk], first=False)
    return loss


def _check_linear(x: Tensor, weight: Tensor, targets: Tensor, rows: int) -> None:
    op = "linear_cross_entropy"
    check_matrix(op, "x", x, None, None, FLOATING, x)
    weight_dtypes = (torch.float32,) if x.dtype == torch.float32 else (torch.float32, x.dtype)
    check_matrix(op, "weight", weight, None, x.shape[1], weight_dtypes, x)
    if not weight.shape[0]:
        raise RuntimeError(f"{op}: weight must have rows, not shape {list(weight.shape)}")
    check_vector(op, "targets", targets, x.shape[0], (torch.int64,), x)
    if rows < 1:
        raise RuntimeError(f"{op}: rows must be 1 or more, not {rows}")
