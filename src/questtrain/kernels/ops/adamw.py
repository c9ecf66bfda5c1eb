"""AdamW's update of many weights, by torch's fused form where no kernel does it.

Loshchilov and Hutter, Decoupled Weight Decay Regularization (arXiv 1711.05101).
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import check_dense, check_scalar
from questtrain.kernels.library import register


@register(
    "adamw_(Tensor(a!)[] weights, Tensor(b!)[] grads, Tensor(c!)[] means, Tensor(d!)[] squares,"
    " Tensor[] steps, Tensor? divisor, float lr, float beta1, float beta2, float eps,"
    " float weight_decay) -> ()"
)
def adamw_(
    weights: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    divisor: Tensor | None,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """Update fp32 weights and both moments in place, each by its gradient over ``divisor``, an fp32
    scalar.

    ``steps``, fp32 scalars, count from 1, this update included. The gradients are used up: torch
    writes them back divided, the kernel leaves them. Raises RuntimeError for anything that is not
    contiguous, not fp32 or not of its weight's size.
    """
    _check(weights, grads, means, squares, steps, divisor)
    if not weights:
        return
    torch._fused_adamw_(
        weights,
        grads,
        means,
        squares,
        [],
        steps,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        eps=eps,
        amsgrad=False,
        maximize=False,
        grad_scale=divisor,
    )


def _check(
    weights: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    steps: list[Tensor],
    divisor: Tensor | None,
) -> None:
    op = "adamw_"
    for others in (grads, means, squares, steps):
        if len(others) != len(weights):
            raise RuntimeError(
                f"{op}: {len(weights)} weights need as many of everything, not {len(others)}"
            )
    for weight, *others, step in zip(weights, grads, means, squares, steps, strict=True):
        if weight.dtype != torch.float32:
            raise RuntimeError(f"{op}: weights must be float32, not {weight.dtype}")
        check_dense(op, "weights", weight, weights[0])
        for name, tensor in zip(("grads", "means", "squares"), others, strict=True):
            check_dense(op, name, tensor, weight)
            if tensor.shape != weight.shape:
                shapes = f"{list(weight.shape)}, not {list(tensor.shape)}"
                raise RuntimeError(f"{op}: {name} must be {shapes}")
        check_scalar(op, "steps", step, torch.float32, weight)
    if divisor is not None and weights:
        check_scalar(op, "divisor", divisor, torch.float32, weights[0])
