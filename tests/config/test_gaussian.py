"""The trust in force: what was asked for, or the published default of the format."""

from __future__ import annotations

import pytest

from questtrain.config import NumberFormat, QuantConfig
from questtrain.config.bits import LEVELS
from questtrain.config.gaussian import Trust, trust_in_force


@pytest.mark.parametrize("grid", ["centred", "int"])
@pytest.mark.parametrize("label", [label for label in LEVELS if label != "1"])
def test_half_a_step_of_error_on_a_uniform_grid(label: str, grid: str) -> None:
    """t = n/(n-1): half a step beyond the outermost value, where s is (n-1)/2 steps."""
    levels = NumberFormat(label).grid_levels(grid)
    trust = trust_in_force(NumberFormat(label), QuantConfig(grid=grid), rotated=True)
    assert trust.error is None
    assert trust.scale == pytest.approx(1 + 1 / (levels - 1), rel=1e-15)


@pytest.mark.parametrize(
    ("label", "quant", "trust"),
    [
        ("1", {}, Trust(scale=1.30)),
        ("fp4", {}, Trust(error=0.3186)),
        ("fp4", {"trust_scale": 1.0}, Trust(scale=1.0)),
        ("4", {"trust_error": 0.1}, Trust(error=0.1)),
        ("4", {"scale": "learned-step"}, Trust()),
    ],
)
def test_other_formats_and_what_was_asked_for(label: str, quant: dict, trust: Trust) -> None:
    assert trust_in_force(NumberFormat(label), QuantConfig(**quant), rotated=True) == trust


def test_one_bit_without_the_transform() -> None:
    assert trust_in_force(NumberFormat("1"), QuantConfig(), rotated=False) == Trust(scale=1.25)
