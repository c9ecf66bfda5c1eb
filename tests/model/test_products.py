"""A layer's product with cached codes is the layer's own, forward and backward."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from questtrain.config import QuantConfig
from questtrain.model.llama import Block, Llama
from questtrain.model.products import (
    DenseProduct,
    QuantizedProduct,
    stacked_product,
    step_format,
)
from questtrain.model.stacked_llama import StackedBlock
from questtrain.quant import QuantLinear
from questtrain.quant.method import method_config
from tests.model.family import small_model

BITS = ("w1a1", "w1.58a1.58", "w2a2", "w3a3", "w4a4", "w8a8", "w2a8", "w8a4")
METHODS = ("quest", "quest-noht", "clip", "ste")
BY_VALUES = ("bf16", "w2a16", "w4a16", "wfp4a16", "w16a4", "w16a8", "fp4", "w4s24a4", "wfp4a4")
ROWS, WIDTH, COLUMNS = 24, 256, 64


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layer_of(bits: str, method: str, seed: int = 1, **settings: Any) -> QuantLinear:
    quant = dataclasses.replace(method_config(method), **settings)
    layer = QuantLinear(WIDTH, COLUMNS, bits=bits, method=quant)
    with torch.no_grad():
        layer.weight.copy_(random(COLUMNS, WIDTH, seed=seed))
    return layer


def product_of(*layers: nn.Module) -> DenseProduct | QuantizedProduct:
    product = stacked_product(layers, torch.float32, "codes")
    assert product is not None
    product.refresh()
    return product


@pytest.mark.parametrize("bits", [*BITS, *BY_VALUES])
@pytest.mark.parametrize("method", METHODS)
def test_a_layer_by_what_is_derived_once(bits: str, method: str) -> None:
    """Values, and the gradients of input and weight, but for fp32's rounding."""
    layer = layer_of(bits, method)
    product = product_of(layer)
    assert isinstance(product, QuantizedProduct if bits in BITS else DenseProduct)
    assert_equal(layer, product)


@pytest.mark.parametrize("bits", ["w1a1", "w4a4", "w8a8", "w2a16", "fp4", "w4s24a4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("method", ["quest", "quest-noht"])
def test_scales_as_files_store_them(bits: str, dtype: str, method: str) -> None:
    """Rounded scales of rows are multiplied by the integer kernels where those of fp32 are; scales
    of groups as values."""
    rounded = layer_of(bits, method, scale_dtype=dtype)
    product = product_of(rounded)
    assert isinstance(product, QuantizedProduct if bits in BITS else DenseProduct)
    assert_equal(rounded, product)
    for group in (32, 128):
        grouped = layer_of(bits, method, scale_dtype=dtype, group_size=group)
        product = product_of(grouped)
        assert isinstance(product, DenseProduct)
        assert_equal(grouped, product)


def assert_equal(layer: QuantLinear, product: DenseProduct | QuantizedProduct) -> None:
    x, grad = random(ROWS, WIDTH, seed=2), random(ROWS, COLUMNS, seed=3)
    results = []
    for forward in (layer, product.plain):
        layer.zero_grad()
        fed = x.clone().requires_grad_()
        y = forward(fed)
        y.backward(grad)
        assert fed.grad is not None
        assert layer.weight.grad is not None
        results.append((y.detach(), fed.grad, layer.weight.grad.clone()))
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_layers_that_share_an_input_are_one_product() -> None:
    layers = [layer_of("w4a4", "quest", seed) for seed in (1, 2, 3)]
    x = random(ROWS, WIDTH)
    expected = torch.cat([layer(x) for layer in layers], dim=1)
    torch.testing.assert_close(product_of(*layers).plain(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"group_size": 32}, {"scale_dtype": "float16"}],
)
@pytest.mark.parametrize("bits", ["w4a4", "w4a16"])
def test_scales_that_differ_are_no_one_product(bits: str, settings: dict[str, Any]) -> None:
    layers = [layer_of(bits, "quest"), layer_of(bits, "quest", **settings)]
    assert stacked_product(layers, torch.float32, "codes") is None


@pytest.mark.parametrize(
    ("first", "second"),
    [("w4a4", "w4a8"), ("w4a4", "w2a4"), ("w4a4", "bf16"), ("fp4", "w4a4"), ("w4a16", "w2a16")],
)
def test_what_is_no_one_product(first: str, second: str) -> None:
    """Layers of different formats."""
    layers = [layer_of(bits, "quest") for bits in (first, second)]
    assert stacked_product(layers, torch.float32, "codes") is None


@pytest.mark.parametrize(("width", "columns"), [(80, 64), (64, 20)])
@pytest.mark.parametrize("bits", ["bf16", "w4a4"])
def test_sizes_that_the_kernels_do_not_take(bits: str, width: int, columns: int) -> None:
    assert stacked_product([QuantLinear(width, columns, bits=bits)], torch.float32, "codes") is None


@pytest.mark.parametrize("method", ["lsq", "lsq-plus", "pact"])
def test_layers_with_scales_of_their_own_are_no_one_product(method: str) -> None:
    assert stacked_product([layer_of("w4a4", method)], torch.float32, "codes") is None


def test_a_bias_is_no_part_of_it() -> None:
    """The block adds those of Q, K and V; with any other there is no stacked block."""
    layer = QuantLinear(WIDTH, COLUMNS, bias=True)
    x = random(ROWS, WIDTH)
    actual = product_of(layer).plain(x) + layer.bias
    torch.testing.assert_close(actual, layer(x), rtol=1e-4, atol=1e-4)
    model = Llama(small_model(qkv_bias=True), "w4a4", QuantConfig())
    block, of = model.layers[0], partial(stacked_product, dtype=torch.float32, save="codes")
    assert isinstance(block, Block)
    assert StackedBlock.of(block, of) is not None
    block.attention.o_proj.bias = nn.Parameter(torch.ones(128))
    assert StackedBlock.of(block, of) is None


def test_trust_by_error_has_no_kernel() -> None:
    layer = QuantLinear(WIDTH, COLUMNS, bits="w4s24a4")
    assert step_format(layer.weight_quantizer) is None
