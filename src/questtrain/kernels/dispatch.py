"""Products of activations with quantized weights: which op runs when (docs/kernels.md says why).

- up to 2 rows of 16-bit elements, packed weight: `…_quantize_linear`, one kernel, x quantized on
  the way; the weight's bytes are the cost, and each is read once;
- up to 256 rows of them on Hopper: the same op, a quantizer and tiles that unpack on the way to
  the tensor cores;
- up to 64 rows, where neither serves: `packed_linear`; on a CPU that the library serves any rows:
  it unpacks a few rows of the weight at a time;
- more rows: `int8_linear`, for which packed codes are unpacked first; of 16 levels on both sides,
  where the tensor cores multiply 4-bit integers, `int4_linear`;
- 256 levels on either side, any rows: `int8_offset_linear`.

The functions are the forward alone; `questtrain.kernels.autograd` has those with a backward.
Activations are bf16, fp16 or fp32 ``[M, K]``, weights ``[N, K]``, results ``[M, N]`` in the
activations' dtype; norm weights are ``[K]`` in fp32 or that dtype. What no op takes is a
RuntimeError.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from questtrain.kernels import cpu_library, extension
from questtrain.kernels.checks import FLOATING
from questtrain.kernels.extension import constant_when_compiled
from questtrain.kernels.formats import (
    BLOCKS,
    INTEGER_LEVELS,
    MAX_PACKED_LEVELS,
    OFFSET_LEVELS,
    Int8Matrix,
    PackedMatrix,
    Quantized,
    RowFormat,
    container_bits,
)
from questtrain.kernels.ops.codes import unpack
from questtrain.kernels.ops.linear import (
    int4_linear,
    int8_linear,
    int8_offset_linear,
    packed_linear,
)
from questtrain.kernels.ops.quantize import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
)
from questtrain.kernels.ops.quantize_linear import (
    add_rmsnorm_quantize_linear,
    hadamard_quantize_linear,
    rmsnorm_quantize_linear,
    swiglu_quantize_linear,
)

Matrix = PackedMatrix | Int8Matrix

MAX_PACKED_ROWS = 64
"""The packed kernels read a weight once for up to so many rows of activations."""

KEPT_INT8_ROWS = 32
"""More rows than these are multiplied faster by INT8 values, where those are kept beside packed
codes (`questtrain.quant.packed_weight.IntegerWeight`)."""

MAX_FUSED_ROWS = 2
"""More rows than these are quantized faster by a kernel of their own."""

MAX_TILED_ROWS = 256
"""More rows than these are multiplied faster by INT8 values on Hopper, too."""

MAX_FUSED_WIDTH = 16384

INT4_CAPABILITIES = ((8, 0), (8, 6), (8, 9))
"""GPUs whose tensor cores multiply 4-bit integers; later ones emulate it, slower than INT8."""


def hadamard_linear(x: Tensor, form: RowFormat, weight: Matrix) -> Tensor:
    """``Q(x)·wᵀ``: ``x [M, K]`` → ``[M, N]`` in x's dtype."""
    if _fuses(x, x.shape[1], form, weight):
        return hadamard_quantize_linear(x, form.levels, form.alpha, *_weight(weight))
    packed = _packs(x, x.shape[1], form, weight)
    return quantized_linear(hadamard_quantize(x, *form, packed), weight, x.dtype, form.levels)


def rmsnorm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, form: RowFormat, weight: Matrix
) -> Tensor:
    """``Q(RMSNorm(x))·wᵀ``."""
    if _fuses(x, x.shape[1], form, weight):
        return rmsnorm_quantize_linear(
            x, norm_weight, eps, form.levels, form.alpha, *_weight(weight)
        )
    fed = rmsnorm_quantize(x, norm_weight, eps, *form, _packs(x, x.shape[1], form, weight))
    return quantized_linear(fed, weight, x.dtype, form.levels)


def add_rmsnorm_linear(
    x: Tensor, residual: Tensor, norm_weight: Tensor, eps: float, form: RowFormat, weight: Matrix
) -> tuple[Tensor, Tensor]:
    """``x + residual``, and ``Q(RMSNorm(x + residual))·wᵀ``."""
    if _fuses(x, x.shape[1], form, weight):
        return add_rmsnorm_quantize_linear(
            x, residual, norm_weight, eps, form.levels, form.alpha, *_weight(weight)
        )
    packed = _packs(x, x.shape[1], form, weight)
    hidden, fed = add_rmsnorm_quantize(x, residual, norm_weight, eps, *form, packed)
    return hidden, quantized_linear(fed, weight, x.dtype, form.levels)


def swiglu_linear(gate_up: Tensor, form: RowFormat, weight: Matrix) -> Tensor:
    """``Q(silu(gate)·up)·wᵀ``; ``gate_up [M, 2K]``."""
    width = gate_up.shape[1] // 2
    if _fuses(gate_up, width, form, weight):
        return swiglu_quantize_linear(gate_up, form.levels, form.alpha, *_weight(weight))
    packed = _packs(gate_up, width, form, weight)
    fed = swiglu_quantize(gate_up, *form, packed)
    return quantized_linear(fed, weight, gate_up.dtype, form.levels)


def _fuses(x: Tensor, width: int, form: RowFormat, weight: Matrix) -> bool:
    """Whether x is to be quantized on the way into the product."""
    if not isinstance(weight, PackedMatrix) or form.levels == OFFSET_LEVELS:
        return False
    return quantizes_on_the_way(x, width, form.block, weight)


def _packs(x: Tensor, width: int, form: RowFormat, weight: Matrix) -> bool:
    """Whether x is to be quantized to packed codes."""
    return isinstance(weight, PackedMatrix) and multiplies_int4(
        x.device, x.shape[0], width, form.levels, weight
    )


def _weight(weight: Matrix) -> tuple[Tensor, Tensor, int]:
    return weight.codes, weight.scales, weight.levels


def quantized_linear(
    x: Quantized,
    weight: Matrix,
    dtype: torch.dtype,
    x_levels: int = INTEGER_LEVELS[-1],
) -> Tensor:
    """``x [M, K]`` times ``weight [N, K]``ᵀ → ``[M, N]`` in ``dtype``.

    x is of int8 codes, or of packed ones of 16 levels for a packed weight of 16 levels, as where
    `multiplies_int4`; ``x_levels`` has to be told where they are 256, since codes then mean
    something else. Raises RuntimeError for packed codes with another weight, and for a weight
    without the sums that 256 levels need.
    """
    if OFFSET_LEVELS in (x_levels, weight.levels):
        return _offset_linear(x, weight, dtype, x_levels)
    if x.codes.dtype == torch.uint8:
        if not isinstance(weight, PackedMatrix) or weight.levels != MAX_PACKED_LEVELS:
            raise RuntimeError("quantized_linear: packed x takes a packed weight of 16 levels only")
        return int4_linear(*x[:3], weight.codes, weight.scales, weight.sums, dtype)
    if isinstance(weight, PackedMatrix):
        rows, width = x.codes.shape
        few = rows <= MAX_PACKED_ROWS or serves_cpu(x.codes.device)
        if few and width % 128 == 0 and weight.codes.shape[0] % 16 == 0:
            return packed_linear(*x[:3], weight.codes, weight.scales, weight.levels, dtype)
        weight = Int8Matrix(unpack(weight.codes, weight.levels), weight.scales)
    return int8_linear(x.codes, x.scales, weight.codes, weight.scales, dtype)


def _offset_linear(x: Quantized, weight: Matrix, dtype: torch.dtype, x_levels: int) -> Tensor:
    if weight.sums is None:
        raise RuntimeError("quantized_linear: 256 levels need the sums of the weight's codes")
    codes = weight.codes
    if isinstance(weight, PackedMatrix):
        codes = unpack(codes, weight.levels)
    return int8_offset_linear(
        *x[:3], codes, weight.scales, weight.sums, x_levels, weight.levels, dtype
    )


def quantizes_on_the_way(x: Tensor, width: int, block: int, weight: PackedMatrix) -> bool:
    """Whether the fused kernels take such rows, ``x [M, …]`` with an operand ``width`` wide."""
    bits = container_bits(weight.levels)
    return (
        x.is_cuda
        and x.dtype in (torch.bfloat16, torch.float16)
        and block == 128
        and width <= MAX_FUSED_WIDTH
        and width % (256 if bits == 1 else 128) == 0
        and weight.codes.shape[0] % 16 == 0
        and (x.shape[0] <= MAX_FUSED_ROWS or _tiles(x, width, bits))
    )


def _tiles(x: Tensor, width: int, bits: int) -> bool:
    """Whether more rows than `MAX_FUSED_ROWS` are multiplied by tiles."""
    return (
        x.shape[0] <= MAX_TILED_ROWS
        and width % (128 if bits == 4 else 256) == 0
        and has_tiles(x.device)
    )


def serves_cpu(device: torch.device) -> bool:
    """Whether ``device`` is a CPU whose products the library does."""
    return device.type == "cpu" and cpu_library.serves()


def rotates_rows(x: Tensor, block: int) -> bool:
    """Whether `hadamard_rows` is to rotate ``x [..., K]``, faster than a product with H."""
    sizes = block in BLOCKS and x.shape[-1] % math.lcm(block, 32) == 0
    return serves_cpu(x.device) and x.dtype in FLOATING and sizes


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


def most_packed_rows(device: torch.device) -> int:
    """Up to so many rows are multiplied with packed codes as they lie."""
    return MAX_TILED_ROWS if has_tiles(device) else MAX_PACKED_ROWS


@constant_when_compiled
def has_tiles(device: torch.device) -> bool:
    """Whether the library's tiles of packed weights run there: on Hopper, built for it."""
    if device.type != "cuda" or not extension.serves(device):
        return False
    built = extension.load().architectures
    return torch.cuda.get_device_capability(device) == (9, 0) and "90a" in built


@constant_when_compiled
def has_int4(device: torch.device) -> bool:
    """Whether the tensor cores multiply 4-bit integers natively."""
    if device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) in INT4_CAPABILITIES
