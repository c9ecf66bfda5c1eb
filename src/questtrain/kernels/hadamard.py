"""The block-diagonal, orthonormal Hadamard transform (quest.md 1; Sylvester's order).

``H`` is symmetric and its own inverse. Its entries are ±1 up to one power of two, exact in every
float format, so the transform is a product with the signs, accumulated in at least fp32, and one
multiplication: in bf16 throughout, ``H·H`` would be 0.9998 on its diagonal instead of 1.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def hadamard_signs(block: int, device: torch.device | str | None = None) -> Tensor:
    """Sylvester's ±1 matrix ``[block, block]`` in fp32; ``block`` is a power of two."""
    if block < 1 or block & (block - 1):
        raise RuntimeError(f"a Hadamard block must be a power of two, not {block}")
    signs = torch.ones(1, 1, device=device)
    if signs.is_meta:  # tracing the products below would take a model's skeleton seconds
        return signs.new_empty(block, block)
    while signs.shape[0] < block:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs


def hadamard_transform(x: Tensor, signs: Tensor) -> Tensor:
    """``x [..., K] · H`` in fp32 (float64 stays float64); K is a multiple of the block.

    Autocast is left out: it would round the operand to bf16 before it is quantized.
    """
    block = signs.shape[0]
    if x.shape[-1] % block:
        raise RuntimeError(f"the last dimension of {tuple(x.shape)} is no multiple of {block}")
    dtype = torch.promote_types(x.dtype, torch.float32)
    exact = nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
    with exact:
        blocks = x.to(dtype).reshape(*x.shape[:-1], x.shape[-1] // block, block)
        rotated = torch.matmul(blocks, signs.to(dtype)).reshape(x.shape)
    return torch.mul(rotated, block**-0.5)
