"""What the grids of normally distributed operands are: their width, and which gradients to trust.

A Gaussian scale puts a grid's outermost value at α times the operand's root mean square, with the α
that minimises the mean squared error on N(0, 1) (quest.md 2). The α of the centred grids and of FP4
are the authors', so that runs compare. The tests recompute the minima: up to 5 bits they agree
within 1e-4; the true ones of 6, 7 and 8 bits lie near 3.278, 3.611 and 3.922, where the error is
smaller by 2e-6, 1e-4 and 2e-3 of itself. Those of the grids with zero (odd numbers of levels from
7) are the minima.
"""

from __future__ import annotations

from typing import NamedTuple

from questtrain.config.bits import NumberFormat
from questtrain.config.schema import QuantConfig

GAUSSIAN_ALPHA = {
    2: 0.797885,
    3: 1.224009,
    4: 1.493535,
    7: 1.952309,
    8: 2.051068,
    15: 2.473879,
    16: 2.513931,
    31: 2.898728,
    32: 2.916094,
    63: 3.270115,
    64: 3.276597,
    127: 3.607461,
    128: 3.601050,
    255: 3.920501,
    256: 3.884939,
}
"""Levels of a uniform grid → its MSE-optimal half-width on N(0, 1)."""

FP4_ALPHA = 2.922479
"""The same for E2M1: where its largest value sits."""

ONE_BIT_TRUST = 1.30
ONE_BIT_TRUST_UNROTATED = 1.25
FP4_TRUST_ERROR = 0.3186
"""T of the published FP4 runs: half the last step of a 16-level codebook for N(0, 1), not half of
FP4's own last step (0.4871)."""


class Trust(NamedTuple):
    """The outer trust scale t, or the largest error T that is trusted, in row rms; neither where
    the scale is learned."""

    scale: float | None = None
    error: float | None = None


def trust_in_force(number_format: NumberFormat, quant: QuantConfig, rotated: bool) -> Trust:
    """The trust asked for, or the published default of a quantized operand's format.

    Half a step of error is the outer form only on dense uniform grids, t = n/(n-1) (trap 2); 1 bit
    has a wider clip (trap 3, figure 10), FP4 a T of its own (trap 4).
    """
    if quant.scale != "gaussian":
        return Trust()
    if quant.trust_error is not None:
        return Trust(error=quant.trust_error)
    if quant.trust_scale is not None:
        return Trust(scale=quant.trust_scale)
    if number_format.kind == "fp4":
        return Trust(error=FP4_TRUST_ERROR)
    levels = number_format.grid_levels(quant.grid)
    if number_format.sparse:
        return Trust(error=GAUSSIAN_ALPHA[levels] / (levels - 1))
    if levels == 2:
        return Trust(scale=ONE_BIT_TRUST if rotated else ONE_BIT_TRUST_UNROTATED)
    return Trust(scale=levels / (levels - 1))
