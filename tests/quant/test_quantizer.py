"""Properties of one quantizer: its values, its masks, and rows at the edge of the number range."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from questtrain.config import QuantConfig, parse_bits
from questtrain.quant.estimator import ErrorTrust, OuterTrust, straight_through
from questtrain.quant.grid import UniformGrid
from questtrain.quant.quantizer import Quantizer, build_quantizer
from tests.quant.quest_reference import ALPHA, LEVELS

WIDTH = 256
ROTATIONS = ("none", "hadamard", "hadamard-back")


def make(label: str, rotation: str = "hadamard", width: int = WIDTH, **quant: float) -> Quantizer:
    built = build_quantizer(
        parse_bits(f"w{label}a16").weight,
        QuantConfig(**quant),
        rotation,
        width,  # type: ignore[arg-type]
    )
    assert isinstance(built, Quantizer)
    return built


def gaussian(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def mask_of(quantizer: Quantizer, x: Tensor) -> Tensor:
    """M as the backward shows it, in the space of the quantization."""
    x_h = quantizer.rotation(x).requires_grad_()
    scale = quantizer.scale(x_h)
    values = quantizer.grid.decode(quantizer.grid.encode(x_h, scale), scale).detach()
    mask = quantizer.estimator.mask(x_h.detach(), values, scale)
    straight_through(x_h, values, mask).sum().backward()
    assert x_h.grad is not None
    return x_h.grad


@pytest.mark.parametrize("label", ALPHA)
def test_values_are_odd_integers_of_half_a_step(label: str) -> None:
    """values / (s/(n-1)) are the integers -(n-1), -(n-3), … n-1, and all of them occur."""
    quantizer, n = make(label), LEVELS[label]
    x = gaussian(2000, WIDTH, dtype=torch.float64)
    codes, scale = quantizer.codes(x)
    units = quantizer(x) / (scale / (n - 1))
    assert (units - units.round()).abs().max() < 1e-9
    assert set(units.round().int().unique().tolist()) == set(range(1 - n, n, 2))
    assert torch.equal(units.round().int(), 2 * codes.int() - (n - 1))
    assert (scale / quantizer.rotation(x).square().mean(-1, keepdim=True).sqrt()).sub(
        ALPHA[label]
    ).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", LEVELS.values())
def test_a_value_encodes_to_its_own_code(levels: int, dtype: torch.dtype) -> None:
    """At a fixed scale quantizing is idempotent, for every code. (With a scale of its own it is
    not: the quantized row has another rms.)"""
    grid = UniformGrid(levels)
    codes = torch.arange(levels, dtype=dtype)
    for scale in (1e-30, 0.1, 1.0, 2.513931 / 3, 1e20):
        s = torch.tensor([scale], dtype=dtype)
        assert torch.equal(grid.encode(grid.decode(codes, s), s), codes)


@pytest.mark.parametrize("levels", LEVELS.values())
def test_beyond_the_grid_are_the_outermost_codes(levels: int) -> None:
    """±∞ and everything past ±s get the codes 0 and n-1."""
    x = torch.tensor([-math.inf, -1e30, -1.01, 1.01, 1e30, math.inf])
    codes = UniformGrid(levels).encode(x, torch.ones(1))
    assert codes.tolist() == [0] * 3 + [levels - 1] * 3


def test_nan_has_no_code() -> None:
    """A NaN beside a finite scale encodes to NaN, not to some level."""
    assert UniformGrid(16).encode(torch.tensor([math.nan]), torch.ones(1)).isnan().all()


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("label", ALPHA)
def test_scaling_by_a_power_of_two_is_exact(label: str, rotation: str) -> None:
    """Q(2^k·x) is 2^k·Q(x) bit for bit, down to an rms of 10⁻¹⁸ where fp32 squares underflow."""
    quantizer = make(label, rotation)
    x = gaussian(4, WIDTH)
    for k in (-59, -8, -1, 1, 5, 40):
        assert torch.equal(quantizer(x * 2.0**k), quantizer(x) * 2.0**k)


@pytest.mark.parametrize("label", [label for label in ALPHA if label != "1"])
def test_half_step_trust_in_both_forms(label: str) -> None:
    """Trap 2: on a uniform grid |x_h| ≤ n/(n-1)·s is an error of at most half a step."""
    n = LEVELS[label]
    x = torch.cat([gaussian(200, WIDTH, dtype=torch.float64), 3 * gaussian(1, WIDTH) ** 3])
    quantizer = make(label)
    assert quantizer.estimator == OuterTrust(n / (n - 1))
    outer = mask_of(quantizer, x)
    error = mask_of(make(label, trust_error=ALPHA[label] / (n - 1) * (1 + 1e-12)), x)
    assert torch.equal(outer, error)
    assert 0.5 < outer.mean() < 1


def test_a_smaller_trust_also_masks_inner_values() -> None:
    """T of a quarter step masks about half of the values inside the grid, none of the exact."""
    quantizer = make("4", trust_error=ALPHA["4"] / 15 / 2)
    assert isinstance(quantizer.estimator, ErrorTrust)
    x = gaussian(500, WIDTH, dtype=torch.float64)
    mask = mask_of(quantizer, x)
    codes, scale = quantizer.codes(x)
    inside = quantizer.rotation(x).abs() <= scale
    assert mask[inside].mean() == pytest.approx(0.5, abs=0.01)
    error = (quantizer.rotation(x) - quantizer.grid.decode(codes.double(), scale)).abs()
    assert torch.equal(mask.bool(), error <= scale / 30)


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
    """t = 1 clips, a larger t trusts further out, t = ∞ is straight-through."""
    x = torch.tensor([0.5, -1.0, 1.5, -100.0])
    mask = OuterTrust(trust_scale).mask(x, x.clamp(-1, 1), torch.ones(1))
    assert mask.int().tolist() == list(trusted)
    assert make("4", trust_scale=trust_scale).estimator == OuterTrust(trust_scale)


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("label", ALPHA)
def test_an_all_zero_row_stays_finite(label: str, rotation: str) -> None:
    """Its values are (almost) zero, its gradient passes, and other rows do not notice."""
    quantizer = make(label, rotation)
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
@pytest.mark.parametrize("label", ["1", "1.58", "4", "8"])
def test_nan_stays_visible(label: str, rotation: str) -> None:
    """A NaN makes its whole row NaN instead of some code, and leaves the other rows alone."""
    quantizer = make(label, rotation)
    x = gaussian(2, WIDTH)
    clean = quantizer(x)
    x[0, 3] = math.nan
    assert quantizer(x)[0].isnan().all()
    assert torch.equal(quantizer(x)[1], clean[1])


@given(
    leading=st.lists(st.integers(0, 5), max_size=3),
    width=st.sampled_from([16, 48, 80, 144, 256]),
    label=st.sampled_from(list(ALPHA)),
    rotation=st.sampled_from(ROTATIONS),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_any_shape(
    leading: list[int], width: int, label: str, rotation: str, dtype: torch.dtype
) -> None:
    """Rows are quantized independently of the shape they come in; shape and dtype are kept."""
    quantizer = make(label, rotation, width)
    x = gaussian(*leading, width, dtype=torch.float64).to(dtype)
    out = quantizer(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    codes, scale = quantizer.codes(x)
    assert (codes.shape, codes.dtype) == (x.shape, torch.uint8)
    assert scale.shape == (*leading, 1)
    values = quantizer.grid.decode(codes.to(scale.dtype), scale)
    expected = quantizer.rotation(values) if rotation == "hadamard-back" else values
    assert torch.equal(out, expected.to(dtype))
