"""Scales as files store them: rounded to 16 bits, and of groups of columns."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import questtrain
from questtrain.errors import UserError
from questtrain.quant import PackedLinear, PackedWeightLinear, QuantLinear, pack_linear
from questtrain.quant.method import method_config
from questtrain.quant.quantizer import Quantizer
from questtrain.quant.scale import GaussianScale, RoundedScale
from tests.quant.operands import DENSE, FORMATS, ROTATIONS, WIDTH, Format, gaussian, make, mask_of

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SMALLEST_FP16 = 2.0**-24


def units_of(quantizer: Quantizer, x: Tensor) -> Tensor:
    """Half a step of each grid, as it is read off the half-widths that are stored."""
    return quantizer.quantize(x).scale / (2 * quantizer.grid.half_width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_as", DENSE, ids=str)
def test_values_are_whole_multiples_of_a_stored_unit(stored_as: Format, dtype: str) -> None:
    """Half a step is a 16-bit number, the nearest to the one of α·rms, and each value is it times a
    whole number exactly in fp32: what a runtime multiplies. A step, two units, is such a number,
    too."""
    quantizer = stored_as.quantizer(scale_dtype=dtype)
    x = 0.02 * gaussian(200, WIDTH)
    units = units_of(quantizer, x)
    assert torch.equal(units.to(DTYPES[dtype]).float(), units)
    assert torch.equal((2 * units).to(DTYPES[dtype]).float(), 2 * units)
    unrounded = units_of(stored_as.quantizer(), x)
    assert torch.equal(units, unrounded.to(DTYPES[dtype]).float())
    integers = (quantizer(x) / units).round()
    assert integers.abs().max() == 2 * quantizer.grid.half_width
    assert torch.equal(integers * units, quantizer(x))


def test_fp16_rounds_as_numpy_does() -> None:
    """Down through the numbers that lose digits; what would be 0 is the smallest number instead."""
    scale = RoundedScale(GaussianScale(1.0), 7.5, torch.float16)
    x = torch.logspace(-12, 3, 400, dtype=torch.float64).float().unsqueeze(1)
    unit = x.numpy() / np.float32(15)
    expected = np.maximum(unit.astype(np.float16).astype(np.float32), SMALLEST_FP16)
    assert np.array_equal(scale(x).numpy() / 15, expected)
    assert (expected == SMALLEST_FP16).any()
    assert (np.unique(expected) < 6.1e-5).sum() > 50


@pytest.mark.parametrize("rotation", ["none", "hadamard-back"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_rows_at_the_edge_of_fp16(stored_as: Format, dtype: str, rotation: str) -> None:
    """All zero, and too small or too large for a unit of fp16: values are finite, and no larger
    than the grid reaches. A NaN or an infinity shows in its row and in no other."""
    quantizer = stored_as.quantizer(rotation, scale_dtype=dtype)
    x = gaussian(6, WIDTH) * torch.tensor([0, 1e-12, 1e-7, 1e9, 1, 1]).unsqueeze(1)
    values = quantizer(x)
    assert values.isfinite().all()
    reach = 1.01 * quantizer.quantize(x).scale * WIDTH**0.5
    assert (values.abs() <= reach).all()
    if dtype == "float16":
        assert units_of(quantizer, x)[0] == SMALLEST_FP16
        assert units_of(quantizer, x)[3] == 65504
    for strange in (float("nan"), float("inf")):
        x[4, 3] = strange
        assert not quantizer(x)[4].isfinite().all()
        assert quantizer(x)[[0, 1, 2, 3, 5]].isfinite().all()
        assert quantizer.quantize(x).scale[4].isnan()


@pytest.mark.parametrize("group", [16, 32, 128, 256])
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_a_group_is_a_row_of_its_own(stored_as: Format, group: int) -> None:
    """Values, mask, codes, scales and what is kept: those of the group by itself."""
    for settings in ({}, {"scale_dtype": "float16"}):
        grouped = stored_as.quantizer("none", group_size=group, **settings)
        alone = stored_as.quantizer("none", **settings)
        x = gaussian(3, WIDTH) * torch.logspace(-2, 2, WIDTH)
        groups = x.reshape(-1, group)
        assert torch.equal(grouped(x).reshape(-1, group), alone(groups))
        assert torch.equal(grouped.mask(x).reshape(-1, group), alone.mask(groups))
        ours, theirs = grouped.quantize(x), alone.quantize(groups)
        assert torch.equal(ours.codes.reshape(-1, group), theirs.codes)
        assert torch.equal(ours.scale, theirs.scale.reshape(3, WIDTH // group))
        if ours.kept is not None:
            assert theirs.kept is not None
            assert torch.equal(ours.kept.reshape(-1, group), theirs.kept)


@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_groups_lie_in_the_rotated_space(stored_as: Format) -> None:
    """The rotation goes over all of a row first; rotated back, the values are those rotated."""
    x = gaussian(5, WIDTH)
    stays = stored_as.quantizer("hadamard", group_size=32)
    unrotated = stored_as.quantizer("none", group_size=32, trust_scale=None)
    assert torch.equal(stays(x), unrotated(stays.rotation(x)))
    back = stored_as.quantizer("hadamard-back", group_size=32)
    assert torch.equal(back(x), back.rotation(stays(x)))
    assert torch.equal(back.mask(x), stays.mask(x))


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize("stored_as", FORMATS, ids=str)
def test_values_and_mask_at_once(stored_as: Format, rotation: str) -> None:
    """Those of the two calls, bit for bit."""
    for settings in ({}, {"group_size": 64, "scale_dtype": "bfloat16"}):
        quantizer, x = stored_as.quantizer(rotation, **settings), gaussian(3, WIDTH)
        values, mask = quantizer.values_and_mask(x)
        assert torch.equal(values, quantizer(x))
        assert torch.equal(mask, quantizer.mask(x))


def test_a_group_of_all_columns_is_a_row() -> None:
    x = gaussian(5, WIDTH)
    assert torch.equal(make("4", group_size=WIDTH)(x), make("4")(x))
    assert mask_of(make("4"), x).shape == x.shape


def test_nan_stays_in_its_group() -> None:
    quantizer = make("4", "none", group_size=64)
    x = gaussian(2, WIDTH)
    clean = quantizer(x)
    x[1, 70] = float("nan")
    assert quantizer(x)[1, 64:128].isnan().all()
    stored = quantizer.quantize(x)
    assert torch.equal(stored.scale.isnan().nonzero(), torch.tensor([[1, 1]]))
    x[1, 64:128] = clean[1, 64:128]
    assert torch.equal(quantizer.dequantize(stored)[0], clean[0])


def layer_of(bits: str, width: int = WIDTH, outputs: int = 48, **settings: Any) -> QuantLinear:
    quant = dataclasses.replace(method_config("quest"), **settings)
    layer = QuantLinear(width, outputs, bits=bits, method=quant).requires_grad_(False)
    layer.weight.copy_(0.02 * gaussian(outputs, width, seed=1))
    return layer


def test_activations_keep_their_scales() -> None:
    """Rows, in fp32: nobody stores them."""
    quantizer = layer_of("w4a4", group_size=32, scale_dtype="float16").activation_quantizer
    assert isinstance(quantizer, Quantizer)
    assert type(quantizer.scale) is GaussianScale
    assert quantizer.group is None


@pytest.mark.parametrize("group", [None, 32])
@pytest.mark.parametrize("dtype", ["float32", *DTYPES])
@pytest.mark.parametrize("bits", ["w4a4", "w2a16", "w8a8", "wfp4afp4", "w4s24a4", "w1.58a16"])
def test_packed_layers_hold_scales_as_files_do(bits: str, dtype: str, group: int | None) -> None:
    """Groups are multiplied as values, and equal bit for bit; a unit of 16 bits takes 2 bytes; rows
    of rounded scales are integers to the kernels, whose scales are the units."""
    layer = layer_of(bits, group_size=group, scale_dtype=dtype)
    packed, x = pack_linear(layer), gaussian(5, WIDTH)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-4, atol=1e-5)
    scales = packed.weight.scales
    if isinstance(packed, PackedLinear):
        assert group is None
        assert dtype == "float32" or torch.equal(scales.to(DTYPES[dtype]).float(), scales)
        return
    assert isinstance(packed, PackedWeightLinear)
    assert scales.dtype == DTYPES.get(dtype, torch.float32)
    assert scales.shape == (48, 1 if group is None else WIDTH // group)
    assert torch.equal(packed.to(torch.bfloat16).weight.scales, scales)
    values = packed.weight.values()
    if packed.back is not None:
        values = packed.back(values)
    assert torch.equal(values, layer.weight_quantizer(layer.weight))
    if group is not None:
        assert torch.equal(packed(x), layer(x))


def test_widths_that_groups_do_not_divide() -> None:
    """The message has the width, the size and those that fit; `convert` names the layer."""
    with pytest.raises(UserError, match=r"160 .* groups of 64 .*group_size=16, 32, null"):
        layer_of("w4a16", width=160, group_size=64, rotation="none")
    quant = dataclasses.replace(method_config("quest-noht"), group_size=32)
    model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 64))
    with pytest.raises(UserError, match=r"^1: a width of 40 does not divide into groups of 32"):
        questtrain.convert(model, bits="w4a16", method=quant)
    assert type(model[0]) is nn.Linear
