"""Random tensors to time products on, quantized as ours take them, and copies of them beyond the
device's cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from questtrain.bench.timing import copies_beyond_cache
from questtrain.config import Bits, hadamard_block
from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.errors import UserError
from questtrain.kernels import Int8Matrix, PackedMatrix, RowFormat, hadamard_quantize
from questtrain.kernels.formats import INTEGER_LEVELS, MAX_PACKED_LEVELS

Tensors = tuple[Tensor, ...]
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Format:
    """Levels of weights and activations: 2 to 128, up to 16 of weights can be packed."""

    weight_levels: int
    activation_levels: int

    @property
    def packable(self) -> bool:
        """Whether weights of so many levels have a packed form."""
        return self.weight_levels <= MAX_PACKED_LEVELS


def format_of(bits: Bits) -> Format:
    """The levels of ``bits``; UserError for a format that the integer kernels do not have."""
    operands = (bits.weight, bits.activation)
    if any(o.kind != "int" or o.sparse or o.levels > max(INTEGER_LEVELS) for o in operands):
        raise UserError(
            f"bits={bits}: the kernels multiply dense integers of 1 to 7 bits; for example w4a4."
        )
    return Format(bits.weight.levels, bits.activation.levels)


def normal(rows: int, columns: int, device: torch.device, std: float = 1.0) -> Tensor:
    """bf16 ``[rows, columns]`` of N(0, std²)."""
    return torch.randn(rows, columns, dtype=DTYPE, device=device) * std


def quantized(
    x: Tensor, levels: int, packed: bool = False, rotate: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and sums of ``x [M, K]``."""
    arguments = quantize_arguments(x.shape[1], levels, packed, rotate)
    codes, scales, sums, _ = hadamard_quantize(x, *arguments)
    return codes, scales, sums


def quantize_arguments(
    width: int, levels: int, packed: bool = False, rotate: bool = True
) -> tuple[int, float, int, bool]:
    """``levels, alpha, block, packed`` as the quantizing ops take them."""
    block = hadamard_block(width, 128) if rotate else 1
    return levels, GAUSSIAN_ALPHA[levels], block, packed


def row_format(width: int, formats: Format, rotate: bool = True) -> RowFormat:
    """The activations' format at a width."""
    return RowFormat(*quantize_arguments(width, formats.activation_levels, rotate=rotate)[:3])


def matrix_of(
    codes: Tensor, scales: Tensor, sums: Tensor, formats: Format
) -> PackedMatrix | Int8Matrix:
    """What `quantized` made of a weight, as the products take it."""
    if codes.dtype == torch.uint8:
        return PackedMatrix(codes, scales, sums, formats.weight_levels)
    return Int8Matrix(codes, scales)


def total_bytes(*tensors: Tensor) -> int:
    """Bytes of the tensors' values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def rotating(operands: Tensors, device: torch.device) -> list[Tensors]:
    """The operands and as many copies of them as take twice the device's cache together."""
    count = copies_beyond_cache(total_bytes(*operands), device)
    return [operands, *(tuple(t.clone() for t in operands) for _ in range(count - 1))]
