"""A quantizer = rotation ∘ scale ∘ grid ∘ sparsity ∘ gradient estimator (quest.md, "Quantizing one
matrix").

Its output are *values*: the numbers that the packed codes stand for, in the operand's dtype and,
unless it rotates back, in the rotated space. A new method is a new piece in one of the five
places.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from questtrain.quant.estimator import Estimator
from questtrain.quant.grid import Grid
from questtrain.quant.scale import GaussianScale, LearnedClip, LearnedOffset, LearnedStep
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

    def expected_masked_fraction(self, samples: int = 1 << 22) -> float:
        """The fraction of M = 0 among exactly Gaussian values, at the MSE-optimal scale."""
        return _masked_gaussians(
            self.grid, self.sparsity, self.estimator, self.scale.alpha, samples
        )

    @torch.no_grad()
    def quantize(self, x: Tensor) -> QuantizedTensor:
        """The codes of ``x``, for packing."""
        x_h, scale, offset = self._on_the_grid(x)
        codes = self.grid.encode(x_h, scale)
        invalid = codes.isnan().any(-1, keepdim=True)  # no code says NaN: the row's scale does
        return QuantizedTensor(
            codes.to(torch.uint8),
            torch.where(invalid, torch.nan, scale),
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

    def _round(self, x_h: Tensor, scale: Tensor) -> Tensor:
        return _rounded(x_h, scale, self.grid, self.sparsity)

    def extra_repr(self) -> str:
        pieces = f"grid={self.grid}, estimator={self.estimator}, rotate_back={self.rotate_back}"
        return pieces if self.sparsity is None else f"{pieces}, sparsity={self.sparsity}"


@torch.no_grad()
def _rounded(x_h: Tensor, scale: Tensor, grid: Grid, sparsity: PairSparsity | None) -> Tensor:
    """The grid's nearest values, and sparsity's zeros."""
    values = grid.nearest(x_h, scale)
    if sparsity is None:
        return values
    return torch.where(sparsity.kept(x_h / scale), values, 0.0)


@functools.cache
def _masked_gaussians(
    grid: Grid, sparsity: PairSparsity | None, estimator: Estimator, alpha: float, samples: int
) -> float:
    """Over quantiles of N(0, 1), shuffled because sparsity looks at neighbours."""
    quantiles = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
    shuffle = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    z = torch.special.ndtri(quantiles)[shuffle]
    scale = torch.tensor([alpha], dtype=torch.float64)
    trusted = estimator.mask(z, _rounded(z, scale, grid, sparsity), scale)
    return 1.0 - float(trusted.double().mean())
