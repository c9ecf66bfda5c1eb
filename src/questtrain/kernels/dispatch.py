"""Which product runs when (docs/kernels.md says why).

- up to 64 rows, packed weight: the weight's bytes are the cost, `packed_linear` reads each once;
  on a CPU that the library serves any rows: it unpacks a few rows of the weight at a time;
- up to 2 rows of 16-bit elements: `…_quantize_linear`, the same with x quantized on the way;
- more rows: `int8_linear`, for which packed codes are unpacked first; of 16 levels on both sides,
  where the tensor cores multiply 4-bit integers, `int4_linear`;
- 256 levels on either side, any rows: `int8_offset_linear`.

And whether one kernel does the attention of a decoding step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from questtrain.kernels import cpu_library, extension
from questtrain.kernels.extension import constant_when_compiled
from questtrain.kernels.formats import (
    BLOCKS,
    INTEGER_LEVELS,
    MAX_PACKED_LEVELS,
    OFFSET_LEVELS,
    Int8Matrix,
    PackedMatrix,
    Quantized,
    container_bits,
)

MAX_PACKED_ROWS = 64
"""The packed kernels read a weight once for up to so many rows of activations."""

KEPT_INT8_ROWS = 32
"""More rows than these are multiplied faster by INT8 values, where those are kept beside packed
codes (`questtrain.quant.packed_weight.IntegerWeight`)."""

MAX_FUSED_ROWS = 2
"""More rows than these are quantized faster by a kernel of their own."""

MAX_FUSED_WIDTH = 16384

INT4_CAPABILITIES = ((8, 0), (8, 6), (8, 9))
"""GPUs whose tensor cores multiply 4-bit integers; later ones emulate it, slower than INT8."""

HEAD_WIDTHS = (32, 64, 128, 256)
"""What `decode_attention` has been compiled for."""


def quantized_linear(
    x: Quantized,
    weight: PackedMatrix | Int8Matrix,
    dtype: torch.dtype,
    x_levels: int = INTEGER_LEVELS[-1],
) -> Tensor:
    """``x [M, K]`` times ``weight [N, K]``ᵀ → ``[M, N]`` in ``dtype``.

    x is of int8 codes, or of packed ones of 16 levels for a packed weight of 16 levels, as where
    `multiplies_int4`; ``x_levels`` has to be told where they are 256, since codes then mean
    something else. Raises ValueError for packed codes with another weight, and for a weight without
    the sums that 256 levels need.
    """
    ops = torch.ops.questtrain
    y: Tensor
    if OFFSET_LEVELS in (x_levels, weight.levels):
        return _offset_linear(x, weight, dtype, x_levels)
    if x.codes.dtype == torch.uint8:
        if not isinstance(weight, PackedMatrix) or weight.levels != MAX_PACKED_LEVELS:
            raise ValueError("quantized_linear: packed x takes a packed weight of 16 levels only")
        y = ops.int4_linear(*x[:3], weight.codes, weight.scales, weight.sums, dtype)
        return y
    if isinstance(weight, PackedMatrix):
        rows, width = x.codes.shape
        few = rows <= MAX_PACKED_ROWS or serves_cpu(x.codes.device)
        if few and width % 128 == 0 and weight.codes.shape[0] % 16 == 0:
            y = ops.packed_linear(
                x.codes, x.scales, x.sums, weight.codes, weight.scales, weight.levels, dtype
            )
            return y
        weight = Int8Matrix(ops.unpack(weight.codes, weight.levels), weight.scales)
    y = ops.int8_linear(x.codes, x.scales, weight.codes, weight.scales, dtype)
    return y


def _offset_linear(
    x: Quantized, weight: PackedMatrix | Int8Matrix, dtype: torch.dtype, x_levels: int
) -> Tensor:
    ops = torch.ops.questtrain
    if weight.sums is None:
        raise ValueError("quantized_linear: 256 levels need the sums of the weight's codes")
    codes = weight.codes
    if isinstance(weight, PackedMatrix):
        codes = ops.unpack(codes, weight.levels)
    y: Tensor = ops.int8_offset_linear(
        *x[:3], codes, weight.scales, weight.sums, x_levels, weight.levels, dtype
    )
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


def serves_cpu(device: torch.device) -> bool:
    """Whether ``device`` is a CPU whose products the library does."""
    return device.type == "cpu" and cpu_library.serves()


def rotates_rows(x: Tensor, block: int) -> bool:
    """Whether `hadamard_rows` is to rotate ``x [..., K]``, faster than a product with H."""
    floating = x.dtype in (torch.bfloat16, torch.float16, torch.float32)
    sizes = block in BLOCKS and x.shape[-1] % math.lcm(block, 32) == 0
    return serves_cpu(x.device) and floating and sizes


def multiplies_packed_floats(x: Tensor, rows: int, levels: int, block: int) -> bool:
    """Whether `packed_weight_linear` is to multiply float activations ``x [..., K]`` with a packed
    weight of ``rows`` rows, rotated back in ``block``s; elsewhere, and where a gradient is asked
    for, its values are made first."""
    return (
        rotates_rows(x, block)
        and not (torch.is_grad_enabled() and x.requires_grad)
        and rows % 8 == 0
        and levels <= MAX_PACKED_LEVELS
    )


def multiplies_int4(
    device: torch.device, rows: int, width: int, levels: int, weight: PackedMatrix
) -> bool:
    """Whether ``rows`` rows of ``levels`` levels, ``width`` wide, are to be quantized to packed
    codes and multiplied as they are."""
    return (
        rows > MAX_PACKED_ROWS
        and levels == weight.levels == MAX_PACKED_LEVELS
        and width % 64 == 0
        and weight.codes.shape[0] % 8 == 0
        and has_int4(device)
    )


@constant_when_compiled
def has_int4(device: torch.device) -> bool:
    """Whether the tensor cores multiply 4-bit integers natively."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) in INT4_CAPABILITIES


def attends_in_one_kernel(keys: Tensor) -> bool:
    """Whether the kernel takes a cache of such ``keys [B, H, capacity, K]``."""
    return keys.is_cuda and keys.shape[-1] in HEAD_WIDTHS and extension.serves(keys.device)
