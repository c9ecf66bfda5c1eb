"""Packed layers are the trained ones: the same codes, the same outputs, fewer bytes."""

import copy

import pytest
import torch
from torch import nn

from questtrain.errors import UserError
from questtrain.quant import PackedLinear, PackedWeightLinear, QuantLinear, pack_linear

INTEGER = ["w1a1", "w1.58a1.58", "w2a2", "w3a3", "w4a4", "w5a5", "w6a6", "w7a7", "w8a8"]
INTEGER += ["w2a4", "w4a8", "w8a4", "w4s24a4", "w4s24a8"]
VALUES = ["w4a16", "w1a16", "fp4", "w8a16", "w8s24a8", "w4s24a16", "wfp4a4"]


def layer(bits, method="quest", width=256, outputs=48, bias=True):
    torch.manual_seed(0)
    linear = QuantLinear(width, outputs, bias, bits, method)
    linear(torch.randn(4, width))  # learned scales start from what they see
    return linear.requires_grad_(False)


@pytest.mark.parametrize("bits", INTEGER)
@pytest.mark.parametrize("method", ["quest", "quest-noht"])
def test_integer_products_equal_the_layer(bits, method):
    """Up to fp32's rounding of the sums; the codes and scales themselves are equal."""
    linear = layer(bits, method)
    packed = pack_linear(linear)
    assert isinstance(packed, PackedLinear)
    values = packed.weight.integers() * packed.weight.scales.unsqueeze(-1)
    assert torch.equal(values, linear.weight_quantizer(linear.weight))
    of_codes = packed.weight.codes if bits.startswith("w8") else packed.weight.integers()
    assert torch.equal(packed.weight.sums, of_codes.sum(-1, dtype=torch.int32))
    x = torch.randn(3, 70, 256)
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-4, atol=1e-5)
    assert packed(x[0, 0]).shape == (48,)
    assert packed(x[:0]).shape == (0, 70, 48)


@pytest.mark.parametrize(
    ("bits", "method"),
    [*((bits, "quest") for bits in VALUES), ("w4a4", "lsq"), ("w4a4", "pact")],
)
def test_other_formats_give_the_same_values(bits, method):
    linear = layer(bits, method)
    packed = pack_linear(linear)
    assert isinstance(packed, PackedWeightLinear)
    x = torch.randn(5, 256)
    # A CPU's library rotates x where the layer rotates the weight back, and sums in another order.
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)


def test_odd_shapes_do_without_the_kernels():
    for width, outputs in ((48, 16), (64, 10)):
        linear = layer("w4a4", width=width, outputs=outputs)
        packed = pack_linear(linear)
        assert isinstance(packed, PackedWeightLinear)
        x = torch.randn(2, width)
        assert torch.equal(packed(x), linear(x))


def test_casting_a_model_keeps_the_scales():
    for bits in ("w4a4", "w4a16"):
        packed = pack_linear(layer(bits))
        scales = packed.weight.scales.clone()
        assert torch.equal(packed.to(torch.bfloat16).weight.scales, scales)
        assert packed(torch.randn(2, 256, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_the_packed_layer_is_its_own():
    """Training on does not change it, and its state returns from a state dict."""
    linear = layer("w4a4", "lsq")
    packed, x = pack_linear(linear), torch.randn(2, 256)
    before = packed(x)
    for tensor in (linear.weight, linear.bias, linear.activation_quantizer.scale.value):
        tensor.add_(1)
    assert torch.equal(packed(x), before)
    other = pack_linear(layer("w4a4", "lsq"))
    other.weight.codes.zero_()
    other.load_state_dict(copy.deepcopy(packed.state_dict()))
    assert torch.equal(other(x), before)


def test_what_cannot_be_packed_says_why():
    with pytest.raises(UserError, match=r"mlp\.up.*16-bit weight"):
        pack_linear(layer("w16a4"), "mlp.up")
    frozen = layer("w4a4")
    frozen.freeze_weight()
    with pytest.raises(UserError, match="before its weights are frozen"):
        pack_linear(frozen)


def test_a_packed_layer_compiles_whole():
    packed: nn.Module = pack_linear(layer("w4a4"))
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 256)
    assert torch.equal(compiled(x), packed(x))
