"""What training needs besides the forward ops, in plain torch: specification, and fallback.

The backward of a quantized operand ``Q(f(x))``: the gradient of its values, ``[M, K]`` in the
rotated space, is masked, rotated back (H is its own inverse) and taken through f. Arithmetic is in
fp32, each result is rounded once to its dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    FLOATING,
    check_block,
    check_matrix,
    check_multiple,
    check_norm,
    check_operand,
    check_output,
    check_swiglu,
    check_vector,
)
from questtrain.kernels.formats import integers_of, unpack_bits
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.reference_fp8 import E4M3, fp8_product
from questtrain.kernels.reference_linear import check_unpack, unpack


def hadamard_backward(grad: Tensor, mask: Tensor, block: int) -> Tensor:
    """``(M ⊙ grad)·H``, ``[M, K]`` in grad's dtype."""
    check_backward("hadamard_backward", grad, mask, grad.shape[-1], block)
    wide = grad.float()
    if mask.shape[1]:
        wide = torch.where(unpack_bits(mask, 1).view(torch.bool), wide, 0.0)
    if block > 1:
        wide = hadamard_transform(wide, hadamard_signs(block, grad.device))
    return wide.to(grad.dtype, copy=wide is grad)


def rmsnorm_backward(
    grad: Tensor,
    mask: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    block: int,
    residual_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Through ``x·rsqrt(mean(x²) + eps)·weight``: the gradient of x in x's dtype, plus
    ``residual_grad [M, K]`` where there is one, and that of the weight, fp32 ``[K]``."""
    check_rmsnorm_backward(grad, mask, x, weight, block, residual_grad)
    grad_y = _rotated_back(grad, mask, block)
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normalized = wide * factor
    scaled = grad_y * weight.float()
    grad_x = factor * (scaled - normalized * (scaled * normalized).mean(-1, keepdim=True))
    if residual_grad is not None:
        grad_x = grad_x + residual_grad.float()
    return grad_x.to(x.dtype), (grad_y * normalized).sum(0)


def swiglu_backward(grad: Tensor, mask: Tensor, gate_up: Tensor, block: int) -> Tensor:
    """Through ``silu(gate)·up``: the gradient of ``gate_up [M, 2K]``, gate's first."""
    check_swiglu_backward(grad, mask, gate_up, block)
    grad_y = _rotated_back(grad, mask, block)
    gate, up = gate_up.float().chunk(2, dim=1)
    result = torch.empty_like(gate_up, dtype=torch.float32)
    grad_gate, grad_up = result.chunk(2, dim=1)
    torch.mul(grad_y, torch.nn.functional.silu(gate), out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_y.mul_(up), gate, grad_input=grad_gate)
    return result.to(gate_up.dtype)


def dequantize(codes: Tensor, scales: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
    """The values of int8 ``[M, K]`` or packed codes: integers times their row's scale ``[M]``."""
    check_dequantize(codes, scales, levels, dtype)
    integers = unpack(codes, levels) if codes.dtype == torch.uint8 else integers_of(codes, levels)
    return (integers.float() * scales.unsqueeze(1)).to(dtype)


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """``gradᵀ·x`` of ``[M, N]`` and ``[M, K]``, accumulated and returned in fp32."""
    if grad.is_cuda and grad.dtype != torch.float32:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return grad.t().float() @ x.float()


def add_weight_gradient_(
    total: Tensor, grad: Tensor, x: Tensor, first: bool, unit: Tensor | None = None
) -> None:
    """``total += gradᵀ·x`` in fp32; the ``first`` time ``total = gradᵀ·x``. Torch's own product, on
    GPUs too, where it adds as it accumulates. With ``unit``, which the product is multiplied by,
    grad and x are e4m3 and column-major."""
    check_weight_gradient(total, grad, x, unit)
    if unit is not None:
        out = total if first else None
        product = fp8_product(grad.t(), x, unit, torch.float32, out)
        if not first:
            total.add_(product)
    elif not total.is_cuda or grad.dtype == torch.float32:
        wide = grad.t().float(), x.float()
        torch.mm(*wide, out=total) if first else total.addmm_(*wide)
    elif first:
        torch.mm(grad.t(), x, out_dtype=torch.float32, out=total)
    else:
        torch.addmm(total, grad.t(), x, out_dtype=torch.float32, out=total)


def check_weight_gradient(
    total: Tensor, grad: Tensor, x: Tensor, unit: Tensor | None = None
) -> None:
    op = "add_weight_gradient_"
    check_matrix(op, "total", total, None, None, (torch.float32,), total)
    if unit is not None:
        check_matrix(op, "grad's transpose", grad.t(), total.shape[0], None, (E4M3,), total)
        check_matrix(op, "x's transpose", x.t(), total.shape[1], grad.shape[0], (E4M3,), total)
        check_vector(op, "unit", unit, 1, (torch.float32,), total)
        return
    check_matrix(op, "grad", grad, None, total.shape[0], FLOATING, total)
    check_matrix(op, "x", x, grad.shape[0], total.shape[1], (grad.dtype,), total)


def check_backward(op: str, grad: Tensor, mask: Tensor, width: int, block: int) -> None:
    """A gradient of rotated rows and the bits that say where it passes."""
    check_matrix(op, "grad", grad, None, width, FLOATING, grad)
    check_block(op, width, block)
    columns = 0 if mask.dim() == 2 and not mask.shape[1] else width // 8
    check_matrix(op, "mask", mask, grad.shape[0], columns, (torch.uint8,), grad)


def check_rmsnorm_backward(
    grad: Tensor,
    mask: Tensor,
    x: Tensor,
    weight: Tensor,
    block: int,
    residual_grad: Tensor | None,
) -> None:
    op = "rmsnorm_backward"
    check_operand(op, "grad", grad)
    rows, width = grad.shape
    check_backward(op, grad, mask, width, block)
    check_matrix(op, "x", x, rows, width, (grad.dtype,), grad)
    check_norm(op, x, weight)
    if residual_grad is not None:
        check_matrix(op, "residual_grad", residual_grad, rows, width, (x.dtype,), grad)


def check_swiglu_backward(grad: Tensor, mask: Tensor, gate_up: Tensor, block: int) -> None:
    op = "swiglu_backward"
    width = check_swiglu(op, gate_up)
    check_backward(op, grad, mask, width, block)
    check_matrix(op, "gate_up", gate_up, grad.shape[0], 2 * width, (grad.dtype,), grad)


def check_dequantize(codes: Tensor, scales: Tensor, levels: int, dtype: torch.dtype) -> int:
    """The width of the values."""
    op = "dequantize"
    check_output(op, dtype)
    if codes.dtype == torch.uint8:
        width = check_unpack(codes, levels, op)
    else:
        check_matrix(op, "codes", codes, None, None, (torch.int8,), codes)
        width = codes.shape[1]
        check_multiple(op, "the width", width, 32)
    check_vector(op, "scales", scales, codes.shape[0], (torch.float32,), codes)
    return width


def _rotated_back(grad: Tensor, mask: Tensor, block: int) -> Tensor:
    """`hadamard_backward` in fp32, a tensor of its own."""
    rotated: Tensor = torch.ops.questtrain.hadamard_backward(grad.float(), mask, block)
    return rotated
