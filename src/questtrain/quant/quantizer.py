"""A quantizer = rotation ∘ scale ∘ grid ∘ sparsity ∘ gradient estimator (quest.md, "Quantizing one
matrix").

Its output are *values*: the numbers that the packed codes stand for, in the operand's dtype and,
unless it rotates back, in the rotated space. A new method is a new piece in one of the five
places. With groups the pieces after the rotation see each group of columns as a row of its own,
and so need not know of groups.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor, nn

from questtrain.quant.estimator import Estimator
from questtrain.quant.grid import Grid
from questtrain.quant.scale import (
    GaussianScale,
    LearnedClip,
    LearnedOffset,
    LearnedStep,
    RoundedScale,
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
    """What a packed operand stores: uint8 codes ``[..., K]``; the half-widths of their grids, one a
    row ``[..., 1]``, a group of K/G columns ``[..., G]`` or a tensor ``[1]``; and where there is
    one an offset ``[1]``, and which values sparsity kept (bool)."""

    codes: Tensor
    scale: Tensor
    offset: Tensor | None
    kept: Tensor | None


class Quantizer(nn.Module):
    """Quantizes along the last dimension: ``[..., K] → [..., K]``.

    Computes in fp32 (float64 for float64 input) and returns the input's dtype. ``group`` columns
    share a scale, and with it a grid and a trust; None: all of a row.
    """

    def __init__(
        self,
        rotation: nn.Module,
        scale: GaussianScale | RoundedScale | LearnedStep | LearnedClip,
        grid: Grid,
        estimator: Estimator,
        sparsity: PairSparsity | None = None,
        offset: LearnedOffset | None = None,
        rotate_back: bool = False,
        group: int | None = None,
    ) -> None:
        super().__init__()
        self.rotation = rotation
        self.scale = scale
        self.grid = grid
        self.estimator = estimator
        self.sparsity = sparsity
        self.offset = offset
        self.rotate_back = rotate_back
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        x_h, scale, offset = self._on_the_grid(x)
        quantized = self.estimator(x_h, self._round(x_h, scale), scale)
        return self._finished(quantized, offset).to(x.dtype)

    @torch.no_grad()
    def mask(self, x: Tensor) -> Tensor:
        """M, bool ``[..., K]`` in the space of the quantization: where the gradient passes."""
        x_h, scale, _ = self._on_the_grid(x)
        return self._rows(self.estimator.mask(x_h, self._round(x_h, scale), scale))

    @torch.no_grad()
    def values_and_mask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` and `mask` give, without doing most of it twice."""
        x_h, scale, offset = self._on_the_grid(x)
        values = self._round(x_h, scale)
        mask = self.estimator.mask(x_h, values, scale)
        return self._finished(values, offset).to(x.dtype), self._rows(mask)

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
        kept = None if self.sparsity is None else self._rows(self.sparsity.kept(x_h / scale))
        scale = torch.where(invalid, torch.nan, scale)
        if self.group is not None:
            scale = scale.squeeze(-1)
        return QuantizedTensor(self._rows(codes.to(torch.uint8)), scale, offset, kept)

    @torch.no_grad()
    def dequantize(self, stored: QuantizedTensor) -> Tensor:
        """The values of stored codes, in the space of the quantization and the scale's dtype."""
        values = decoded(self.grid, stored.codes, stored.scale)
        if stored.kept is not None:
            values = torch.where(stored.kept, values, 0.0)
        return values if stored.offset is None else values + stored.offset

    def unquantized(self) -> Unquantized:
        """The same operand without rounding, in the same space."""
        return Unquantized(None if self.rotate_back else self.rotation)

    def _on_the_grid(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The rotated operand with its offset taken off, its scale, and that offset."""
        x_h = self.rotation(x)
        if self.group is not None:
            x_h = _in_groups(x_h, x_h.shape[-1] // self.group)
        if self.offset is None:
            return x_h, self.scale(x_h), None
        offset = self.offset(x_h)
        x_h = x_h - offset
        return x_h, self.scale(x_h), offset

    def _round(self, x_h: Tensor, scale: Tensor) -> Tensor:
        return _rounded(x_h, scale, self.grid, self.sparsity)

    def _finished(self, quantized: Tensor, offset: Tensor | None) -> Tensor:
        """Values on the grid as the product takes them: around their offset, in rows, and in the
        original space where they are rotated back."""
        if offset is not None:
            quantized = quantized + offset
        rows = self._rows(quantized)
        return self.rotation(rows) if self.rotate_back else rows

    def _rows(self, groups: Tensor) -> Tensor:
        """Groups of columns ``[..., G, K/G]`` side by side again."""
        return groups if self.group is None else groups.flatten(-2)

    @property
    def unit_dtype(self) -> torch.dtype | None:
        """The 16-bit dtype that half a step is a number of (`RoundedScale`), None where it is not
        rounded."""
        return self.scale.dtype if isinstance(self.scale, RoundedScale) else None

    def extra_repr(self) -> str:
        pieces = f"grid={self.grid}, estimator={self.estimator}, rotate_back={self.rotate_back}"
        for name in ("sparsity", "group"):
            piece = getattr(self, name)
            pieces += "" if piece is None else f", {name}={piece}"
        return pieces


def decoded(grid: Grid, codes: Tensor, scale: Tensor) -> Tensor:
    """The values ``[..., K]`` of codes in the dtype of their ``scale``: ``[1]``, ``[..., 1]`` or a
    group of columns ``[..., G]``."""
    codes, groups = codes.to(scale.dtype), scale.shape[-1]
    if groups == 1:
        return grid.decode(codes, scale)
    return grid.decode(_in_groups(codes, groups), scale.unsqueeze(-1)).flatten(-2)


def encoded(grid: Grid, values: Tensor, scale: Tensor) -> Tensor:
    """The codes ``[..., K]`` of what is nearest to values on the grids of a ``scale`` as in
    `decoded`; in the values' dtype."""
    groups = scale.shape[-1]
    if groups == 1:
        return grid.encode(values, scale)
    return grid.encode(_in_groups(values, groups), scale.unsqueeze(-1)).flatten(-2)


def _in_groups(x: Tensor, groups: int) -> Tensor:
    """``[..., K]`` → ``[..., groups, K/groups]``."""
    return x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)


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
