"""Codes as what other programs multiply: integers, and the unit that they count.

A centred grid's are odd, of half a step each; those of a grid that holds zero whole steps; FP4's
twice its numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from questtrain.inference.export.source import Source, WeightCodes
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from questtrain.quant.quantizer import Quantizer


class Integers(NamedTuple):
    """A weight's ``values`` int16 ``[N, K]``, and fp32 ``units [N, G]`` that they count, one for
    K/G columns: their products are the weight's values to the bit."""

    values: Tensor
    units: Tensor


def coded_layers(source: Source) -> dict[str, Quantizer]:
    """The layers whose weights are quantized, and by what: without numbers."""
    quantizers = {name: source.meta_linear(name).weight_quantizer for name in source.linear_names()}
    return {name: each for name, each in quantizers.items() if isinstance(each, Quantizer)}


def reach(grid: Grid) -> int:
    """The largest integer of a grid."""
    if isinstance(grid, E2M1Grid):
        return 12
    assert isinstance(grid, UniformGrid)
    return grid.levels - 1 if grid.levels % 2 == 0 else grid.levels // 2


def integers(codes: WeightCodes) -> Integers:
    """Of a weight; what sparsity prunes is 0."""
    values = _integers(codes.grid, codes.codes)
    if codes.kept is not None:
        values = values * codes.kept
    return Integers(values, units(codes))


def units(codes: WeightCodes) -> Tensor:
    """fp32 ``[N, G]``: what the integers of a row's groups are multiples of."""
    found = codes.half_widths.float() / reach(codes.grid)
    return found.expand(len(codes.codes), -1)


def possible_integers(quantizer: Quantizer) -> frozenset[int]:
    """All that a weight of this quantizer may hold."""
    every = _integers(quantizer.grid, torch.arange(quantizer.grid.levels))
    return frozenset(every.tolist()) | (frozenset() if quantizer.sparsity is None else {0})


def _integers(grid: Grid, codes: Tensor) -> Tensor:
    """int16, of codes: the values of a grid whose half-width is its largest integer."""
    outermost = torch.tensor(float(reach(grid)))
    return grid.decode(codes.float(), outermost).round().to(torch.int16)
