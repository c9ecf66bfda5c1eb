"""The gradient of a linear layer's weight, ``gradᵀ·x`` in fp32: torch's own products."""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import FLOATING, check_matrix, check_vector
from questtrain.kernels.formats import E4M3
from questtrain.kernels.library import register
from questtrain.kernels.ops.fp8 import fp8_product


def _check(total: Tensor, grad: Tensor, x: Tensor, first: bool, unit: Tensor | None = None) -> None:
    """What tracing sees: torch's products into a matrix know no tensors without values."""
    op = "add_weight_gradient_"
    check_matrix(op, "total", total, None, None, (torch.float32,), total)
    if unit is None:
        check_matrix(op, "grad", grad, None, total.shape[0], FLOATING, total)
        check_matrix(op, "x", x, grad.shape[0], total.shape[1], (grad.dtype,), total)
        return
    check_matrix(op, "grad's transpose", grad.t(), total.shape[0], None, (E4M3,), total)
    check_matrix(op, "x's transpose", x.t(), total.shape[1], grad.shape[0], (E4M3,), total)
    check_vector(op, "unit", unit, 1, (torch.float32,), total)


@register(
    "add_weight_gradient_(Tensor(a!) total, Tensor grad, Tensor x, bool first, Tensor? unit=None)"
    " -> ()",
    fake=_check,
    torchs_own=True,
)
def add_weight_gradient_(
    total: Tensor, grad: Tensor, x: Tensor, first: bool, unit: Tensor | None = None
) -> None:
    """``total += gradᵀ·x`` of ``grad [M, N]`` and ``x [M, K]``, ``total`` fp32 ``[N, K]``; the
    ``first`` time ``total = gradᵀ·x``.

    grad and x are bf16, fp16 or fp32; with ``unit``, fp32 ``[1]``, which the product is multiplied
    by, e4m3 and column-major. Raises RuntimeError for anything else.
    """
    _check(total, grad, x, first, unit)
    if unit is None:
        add_product_(total, grad, x, first)
        return
    product = fp8_product(grad.t(), x, unit, torch.float32, total if first else None)
    if not first:
        total.add_(product)


def add_product_(total: Tensor, grad: Tensor, x: Tensor, first: bool) -> None:
    """`add_weight_gradient_` of what is no FP8; on GPUs torch adds as it accumulates."""
    if not total.is_cuda or grad.dtype == torch.float32:
        wide = grad.t().float(), x.float()
        torch.mm(*wide, out=total) if first else total.addmm_(*wide)
    elif first:
        torch.mm(grad.t(), x, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, grad.t(), x, out_dtype=torch.float32, out=total)


def weight_gradient(grad: Tensor, x: Tensor, unit: Tensor | None = None) -> Tensor:
    """``gradᵀ·x`` of operands as `add_weight_gradient_` takes them, in fp32 ``[N, K]``."""
    if unit is not None:
        return fp8_product(grad.t(), x, unit, torch.float32)
    if grad.is_cuda and grad.dtype != torch.float32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return grad.t().float() @ x.float()
