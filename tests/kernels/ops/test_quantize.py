"""The quantizing references: what training's quantizers give, bit for bit."""

import math

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.config import NumberFormat, QuantConfig
from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.kernels import formats, unpack_bits
from questtrain.quant.build import build_quantizer
from tests.kernels.arguments import EPSILON, random_rows

LABELS = {2: "1", 3: "1.58", 4: "2", 8: "3", 16: "4", 32: "5", 64: "6", 128: "7", 256: "8"}
"""Levels and the format of training that has as many."""

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def integers_of(quantized, levels):
    codes = quantized.codes
    if codes.dtype == torch.uint8:
        return kernels.unpack(codes, levels)
    return formats.integers_of(codes, levels)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128, 256])
@pytest.mark.parametrize(
    ("levels", "packed"),
    [
        (levels, packed)
        for levels in LABELS
        for packed in (False, True)
        if levels <= 16 or not packed
    ],
)
def test_equals_the_quantizer_of_training(levels, packed, block, dtype):
    rotation = "none" if block == 1 else "hadamard"
    config = QuantConfig(hadamard_block=max(block, 2))
    quantizer = build_quantizer(NumberFormat(LABELS[levels]), config, rotation, 512)
    x = random_rows(17, 512, dtype)
    x[3] = 0
    x[5, 7] = 1000
    trust = quantizer.estimator.outer_trust_scale
    ours = kernels.hadamard_quantize(x, levels, GAUSSIAN_ALPHA[levels], block, packed, trust)
    stored = quantizer.quantize(x)
    integers = 2 * stored.codes.int() - (levels - 1)
    assert torch.equal(integers_of(ours, levels).int(), integers)
    assert torch.equal(ours.scales, (stored.scale / (levels - 1)).squeeze(1))
    summed = ours.codes if levels == 256 else integers
    assert torch.equal(ours.sums, summed.sum(1, dtype=torch.int32))
    assert torch.equal(unpack_bits(ours.mask, 1).bool(), quantizer.mask(x))
    values = integers * ours.scales.unsqueeze(1)
    assert torch.equal(values, quantizer.dequantize(stored))


@pytest.mark.parametrize("levels", LABELS)
def test_halves_round_to_the_even_index(levels):
    """Values in the middle between two codes, and beyond the ends; the first value makes the
    row's half-width one."""
    steps = levels - 1
    places = torch.arange(-1, 2 * levels + 1) / 2  # in units of a step
    x = torch.zeros(1, 32 * (len(places) // 32 + 1))
    x[0, : len(places)] = 2 * places / steps - 1
    alpha = float(1 / x.square().mean().sqrt())
    ours = kernels.hadamard_quantize(x, levels, alpha, block=1)
    indices = (integers_of(ours, levels)[0, : len(places)].int() + steps) // 2
    near = (places - places.round()).abs() < 0.25  # halves are at the mercy of the half-width
    expected = places.round().clamp(0, steps).int()
    assert torch.equal(indices[near], expected[near])
    assert ((indices - places).abs()[(places >= 0) & (places <= steps)] <= 0.5).all()
    zeros = kernels.hadamard_quantize(torch.zeros(1, 32), levels, 1.0, block=1)
    assert integers_of(zeros, levels).unique().tolist() == [2 * round(steps / 2) - steps]


@pytest.mark.parametrize("block", [1, 128])
def test_no_number_is_hidden(block):
    """A row with NaN or infinity has a scale that says so; the others are as without it."""
    x = random_rows(6, 256, FP32)
    expected = kernels.hadamard_quantize(x, 16, 2.5, block)
    spoiled = x.clone()
    spoiled[1, 3], spoiled[2, 200], spoiled[4, 5] = torch.nan, torch.inf, 3e38
    ours = kernels.hadamard_quantize(spoiled, 16, 2.5, block, trust=1.0)
    assert ours.scales[1].isnan()
    assert not ours.scales[[2, 4]].isfinite().any()
    untouched = [0, 3, 5]
    for actual, wanted in zip(ours[:3], expected[:3], strict=True):
        assert torch.equal(actual[untouched], wanted[untouched])


def test_rows_of_zeros_stay_finite():
    for operands, op in (
        ((torch.zeros(2, 256),), kernels.hadamard_quantize),
        ((torch.zeros(2, 512),), kernels.swiglu_quantize),
        ((torch.zeros(2, 256), torch.ones(256), EPSILON), kernels.rmsnorm_quantize),
    ):
        ours = op(*operands, 16, 2.5, trust=1.0)
        assert ours.scales.tolist() == pytest.approx([2.5e-30 / 15] * 2)
        assert (ours.codes == 1).all(), "7.5 rounds to 8"
        assert (ours.mask == 255).all()


@pytest.mark.parametrize("rows", [0, 1, 17, 77, 300])
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_quantized_as_if_alone(rows, packed):
    x = random_rows(rows, 384, BF16)
    ours = kernels.hadamard_quantize(x, 4, 1.5, packed=packed, trust=1.3)
    assert ours.codes.shape == (rows, 96 if packed else 384)
    assert ours.mask.shape == (rows, 48)
    for row in {0, rows // 2, rows - 1} if rows else ():
        alone = kernels.hadamard_quantize(x[row : row + 1], 4, 1.5, packed=packed, trust=1.3)
        assert torch.equal(ours.codes[row], alone.codes[0])
        assert torch.equal(ours.mask[row], alone.mask[0])


def test_no_mask_without_trust():
    assert kernels.hadamard_quantize(torch.ones(3, 256), 16, 2.5).mask.shape == (3, 0)


# ---- the fused forms are compositions that round once


def same(actual, expected):
    return all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("rows", [0, 1, 17])
def test_fused_equals_the_composition(rows, dtype, packed):
    x, residual = (random_rows(rows, 512, dtype, seed=seed) for seed in (0, 1))
    weight = 1 + 0.1 * random_rows(1, 512, FP32, seed=2).flatten()
    form = (16, 2.5, 128, packed, 1.1)
    for w in (weight, weight.to(dtype)):
        normalized = torch.nn.functional.rms_norm(x.double(), (512,), w.double(), EPSILON).float()
        ours = kernels.rmsnorm_quantize(x, w, EPSILON, *form)
        flips = 0.01 if dtype == BF16 else 1e-3
        assert_almost(ours, kernels.hadamard_quantize(normalized, *form), packed, flips)
        hidden, fused = kernels.add_rmsnorm_quantize(x, residual, w, EPSILON, *form)
        assert torch.equal(hidden, x + residual)
        assert same(fused, kernels.rmsnorm_quantize(hidden, w, EPSILON, *form))
    gate_up = torch.cat([x, residual], 1)
    product = torch.nn.functional.silu(x.double()) * residual.double()
    ours = kernels.swiglu_quantize(gate_up, *form)
    assert_almost(ours, kernels.hadamard_quantize(product.to(dtype), *form), packed)


def assert_almost(ours, exact, packed, flips=1e-3):
    """Computed in float64 instead of fp32, and rounded elsewhere: a fraction ``flips`` of the codes
    falls the other way."""
    ours_integers, integers = (integers_of(quantized, 16) for quantized in (ours, exact))
    difference = (ours_integers.int() - integers.int()).abs()
    assert difference.count_nonzero() <= 1 + flips * difference.numel()
    assert (difference <= 2).all()
    torch.testing.assert_close(ours.scales, exact.scales, rtol=flips, atol=0)


def test_unrotated_values_are_those_of_the_formula():
    """One row by hand: n = 4, α = 1, rms = 2, so s = 2 and the values are ±2/3 and ±2."""
    row = torch.tensor([2.0, -2.0, 2.0, -2.0] * 8)
    row[:4] = torch.tensor([3.0, -2.0, 1.0, math.sqrt(2)])
    ours = kernels.hadamard_quantize(row.unsqueeze(0), 4, 1.0, block=1, trust=1.2)
    assert ours.scales.item() == pytest.approx(2 / 3)
    assert ours.codes[0, :4].tolist() == [3, -3, 1, 3]
    assert unpack_bits(ours.mask, 1)[0, :4].tolist() == [0, 1, 1, 1]
    assert ours.sums.item() == ours.codes.sum()
