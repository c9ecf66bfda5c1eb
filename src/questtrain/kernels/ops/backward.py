"""The backward of a quantized operand ``Q(f(x))``, f the identity, RMSNorm or SwiGLU.

The gradient of the operand's values, ``grad [M, K]`` in the rotated space, in bf16, fp16 or fp32,
is masked by ``mask`` uint8 ``[M, K/8]`` (``[M, 0]``: all of it passes), rotated back in blocks of
``block`` (H is its own inverse) and taken through f. Arithmetic is in fp32, each result is rounded
once to its dtype. Each raises RuntimeError for what the kernels do not take.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels.checks import (
    FLOATING,
    check_block,
    check_matrix,
    check_norm,
    check_operand,
    check_swiglu,
)
from questtrain.kernels.formats import unpack_bits
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.kernels.library import register


@register("hadamard_backward(Tensor grad, Tensor mask, int block) -> Tensor")
def hadamard_backward(grad: Tensor, mask: Tensor, block: int) -> Tensor:
    """``(M ⊙ grad)·H``, ``[M, K]`` in grad's dtype."""
    _check_backward("hadamard_backward", grad, mask, grad.shape[-1], block)
    wide = grad.float()
    if mask.shape[1]:
        wide = torch.where(unpack_bits(mask, 1).view(torch.bool), wide, 0.0)
    if block > 1:
        wide = hadamard_transform(wide, hadamard_signs(block, grad.device))
    return wide.to(grad.dtype, copy=wide is grad)


@register(
    "rmsnorm_backward(Tensor grad, Tensor mask, Tensor x, Tensor weight, float eps, int block,"
    " Tensor? residual_grad=None) -> (Tensor grad_x, Tensor grad_weight)"
)
def rmsnorm_backward(
    grad: Tensor,
    mask: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    block: int,
    residual_grad: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Through ``x·rsqrt(mean(x²) + eps)·weight``: the gradient of ``x [M, K]`` in x's dtype, plus
    ``residual_grad [M, K]`` where there is one, and that of the weight, fp32 ``[K]``."""
    op = "rmsnorm_backward"
    check_operand(op, "grad", grad)
    rows, width = grad.shape
    _check_backward(op, grad, mask, width, block)
    check_matrix(op, "x", x, rows, width, (grad.dtype,), grad)
    check_norm(op, x, weight)
    if residual_grad is not None:
        check_matrix(op, "residual_grad", residual_grad, rows, width, (x.dtype,), grad)
    grad_y = hadamard_backward(grad.float(), mask, block)
    wide = x.float()
    factor = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    normalized = wide * factor
    scaled = grad_y * weight.float()
    grad_x = factor * (scaled - normalized * (scaled * normalized).mean(-1, keepdim=True))
    if residual_grad is not None:
        grad_x = grad_x + residual_grad.float()
    return grad_x.to(x.dtype), (grad_y * normalized).sum(0)


@register("swiglu_backward(Tensor grad, Tensor mask, Tensor gate_up, int block) -> Tensor")
def swiglu_backward(grad: Tensor, mask: Tensor, gate_up: Tensor, block: int) -> Tensor:
    """Through ``silu(gate)·up``: the gradient of ``gate_up [M, 2K]``, gate's first."""
    op = "swiglu_backward"
    width = check_swiglu(op, gate_up)
    _check_backward(op, grad, mask, width, block)
    check_matrix(op, "gate_up", gate_up, grad.shape[0], 2 * width, (grad.dtype,), grad)
    grad_y = hadamard_backward(grad.float(), mask, block)
    gate, up = gate_up.float().chunk(2, dim=1)
    result = torch.empty_like(gate_up, dtype=torch.float32)
    grad_gate, grad_up = result.chunk(2, dim=1)
    torch.mul(grad_y, torch.nn.functional.silu(gate), out=grad_up)
    torch.ops.aten.silu_backward.grad_input(grad_y.mul_(up), gate, grad_input=grad_gate)
    return result.to(gate_up.dtype)


def all_pass(rows: Tensor) -> Tensor:
    """The mask of a gradient that is all trusted."""
    return rows.new_empty((rows.shape[0], 0), dtype=torch.uint8)


def _check_backward(op: str, grad: Tensor, mask: Tensor, width: int, block: int) -> None:
    """A gradient of rotated rows and the bits that say where it passes."""
    check_matrix(op, "grad", grad, None, width, FLOATING, grad)
    check_block(op, width, block)
    columns = 0 if mask.dim() == 2 and not mask.shape[1] else width // 8
    check_matrix(op, "mask", mask, grad.shape[0], columns, (torch.uint8,), grad)
