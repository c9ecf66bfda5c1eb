"""A quantizer = rotation ∘ scale ∘ grid ∘ sparsity ∘ gradient estimator (quest.md, "Quantizing one
matrix").

Its output are *values*: the numbers that the packed codes stand for, in the operand's dtype and,
unless it rotates back, in the rotated space. A new method is a new piece in one of the five
places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from questtrain.config import NumberFormat, QuantConfig
from questtrain.quant.estimator import (
    FP4_TRUST_ERROR,
    ONE_BIT_TRUST,
    ONE_BIT_TRUST_UNROTATED,
    ErrorTrust,
    Estimator,
    LearnedRange,
    OuterTrust,
)
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from questtrain.quant.rotation import NoRotation, build_rotation
from questtrain.quant.scale import (
    FP4_ALPHA,
    GAUSSIAN_ALPHA,
    GaussianScale,
    LearnedClip,
    LearnedOffset,
    LearnedStep,
)
from questtrain.quant.sparsity import PairSparsity


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


class QuantizedTensor(NamedTuple):
    """What a packed operand stores: uint8 codes ``[..., K]``, the half-widths ``[..., 1]`` of their
    grids, and where there is one an offset ``[1]`` and which values sparsity kept (bool)."""

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    kept: Tensor | None


class Quantizer(nn.Module):
    """Quantizes along the last dimension: ``[..., K] → [..., K]``.

    Computes in fp32 (float64 for float64 input) and returns the input's dtype.
    """

    def __init__(
        self,
        rotation: nn.Module,
        scale: GaussianScale | LearnedStep | LearnedClip,
        grid: Grid,
        estimator: Estimator,
        sparsity: PairSparsity | None = None,
        offset: LearnedOffset | None = None,
        rotate_back: bool = False,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.scale = scale
        self.grid = grid
        self.estimator = estimator
        self.sparsity = sparsity
        self.offset = offset
        self.rotate_back = rotate_back

    def forward(self, x: Tensor) -> Tensor:
        x_h, scale, offset = self._on_the_grid(x)
        quantized = self.estimator(x_h, self._round(x_h, scale), scale)
        if offset is not None:
            quantized = quantized + offset
        if self.rotate_back:
            quantized = self.rotation(quantized)
        return quantized.to(x.dtype)

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        """M, bool ``[..., K]`` in the space of the quantization: where the gradient passes."""
        x_h, scale, _ = self._on_the_grid(x)
        return self.estimator.mask(x_h, self._round(x_h, scale), scale)

    @torch.no_grad()
    def expected_masked_fraction(self, samples: int = 1 << 22) -> float:
        """The fraction of M = 0 among values that are exactly Gaussian, at the MSE-optimal scale:
        over quantiles of N(0, 1), shuffled because sparsity looks at neighbours."""
        quantiles = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
        shuffle = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
        z = torch.special.ndtri(quantiles)[shuffle]
        scale = torch.tensor([self.scale.alpha], dtype=torch.float64)
        trusted = self.estimator.mask(z, self._round(z, scale), scale)
        return 1.0 - float(trusted.double().mean())

    @torch.no_grad()
    def quantize(self, x: Tensor) -> QuantizedTensor:
        """The codes of ``x``, for packing."""
        x_h, scale, offset = self._on_the_grid(x)
        return QuantizedTensor(
            self.grid.encode(x_h, scale).to(torch.uint8),
            scale.expand(*x.shape[:-1], 1),
            offset,
            None if self.sparsity is None else self.sparsity.kept(x_h / scale),
        )

    @torch.no_grad()
    def dequantize(self, stored: QuantizedTensor) -> Tensor:
        """The values of stored codes, in the space of the quantization and the scale's dtype."""
        values = self.grid.decode(stored.codes.to(stored.scale.dtype), stored.scale)
        if stored.kept is not None:
            values = torch.where(stored.kept, values, 0.0)
        return values if stored.offset is None else values + stored.offset

    def unquantized(self) -> Unquantized:
        """The same operand without rounding, in the same space."""
        return Unquantized(None if self.rotate_back else self.rotation)

    def _on_the_grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rotated operand with its offset taken off, its scale, and that offset."""
        x_h = self.rotation(x)
        if self.offset is None:
            return x_h, self.scale(x_h), None
        offset = self.offset(x_h)
        x_h = x_h - offset
        return x_h, self.scale(x_h), offset

    @torch.no_grad()
    def _round(self, x_h: Tensor, scale: Tensor) -> Tensor:
        """The grid's nearest values, and sparsity's zeros."""
        values = self.grid.decode(self.grid.encode(x_h, scale), scale)
        if self.sparsity is None:
            return values
        return torch.where(self.sparsity.kept(x_h / scale), values, 0.0)

    def extra_repr(self) -> str:
        pieces = f"grid={self.grid}, estimator={self.estimator}, rotate_back={self.rotate_back}"
        return pieces if self.sparsity is None else f"{pieces}, sparsity={self.sparsity}"


def build_quantizer(
    number_format: NumberFormat,
    quant: QuantConfig,
    rotation: str,
    width: int,
    is_activation: bool = False,
) -> nn.Module:
    """Compose the quantizer of an operand with ``width`` columns.

    ``rotation`` is what `pair_rotations` chose for it: none, hadamard or hadamard-back.
    """
    if not number_format.quantized:
        rotated = rotation == "hadamard"
        return Unquantized(
            build_rotation(rotation, width, quant.hadamard_block) if rotated else None
        )
    grid, alpha = _build_grid(number_format, quant)
    rotation_module = build_rotation(rotation, width, quant.hadamard_block)
    rotated = not isinstance(rotation_module, NoRotation)
    return Quantizer(
        rotation_module,
        _build_scale(quant, grid, alpha),
        grid,
        _build_estimator(number_format, quant, grid, alpha, rotated),
        PairSparsity() if number_format.sparse else None,
        _build_offset(grid) if quant.activation_offset and is_activation else None,
        rotate_back=rotation == "hadamard-back",
    )


def _build_grid(number_format: NumberFormat, quant: QuantConfig) -> tuple[Grid, float]:
    """The grid and the α of its MSE-optimal half-width."""
    if number_format.kind == "fp4":
        return E2M1Grid(), FP4_ALPHA
    levels = number_format.grid_levels(quant.grid)
    return UniformGrid(levels), GAUSSIAN_ALPHA[levels]


def _build_scale(
    quant: QuantConfig, grid: Grid, alpha: float
) -> GaussianScale | LearnedStep | LearnedClip:
    match quant.scale:
        case "learned-step":
            return LearnedStep(alpha, grid.half_width)
        case "learned-clip":
            return LearnedClip(alpha)
        case _:
            return GaussianScale(alpha)


def _build_offset(grid: Grid) -> LearnedOffset:
    return LearnedOffset(gradient_levels=max(1, math.floor(grid.half_width)))


def _build_estimator(
    number_format: NumberFormat, quant: QuantConfig, grid: Grid, alpha: float, rotated: bool
) -> Estimator:
    """The estimator asked for, or the published default of the format.

    Half a step of error is the outer form only on dense uniform grids (trap 2); 1 bit has a wider
    clip (trap 3, figure 10), FP4 a T of its own (trap 4).
    """
    if quant.scale != "gaussian":
        return LearnedRange(rounding=quant.scale == "learned-step")
    if quant.trust_error is not None:
        return ErrorTrust(quant.trust_error, alpha)
    if quant.trust_scale is not None:
        return OuterTrust(quant.trust_scale)
    if not isinstance(grid, UniformGrid):
        return ErrorTrust(FP4_TRUST_ERROR, alpha)
    if number_format.sparse:
        return ErrorTrust(alpha / (grid.levels - 1), alpha)
    if grid.levels == 2:
        return OuterTrust(ONE_BIT_TRUST if rotated else ONE_BIT_TRUST_UNROTATED)
    return OuterTrust(grid.half_step_trust)
