"""Grids: the values that a format can take.

The uniform, centred grid of n levels on [-s, s] (quest.md 3). In units of half a step, s/(n-1),
its values are the odd integers -(n-1) … n-1: a product of two quantized operands is a product of
small integers with two row scales, which is what every kernel exploits.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class UniformGrid:
    """``levels`` equidistant values, symmetric about zero; ``scale [..., 1]`` is the half-width."""

    levels: int

    def encode(self, x: Tensor, scale: Tensor) -> Tensor:
        """Nearest code 0 … levels-1 of each value, as floats of x's dtype; NaN stays NaN."""
        half_range = (self.levels - 1) / 2
        return (x / scale * half_range + half_range).round().clamp(0, self.levels - 1)

    def decode(self, codes: Tensor, scale: Tensor) -> Tensor:
        """The value of each code: the odd integer 2·code - (levels-1) times half a step."""
        return (2 * codes - (self.levels - 1)) * (scale / (self.levels - 1))

    @property
    def half_step_trust(self) -> float:
        """The outer trust scale t of a trust of half a step: ``|x| ≤ t·s`` with t = n/(n-1)."""
        return self.levels / (self.levels - 1)
