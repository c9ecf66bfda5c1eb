"""Codes: what packing stores is what the forward computes with, for every method and format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from questtrain.quant.quantizer import Quantizer
from tests.quant.combinations import COMBINATIONS, VARIANTS, Combination
from tests.quant.operands import gaussian

WIDTH, OUTPUTS = 256, 12


def operands(combination: Combination, dtype: torch.dtype) -> list[tuple[Quantizer, Tensor]]:
    """The quantizers of a layer, each with an operand that it has met."""
    layer = combination.layer(WIDTH, OUTPUTS, dtype)
    x = gaussian(2, 30, WIDTH, dtype=dtype)
    x[1] = 3 * x[1] ** 3
    layer(x)
    pairs: list[tuple[nn.Module, Tensor]] = [
        (layer.weight_quantizer, layer.weight.detach()),
        (layer.activation_quantizer, x),
    ]
    return [(quantizer, x) for quantizer, x in pairs if isinstance(quantizer, Quantizer)]


@pytest.mark.parametrize("combination", COMBINATIONS + VARIANTS, ids=str)
def test_the_forward_is_the_stored_values(combination: Combination) -> None:
    """In fp32, forward(x) is dequantize(quantize(x)) bit for bit, up to rotating back; bf16 rounds
    the same values once."""
    for dtype in (torch.float32, torch.bfloat16):
        for quantizer, x in operands(combination, dtype):
            stored = quantizer.quantize(x)
            values = quantizer.dequantize(stored)
            assert values.dtype == torch.float32
            if quantizer.rotate_back:
                values = quantizer.rotation(values)
            assert torch.equal(quantizer(x), values.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_stored_values_encode_to_their_own_codes(
    combination: Combination, dtype: torch.dtype
) -> None:
    """At the same scale and offset decoded codes encode to themselves; pruned values are zero."""
    for quantizer, x in operands(combination, dtype):
        stored = quantizer.quantize(x)
        values = quantizer.dequantize(stored)
        centred = values if stored.offset is None else values - stored.offset
        again = quantizer.grid.encode(centred, stored.scale).to(torch.uint8)
        if stored.kept is None:
            assert torch.equal(again, stored.codes)
        else:
            assert torch.equal(again[stored.kept], stored.codes[stored.kept])
            assert not values[~stored.kept].any()
            assert (~stored.kept).double().mean() == 0.5


@pytest.mark.parametrize("combination", COMBINATIONS, ids=str)
def test_what_is_stored(combination: Combination) -> None:
    """uint8 codes of the operand's shape below the number of levels, a scale a row (the same in
    all rows where it is learned), an offset where it is learned, and which values are kept."""
    recipes = [recipe for recipe in combination.recipes() if recipe.label != "16"]
    quantized = operands(combination, torch.float32)
    for (quantizer, x), recipe in zip(quantized, recipes, strict=True):
        stored = quantizer.quantize(x)
        assert (stored.codes.shape, stored.codes.dtype) == (x.shape, torch.uint8)
        assert int(stored.codes.max()) < len(recipe.levels)
        assert stored.scale.shape == (*x.shape[:-1], 1)
        assert (stored.scale.unique().numel() == 1) == (recipe.learned is not None)
        assert (stored.offset is not None) == recipe.offset
        assert (stored.kept is not None) == recipe.sparse
        assert not any(part.requires_grad for part in stored if part is not None)
