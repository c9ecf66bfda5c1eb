"""Which product runs when (docs/kernels.md says why).

- up to 64 rows, packed weight: the weight's bytes are the cost, `packed_linear` reads each once;
- up to 2 rows of 16-bit elements: `…_quantize_linear`, the same with x quantized on the way;
- more rows: `int8_linear`, for which packed codes are unpacked first.

And whether one kernel does the attention of a decoding step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from questtrain.kernels import extension
from questtrain.kernels.formats import Int8Matrix, PackedMatrix, Quantized, container_bits

MAX_PACKED_ROWS = 64
"""The packed kernels read a weight once for up to so many rows of activations."""

MAX_FUSED_ROWS = 2
"""More rows than these are quantized faster by a kernel of their own."""

MAX_FUSED_WIDTH = 16384

HEAD_WIDTHS = (32, 64, 96, 128, 256)
"""What `decode_attention` has been compiled for."""


def quantized_linear(x: Quantized, weight: PackedMatrix | Int8Matrix, dtype: torch.dtype) -> Tensor:
    """``x [M, K]`` of int8 codes times ``weight [N, K]``ᵀ → ``[M, N]`` in ``dtype``."""
    ops = torch.ops.questtrain
    if isinstance(weight, PackedMatrix):
        rows, width = x.codes.shape
        if rows <= MAX_PACKED_ROWS and width % 128 == 0 and weight.codes.shape[0] % 16 == 0:
            y: Tensor = ops.packed_linear(
                x.codes, x.scales, x.sums, weight.codes, weight.scales, weight.levels, dtype
            )
            return y
        weight = Int8Matrix(ops.unpack(weight.codes, weight.levels), weight.scales)
    y = ops.int8_linear(x.codes, x.scales, weight.codes, weight.scales, dtype)
    return y


def quantizes_on_the_way(x: Tensor, width: int, block: int, weight: PackedMatrix) -> bool:
    """Whether the fused kernels take such rows, ``x [M, …]`` with an operand ``width`` wide."""
    return (
        x.is_cuda
        and x.shape[0] <= MAX_FUSED_ROWS
        and x.dtype in (torch.bfloat16, torch.float16)
        and block == 128
        and width <= MAX_FUSED_WIDTH
        and width % (256 if container_bits(weight.levels) == 1 else 128) == 0
        and weight.codes.shape[0] % 16 == 0
    )


def attends_in_one_kernel(keys: Tensor) -> bool:
    """Whether the kernel takes a cache of such ``keys [B, H, capacity, K]``."""
    return keys.is_cuda and keys.shape[-1] in HEAD_WIDTHS and _serves(keys.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _serves(device: torch.device) -> bool:
    return extension.serves(device)
