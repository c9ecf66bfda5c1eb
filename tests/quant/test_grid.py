"""The grids alone: which code a value gets at a given scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.quant.grid import E2M1Grid, Grid, UniformGrid
from tests.quant.quest_reference import E2M1

GRIDS: list[Grid] = [*(UniformGrid(levels) for levels in GAUSSIAN_ALPHA), E2M1Grid()]
DTYPES = (torch.float32, torch.float64)


def _codes(grid: Grid) -> list[int]:
    """Every code of a grid. FP4's minus zero, 8, is none."""
    if isinstance(grid, UniformGrid):
        return list(range(grid.levels))
    return [code for code in range(16) if code != 8]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_value_encodes_to_its_own_code(grid: Grid, dtype: torch.dtype) -> None:
    """At a fixed scale quantizing is idempotent, for every code. (With a scale of its own it is
    not: the quantized row has another rms.)"""
    codes = torch.tensor(_codes(grid), dtype=dtype)
    for scale in (1e-30, 0.1, 1.0, 2.513931 / 3, 2.922479 / 7, 1e20):
        s = torch.tensor([scale], dtype=dtype)
        assert torch.equal(grid.encode(grid.decode(codes, s), s), codes)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_decodes_to_a_symmetric_grid_up_to_s(grid: Grid) -> None:
    """The values lie between -s and s, both included, and the negative of each is one too."""
    codes = torch.tensor(_codes(grid), dtype=torch.float64)
    s = torch.tensor([0.7], dtype=torch.float64)
    values = grid.decode(codes, s).sort().values
    assert torch.equal(values, -values.flip(0))
    assert values.unique().numel() == len(codes)
    assert values[-1].item() == pytest.approx(0.7, rel=1e-15)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_beyond_the_grid_are_the_outermost_codes(grid: Grid) -> None:
    """±∞ and everything past ±s get the codes of -s and s."""
    x = torch.tensor([-math.inf, -1e30, -1.01, 1.01, 1e30, math.inf])
    lowest, highest = (0, grid.levels - 1) if isinstance(grid, UniformGrid) else (15, 7)
    assert grid.encode(x, torch.ones(1)).tolist() == [lowest] * 3 + [highest] * 3


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nan_has_no_code(grid: Grid) -> None:
    """A NaN beside a finite scale encodes to NaN, not to some level, and decodes to NaN."""
    s = torch.ones(1)
    code = grid.encode(torch.tensor([math.nan, 0.3]), s)
    assert code.isnan().tolist() == [True, False]
    assert grid.decode(code, s).isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("exponent", [-40, -1, 0, 1, 40])
@pytest.mark.parametrize(
    ("middle", "even"),
    [(0.25, 0), (0.75, 1), (1.25, 1), (1.75, 2), (2.5, 2), (3.5, 4), (5, 4), (6, 6), (7, 6)],
)
def test_fp4_ties_go_to_the_even_mantissa(
    middle: float, even: float, exponent: int, dtype: torch.dtype
) -> None:
    """In the middle between two values the one whose mantissa bit is 0 wins, as in hardware, on
    both sides of zero; a hair to either side the nearer one wins."""
    scale = torch.tensor([6 * 2.0**exponent], dtype=dtype)
    grid, unit = E2M1Grid(), 2.0**exponent

    def quantized(x: Tensor) -> Tensor:
        return grid.decode(grid.encode(x, scale), scale) / unit

    x = torch.tensor([middle, -middle], dtype=dtype) * unit
    assert quantized(x).tolist() == [even, -even]
    if middle < 6:
        near = 1e-5 * x.abs()
        assert quantized(x - near)[0] == max(value for value in E2M1 if value < middle)
        assert quantized(x + near)[0] == min(value for value in E2M1 if value > middle)
        assert torch.equal(quantized(-x), -quantized(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fp4_codes_are_bit_patterns_with_one_zero(dtype: torch.dtype) -> None:
    """Sign in bit 3, the magnitude's rank below; small negatives are code 0, never minus zero."""
    s = torch.tensor([6.0], dtype=dtype)
    magnitudes = torch.tensor(E2M1, dtype=dtype)
    assert E2M1Grid().encode(magnitudes, s).tolist() == list(range(8))
    assert E2M1Grid().encode(-magnitudes, s).tolist() == [0, *range(9, 16)]
    tiny = torch.tensor([-0.0, -1e-30, -0.2, -0.25], dtype=dtype)
    assert E2M1Grid().encode(tiny, s).tolist() == [0, 0, 0, 0]
    assert not E2M1Grid().decode(torch.zeros(1, dtype=dtype), s).signbit().any()


@pytest.mark.parametrize("levels", GAUSSIAN_ALPHA)
def test_the_half_width_of_a_uniform_grid(levels: int) -> None:
    """In steps."""
    assert UniformGrid(levels).half_width == (levels - 1) / 2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_nearest_value_is_that_of_the_code(grid: Grid, dtype: torch.dtype) -> None:
    """Ties, both signs, both ends and NaN among them."""
    x = torch.arange(-1024, 1025, dtype=dtype) / 128
    x = torch.cat([x, torch.randn(4096, dtype=dtype), torch.tensor([math.nan, 1e30, -1e30])])
    for scale in (0.3, 1.0, 6.0):
        s = torch.tensor([scale], dtype=dtype)
        expected = grid.decode(grid.encode(x, s), s)
        assert torch.equal(grid.nearest(x, s).nan_to_num(9e9), expected.nan_to_num(9e9))
