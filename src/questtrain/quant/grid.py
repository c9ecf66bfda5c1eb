"""Grids: the values that a format can take.

The uniform grid of n levels on [-s, s] (quest.md 3). With n even it is the centred one: in units
of half a step, s/(n-1), its values are the odd integers -(n-1) … n-1, and a product of two
quantized operands is a product of small integers with two row scales, which is what every kernel
exploits. With n odd it holds zero: the integers -(n-1)/2 … (n-1)/2 times a step.

FP4 is E2M1: a sign, two bits of exponent, one of mantissa.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

E2M1_LARGEST = 6.0


class Grid(Hashable, Protocol):
    """Codes of values, and values of codes; ``scale`` is the half-width s of the grid, ``[..., 1]``
    or a scalar. Codes are small integers, held in x's dtype so that NaN stays NaN."""

    @property
    def half_width(self) -> float:
        """s in units of the grid's step (of FP4: in its own units, 6)."""

    @property
    def levels(self) -> int:
        """Codes lie below it."""

    def encode(self, x: Tensor, scale: Tensor) -> Tensor:
        """The code of the value nearest to each of ``x``."""

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The value of each code."""

    def nearest(self, x: Tensor, scale: Tensor) -> Tensor:
        """The value nearest to each of ``x``: what `decode` makes of `encode`'s, in one go."""


@dataclass(frozen=True)
class UniformGrid:
    """``levels`` equidistant values, symmetric about zero."""

    levels: int

    @property
    def half_width(self) -> float:
        return (self.levels - 1) / 2

    def encode(self, x: Tensor, scale: Tensor) -> Tensor:
        """Codes 0 … levels-1, from the lowest value to the highest."""
        half_range = self.half_width
        return (x / scale * half_range + half_range).round().clamp(0, self.levels - 1)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The integer 2·code - (levels-1) times half a step."""
        return (2 * codes - (self.levels - 1)) * (scale / (self.levels - 1))

    def nearest(self, x: Tensor, scale: Tensor) -> Tensor:
        codes, steps = self.encode(x, scale), self.levels - 1
        return codes.mul_(2).sub_(steps).mul_(scale / steps)


@dataclass(frozen=True)
class E2M1Grid:
    """FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, times s/6.

    Rounds to the nearest value and, in the middle between two, to the even mantissa, as hardware
    does. Codes are the format's bit patterns (the sign in bit 3, below it the magnitude's rank);
    there is one zero, code 0.
    """

    half_width: float = E2M1_LARGEST

    @property
    def levels(self) -> int:
        return 16

    def encode(self, x: Tensor, scale: Tensor) -> Tensor:
        magnitude = x.abs() / scale * E2M1_LARGEST
        step = torch.where(magnitude < 2, 0.5, torch.where(magnitude < 4, 1.0, 2.0))
        rounded = ((magnitude / step).round() * step).clamp_max(E2M1_LARGEST)
        rank = torch.where(
            rounded < 2, 2 * rounded, torch.where(rounded < 4, rounded + 2, rounded / 2 + 4)
        )
        return rank + 8 * ((x < 0) & (rank > 0))

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        rank = codes % 8
        magnitude = torch.where(rank < 4, rank / 2, torch.where(rank < 6, rank - 2, 2 * rank - 8))
        return torch.where(codes >= 8, -magnitude, magnitude) * (scale / E2M1_LARGEST)

    def nearest(self, x: Tensor, scale: Tensor) -> Tensor:
        """Between 0, 2, 4 and 6 the format is uniform, with steps of 0.5, 1 and 2: a magnitude is
        rounded as the part of each that it fills."""
        magnitude = (x.abs() / scale).mul_(E2M1_LARGEST)
        rounded = magnitude.clamp(0, 2).mul_(2).round_().mul_(0.5)
        rounded += (magnitude - 2).clamp_(0, 2).round_()
        rounded += (magnitude - 4).clamp_(0, 2).mul_(0.5).round_().mul_(2)
        return rounded.copysign_(x).mul_(scale / E2M1_LARGEST)
