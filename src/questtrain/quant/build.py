"""From a number format and a method to the quantizer of one operand."""

from __future__ import annotations

import torch

from questtrain.config import (
    NumberFormat,
    QuantConfig,
    check_group_width,
    check_sparse_width,
    check_target_width,
)
from questtrain.config.gaussian import FP4_ALPHA, GAUSSIAN_ALPHA, trust_in_force
from questtrain.quant.estimator import ErrorTrust, Estimator, LearnedRange, OuterTrust
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from questtrain.quant.quantizer import Quantizer, Unquantized
from questtrain.quant.rotation import NoRotation, build_rotation
from questtrain.quant.scale import (
    GaussianScale,
    LearnedClip,
    LearnedOffset,
    LearnedStep,
    RoundedScale,
)
from questtrain.quant.sparsity import PairSparsity

UNIT_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
"""What ``quant.scale_dtype`` rounds to; float32 rounds nothing."""


def build_quantizer(
    number_format: NumberFormat,
    quant: QuantConfig,
    rotation: str,
    width: int,
    is_activation: bool = False,
) -> Quantizer | Unquantized:
    """Compose the quantizer of an operand with ``width`` columns.

    ``rotation`` is what `pair_rotations` chose for it: none, hadamard or hadamard-back. Scales that
    are rounded or of groups are of weights alone: an activation's are made where it is used, and
    nobody stores them. Raises UserError for a width that rotation, groups or sparsity cannot
    divide.
    """
    if not number_format.quantized:
        rotated = rotation == "hadamard"
        return Unquantized(
            build_rotation(rotation, width, quant.hadamard_block) if rotated else None
        )
    if number_format.sparse:
        check_sparse_width(width)
    group = None if is_activation else quant.group_size
    if group is not None:
        check_group_width(width, group)
    check_target_width(quant, width)
    grid, alpha = _build_grid(number_format, quant)
    rotation_module = build_rotation(rotation, width, quant.hadamard_block)
    rotated = not isinstance(rotation_module, NoRotation)
    return Quantizer(
        rotation_module,
        _build_scale(quant, grid, alpha, is_activation),
        grid,
        _build_estimator(number_format, quant, alpha, rotated),
        PairSparsity() if number_format.sparse else None,
        LearnedOffset(grid.half_width) if quant.activation_offset and is_activation else None,
        rotate_back=rotation == "hadamard-back",
        group=group,
    )


def _build_grid(number_format: NumberFormat, quant: QuantConfig) -> tuple[Grid, float]:
    """The grid and the α of its MSE-optimal half-width."""
    if number_format.kind == "fp4":
        return E2M1Grid(), FP4_ALPHA
    levels = number_format.grid_levels(quant.grid)
    return UniformGrid(levels), GAUSSIAN_ALPHA[levels]


def _build_scale(
    quant: QuantConfig, grid: Grid, alpha: float, is_activation: bool
) -> GaussianScale | RoundedScale | LearnedStep | LearnedClip:
    match quant.scale:
        case "learned-step":
            return LearnedStep(alpha, grid.half_width)
        case "learned-clip":
            return LearnedClip(alpha)
        case _ if is_activation or quant.scale_dtype == "float32":
            return GaussianScale(alpha)
        case _:
            dtype = UNIT_DTYPES[quant.scale_dtype]
            return RoundedScale(GaussianScale(alpha), grid.half_width, dtype)


def _build_estimator(
    number_format: NumberFormat, quant: QuantConfig, alpha: float, rotated: bool
) -> Estimator:
    """The estimator of the trust in force; of a learned scale where there is none."""
    trust = trust_in_force(number_format, quant, rotated)
    if trust.scale is not None:
        return OuterTrust(trust.scale)
    if trust.error is not None:
        return ErrorTrust(trust.error, alpha)
    return LearnedRange(rounding=quant.scale == "learned-step")
