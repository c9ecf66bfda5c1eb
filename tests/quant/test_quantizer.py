"""Properties of one quantizer with a Gaussian scale: its values, its masks, and rows at the edge of
the number range."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from questtrain.quant.estimator import ErrorTrust, OuterTrust
from tests.quant.operands import (
    DENSE,
    FORMATS,
    ROTATIONS,
    SPARSE,
    UNIFORM,
    WIDTH,
    Format,
    gaussian,
    make,
    mask_of,
)
from tests.quant.quest_reference import ALPHA, E2M1, ONE_BIT_TRUST, larger_pairs

WITH_HALF_STEP = [uniform for uniform in UNIFORM if uniform.label != "1"]


@pytest.mark.parametrize("uniform", UNIFORM, ids=str)
def test_values_are_integers_of_half_a_step(uniform: Format) -> None:
    """values / (s/(n-1)) are the integers -(n-1), -(n-3), … n-1, and all of them occur: odd ones
    on the centred grid, even ones (whole steps) on one with zero."""
    quantizer, n = uniform.quantizer(), uniform.recipe.n
    x = gaussian(2000, WIDTH, dtype=torch.float64)
    x = torch.cat([x, 3 * x[:100] ** 3])
    stored = quantizer.quantize(x)
    units = quantizer(x) / (stored.scale / (n - 1))
    assert (units - units.round()).abs().max() < 1e-9
    assert set(units.round().int().unique().tolist()) == set(range(1 - n, n, 2))
    assert torch.equal(units.round().int(), 2 * stored.codes.int() - (n - 1))
    rms = quantizer.rotation(x).square().mean(-1, keepdim=True).sqrt()
    assert (stored.scale / rms - uniform.recipe.alpha).abs().max() < 1e-12


def test_fp4_values_are_e2m1() -> None:
    """values / (s/6) are 0, ±0.5, ±1, ±1.5, ±2, ±3, ±4, ±6, and all of them occur; s is
    2.922479 rms."""
    quantizer = make("fp4")
    x = gaussian(2000, WIDTH, dtype=torch.float64)
    stored = quantizer.quantize(x)
    units = quantizer(x) / (stored.scale / 6)
    nearest = (2 * units).round() / 2
    assert (units - nearest).abs().max() < 1e-12
    assert set(nearest.unique().tolist()) == {sign * value for value in E2M1 for sign in (1, -1)}
    rms = quantizer.rotation(x).square().mean(-1, keepdim=True).sqrt()
    assert (stored.scale / rms - 2.922479).abs().max() < 1e-12


@pytest.mark.parametrize("with_zero", [f for f in UNIFORM if f.grid == "int"], ids=str)
def test_a_grid_with_zero_is_clipped_on_both_sides(with_zero: Format) -> None:
    """Trap 7: 2^b - 1 levels reach from -s to s, where an un-centred grid's lower bound of
    -2^(b-1) steps would go one step further; nothing lies below -s, and zero is a level."""
    quantizer, n = with_zero.quantizer("none"), with_zero.recipe.n
    assert n == (3 if with_zero.label == "1.58" else 2 ** int(with_zero.label) - 1)
    x = gaussian(50, WIDTH, dtype=torch.float64)
    x[:, :3] = torch.tensor([-1e3, 1e3, 0.0])
    values = quantizer(x)
    scale = quantizer.quantize(x).scale.squeeze(-1)
    torch.testing.assert_close(values[:, 0], -scale, rtol=1e-15, atol=0)
    assert torch.equal(values.amin(-1), -values.amax(-1))
    assert torch.equal(values[:, 2], torch.zeros(50, dtype=torch.float64))
    steps = values / (2 * scale / (n - 1)).unsqueeze(-1)
    assert steps.round().abs().max() == (n - 1) // 2


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_scaling_by_a_power_of_two_is_exact(stored_as: Format, rotation: str) -> None:
    """Q(2^k·x) is 2^k·Q(x) bit for bit, down to an rms of 10⁻¹⁸ where fp32 squares underflow; the
    mask is the same."""
    quantizer = stored_as.quantizer(rotation)
    x = gaussian(4, WIDTH)
    values, mask = quantizer(x), quantizer.mask(x)
    for k in (-59, -8, -1, 1, 5, 40):
        assert torch.equal(quantizer(x * 2.0**k), values * 2.0**k)
        assert torch.equal(quantizer.mask(x * 2.0**k), mask)


@pytest.mark.parametrize("uniform", WITH_HALF_STEP, ids=str)
def test_half_step_trust_in_both_forms(uniform: Format) -> None:
    """Trap 2: on a dense uniform grid |x_h| ≤ n/(n-1)·s is an error of at most half a step."""
    n = uniform.recipe.n
    x = torch.cat([gaussian(200, WIDTH, dtype=torch.float64), 3 * gaussian(1, WIDTH) ** 3])
    quantizer = uniform.quantizer()
    assert quantizer.estimator == OuterTrust(n / (n - 1))
    outer = mask_of(quantizer, x)
    half_step = uniform.recipe.half_step * (1 + 1e-12)
    error = mask_of(uniform.quantizer(trust_error=half_step), x)
    assert torch.equal(outer, error)
    assert 0.5 < outer.mean() < 1


@pytest.mark.parametrize("stored_as", [*SPARSE, Format("fp4")], ids=str)
def test_elsewhere_trust_is_the_error_form(stored_as: Format) -> None:
    """Trap 2: with sparsity and for FP4 the default is an error of at most T·rms: T of half a step,
    and FP4's own."""
    quantizer, recipe = stored_as.quantizer(), stored_as.recipe
    expected = 0.3186 if recipe.label == "fp4" else recipe.half_step
    x = gaussian(100, WIDTH, dtype=torch.float64)
    x_h = quantizer.rotation(x)
    rms = x_h.square().mean(-1, keepdim=True).sqrt()
    error = (x_h - quantizer.dequantize(quantizer.quantize(x))).abs()
    assert torch.equal(mask_of(quantizer, x).bool(), error <= expected * rms)


def test_fp4_trusts_the_published_error() -> None:
    """Trap 4: T is 0.3186 by default, not half of FP4's last step (0.4871), which trust_error asks
    for: it trusts more, namely more of what lies between 4 and 6 and just beyond 6."""
    assert abs(2.922479 / 6 - 0.4871) < 1e-4
    default, wide = make("fp4"), make("fp4", trust_error=0.4871)
    assert default.estimator == ErrorTrust(0.3186, 2.922479)
    assert wide.estimator == ErrorTrust(0.4871, 2.922479)
    x = gaussian(400, WIDTH, dtype=torch.float64)
    narrow_mask, wide_mask = mask_of(default, x).bool(), mask_of(wide, x).bool()
    assert (wide_mask | ~narrow_mask).all()
    only_wide = wide_mask & ~narrow_mask
    magnitude = (default.rotation(x) / default.quantize(x).scale * 6).abs()[only_wide]
    half_way = 0.3186 * 6 / 2.922479
    assert len(magnitude) > 100
    assert magnitude.min() > 4 + half_way
    assert not ((magnitude > 6 - half_way) & (magnitude < 6 + half_way)).any()


def test_a_smaller_trust_also_masks_inner_values() -> None:
    """T of a quarter step masks about half of the values inside the grid, none of the exact."""
    quantizer = make("4", trust_error=ALPHA["4"] / 15 / 2)
    assert isinstance(quantizer.estimator, ErrorTrust)
    x = gaussian(500, WIDTH, dtype=torch.float64)
    mask = mask_of(quantizer, x)
    stored = quantizer.quantize(x)
    inside = quantizer.rotation(x).abs() <= stored.scale
    assert mask[inside].mean() == pytest.approx(0.5, abs=0.01)
    error = (quantizer.rotation(x) - quantizer.dequantize(stored)).abs()
    assert torch.equal(mask.bool(), error <= stored.scale / 30)


@pytest.mark.parametrize(("rotation", "t"), [("none", 1.25), ("hadamard", 1.30)])
def test_one_bit_trusts_the_published_clip(rotation: str, t: float) -> None:
    """Trap 3: 1 bit trusts |x| ≤ 1.30·s (1.25 unrotated), never the half step's 2·s."""
    quantizer = make("1", rotation)
    assert quantizer.estimator == OuterTrust(t)
    x = gaussian(100, WIDTH, dtype=torch.float64)
    x_h = quantizer.rotation(x)
    s = ALPHA["1"] * x_h.square().mean(-1, keepdim=True).sqrt()
    assert torch.equal(mask_of(quantizer, x).bool(), x_h.abs() <= t * s)


@pytest.mark.parametrize(
    ("trust_scale", "trusted"), [(1.0, (1, 1, 0, 0)), (2.0, (1, 1, 1, 0)), (math.inf, (1,) * 4)]
)
def test_the_family_of_outer_trust(trust_scale: float, trusted: tuple[int, ...]) -> None:
    """t = 1 clips, a larger t trusts further out, t = ∞ is straight-through; any format can have
    it."""
    x = torch.tensor([0.5, -1.0, 1.5, -100.0])
    mask = OuterTrust(trust_scale).mask(x, x.clamp(-1, 1), torch.ones(1))
    assert mask.int().tolist() == list(trusted)
    for label in ("1", "4", "fp4", "4s24", "fp4s24"):
        assert make(label, trust_scale=trust_scale).estimator == OuterTrust(trust_scale)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_an_all_zero_row_stays_finite(stored_as: Format, rotation: str) -> None:
    """Its values are (almost) zero, its gradient passes, and other rows do not notice."""
    quantizer = stored_as.quantizer(rotation)
    x = torch.stack([torch.zeros(WIDTH), gaussian(WIDTH)]).requires_grad_()
    out = quantizer(x)
    out.sum().backward()
    assert out[0].abs().max() < 1e-25
    assert torch.equal(out[1], quantizer(x[1]))
    assert x.grad is not None
    passed = torch.ones(WIDTH)
    expected = quantizer.rotation(passed) if rotation == "hadamard" else passed
    torch.testing.assert_close(x.grad[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_nan_stays_visible(stored_as: Format, rotation: str) -> None:
    """A NaN makes its whole row NaN instead of some code, and leaves the other rows alone."""
    quantizer = stored_as.quantizer(rotation)
    x = gaussian(2, WIDTH)
    clean = quantizer(x)
    x[0, 3] = math.nan
    assert quantizer(x)[0].isnan().all()
    assert torch.equal(quantizer(x)[1], clean[1])


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_infinity_stays_visible(stored_as: Format, infinite: float) -> None:
    """Its row has no finite rms and shows it; the other rows do not notice."""
    quantizer = stored_as.quantizer()
    x = gaussian(2, WIDTH)
    clean = quantizer(x)
    x[0, 3] = infinite
    values = quantizer(x)
    assert not values[0].isfinite().all()
    assert torch.equal(values[1], clean[1])


def _masked_of_a_gaussian(stored_as: Format) -> float:
    """P(M = 0) for N(0, 1), over the cells of a dense grid."""
    recipe = stored_as.recipe
    if recipe.label == "1":
        return float(2 * norm.sf(ONE_BIT_TRUST[True] * recipe.alpha))
    values = np.unique(recipe.levels) * recipe.alpha
    edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
    trust = 0.3186 if recipe.label == "fp4" else recipe.half_step
    low, high = np.maximum(edges[:-1], values - trust), np.minimum(edges[1:], values + trust)
    return float(1 - (norm.cdf(high) - norm.cdf(low)).sum())


@pytest.mark.parametrize("dense", DENSE, ids=str)
def test_the_expected_masked_fraction(dense: Format) -> None:
    """It is P(M = 0) of N(0, 1); quantiles miss it by at most one of 2^18 at each end of a cell."""
    found = dense.quantizer().expected_masked_fraction(samples=1 << 18)
    assert found == pytest.approx(_masked_of_a_gaussian(dense), abs=20 / 2**18)


@pytest.mark.parametrize("label", ["2s24", "4s24"])
def test_the_expected_masked_fraction_of_sparse_weights(label: str) -> None:
    """Sampled: of 2^18 values the fraction has a standard error of 0.001, a fifth of the bound."""
    recipe = Format(label).recipe
    z = np.random.default_rng(0).standard_normal((1024, 256))
    kept, _ = larger_pairs(z, np.zeros_like(z), np.zeros((1024, 1)))
    levels = recipe.levels * recipe.alpha
    values = levels[abs(z[..., None] - levels).argmin(-1)] * kept
    expected = (abs(z - values) > recipe.half_step).mean()
    found = make(label).expected_masked_fraction(samples=1 << 18)
    assert found == pytest.approx(expected, abs=0.005)
