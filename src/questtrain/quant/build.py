"""From a number format and a method to the quantizer of one operand."""

from __future__ import annotations

from questtrain.config import NumberFormat, QuantConfig, check_sparse_width
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
from questtrain.quant.quantizer import Quantizer, Unquantized
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


def build_quantizer(
    number_format: NumberFormat,
    quant: QuantConfig,
    rotation: str,
    width: int,
    is_activation: bool = False,
) -> Quantizer | Unquantized:
    """Compose the quantizer of an operand with ``width`` columns.

    ``rotation`` is what `pair_rotations` chose for it: none, hadamard or hadamard-back. Raises
    UserError for a width that the rotation or the sparsity cannot divide.
    """
    if not number_format.quantized:
        rotated = rotation == "hadamard"
        return Unquantized(
            build_rotation(rotation, width, quant.hadamard_block) if rotated else None
        )
    if number_format.sparse:
        check_sparse_width(width)
    grid, alpha = _build_grid(number_format, quant)
    rotation_module = build_rotation(rotation, width, quant.hadamard_block)
    rotated = not isinstance(rotation_module, NoRotation)
    return Quantizer(
        rotation_module,
        _build_scale(quant, grid, alpha),
        grid,
        _build_estimator(number_format, quant, grid, alpha, rotated),
        PairSparsity() if number_format.sparse else None,
        LearnedOffset(grid.half_width) if quant.activation_offset and is_activation else None,
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
