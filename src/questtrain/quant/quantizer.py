"""A quantizer = rotation ∘ scale ∘ grid ∘ gradient estimator (quest.md, "Quantizing one matrix").

Its output are *values*: the numbers that the packed codes stand for, in the operand's dtype and,
unless it rotates back, in the rotated space. A new method is a new piece in one of the four
places.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from questtrain.config import NumberFormat, QuantConfig
from questtrain.quant.estimator import (
    ErrorTrust,
    Estimator,
    OuterTrust,
    default_trust_scale,
    straight_through,
)
from questtrain.quant.grid import UniformGrid
from questtrain.quant.rotation import NoRotation, build_rotation
from questtrain.quant.scale import GAUSSIAN_ALPHA, GaussianScale


class Unquantized(nn.Module):
    """A 16-bit operand: rotated where its partner is, otherwise untouched."""

    def __init__(self, rotation: nn.Module | None = None) -> None:
        super().__init__()
        self.rotation = rotation

    def forward(self, x: Tensor) -> Tensor:
        if self.rotation is None:
            return x
        rotated: Tensor = self.rotation(x)
        return rotated.to(x.dtype)


class Quantizer(nn.Module):
    """Quantizes along the last dimension, a scale a row: ``[..., K] → [..., K]``.

    Computes in fp32 (float64 for float64 input) and returns the input's dtype.
    """

    def __init__(
        self,
        rotation: nn.Module,
        scale: nn.Module,
        grid: UniformGrid,
        estimator: Estimator,
        rotate_back: bool = False,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.scale = scale
        self.grid = grid
        self.estimator = estimator
        self.rotate_back = rotate_back

    def forward(self, x: Tensor) -> Tensor:
        x_h = self.rotation(x)
        with torch.no_grad():
            scale = self.scale(x_h)
            values = self.grid.decode(self.grid.encode(x_h, scale), scale)
            mask = self.estimator.mask(x_h, values, scale)
        quantized = straight_through(x_h, values, mask)
        if self.rotate_back:
            quantized = self.rotation(quantized)
        return quantized.to(x.dtype)

    @torch.no_grad()
    def codes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 codes ``[..., K]`` and fp32 scales ``[..., 1]``: what a packed operand stores."""
        x_h = self.rotation(x)
        scale = self.scale(x_h)
        return self.grid.encode(x_h, scale).to(torch.uint8), scale

    def extra_repr(self) -> str:
        return f"grid={self.grid}, estimator={self.estimator}, rotate_back={self.rotate_back}"


def build_quantizer(
    number_format: NumberFormat, quant: QuantConfig, rotation: str, width: int
) -> nn.Module:
    """Compose the quantizer of an operand with ``width`` columns.

    ``rotation`` is what `pair_rotations` chose for it: none, hadamard or hadamard-back.
    """
    if not number_format.quantized:
        rotated = rotation == "hadamard"
        return Unquantized(
            build_rotation(rotation, width, quant.hadamard_block) if rotated else None
        )
    grid = UniformGrid(number_format.levels)
    alpha = GAUSSIAN_ALPHA[grid.levels]
    rotation_module = build_rotation(rotation, width, quant.hadamard_block)
    return Quantizer(
        rotation_module,
        GaussianScale(alpha),
        grid,
        _build_estimator(quant, grid, alpha, rotated=not isinstance(rotation_module, NoRotation)),
        rotate_back=rotation == "hadamard-back",
    )


def _build_estimator(
    quant: QuantConfig, grid: UniformGrid, alpha: float, rotated: bool
) -> Estimator:
    if quant.trust_error is not None:
        return ErrorTrust(quant.trust_error, alpha)
    if quant.trust_scale is not None:
        return OuterTrust(quant.trust_scale)
    return OuterTrust(default_trust_scale(grid, rotated))
