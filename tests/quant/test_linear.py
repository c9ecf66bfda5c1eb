"""`QuantLinear` as an `nn.Linear`: state, freezing, autocast, compilation, names of methods."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import questtrain
from questtrain.config import QuantConfig
from questtrain.errors import UserError
from questtrain.quant import QuantLinear

# torch 2.13's own tracing of autograd functions raises it
COMPILE_WARNING = "ignore:.*should not be instantiated:DeprecationWarning"
BITS = ("w4a4", "w1a1", "w1.58a8", "w2a16", "w16a4", "fp4", "w4s24a4", "bf16")


def run(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients of x and of the weight."""
    layer.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    assert x.grad is not None
    assert isinstance(layer.weight, nn.Parameter)
    assert layer.weight.grad is not None
    return y.detach(), x.grad, layer.weight.grad.clone()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 7, 128, generator=torch.Generator().manual_seed(0))


def test_is_the_public_face() -> None:
    """`questtrain.QuantLinear` is this class, and it is an nn.Linear with the promised defaults."""
    assert questtrain.QuantLinear is QuantLinear
    layer = QuantLinear(128, 64)
    assert isinstance(layer, nn.Linear)
    assert (str(layer.bits), layer.bias) == ("w4a4", None)
    assert "bits=w4a4" in repr(layer)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bias", [False, True])
def test_state_is_that_of_nn_linear(bits: str, bias: bool) -> None:
    """The state_dict has the keys of nn.Linear and loads both ways."""
    layer = QuantLinear(128, 64, bias=bias, bits=bits)
    plain = nn.Linear(128, 64, bias=bias)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    layer.load_state_dict(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"][: 1 + bias]


def test_sixteen_bits_are_nn_linear(x: Tensor) -> None:
    """Unquantized, it is nn.Linear bit for bit, with bias and gradients."""
    layer = QuantLinear(128, 64, bias=True, bits="bf16")
    plain = nn.Linear(128, 64)
    plain.load_state_dict(layer.state_dict())
    for ours, theirs in zip(run(layer, x), run(plain, x), strict=True):
        assert torch.equal(ours, theirs)


def test_the_bias_is_added_unquantized(x: Tensor) -> None:
    """A bias shifts the output by exactly itself and gets the plain gradient."""
    layer = QuantLinear(128, 64, bias=True, bits="w2a2", dtype=torch.float64)
    without = copy.deepcopy(layer)
    without.bias = None
    y = layer(x.double())
    torch.testing.assert_close(y - without(x.double()), layer.bias.expand_as(y))
    y.sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((64,), 21.0, dtype=torch.float64))


@pytest.mark.parametrize("rotation", ["auto", "hadamard", "hadamard-back", "none"])
@pytest.mark.parametrize("bits", BITS)
def test_freezing_keeps_the_outputs(bits: str, rotation: str, x: Tensor) -> None:
    """After freeze_weight the fp32 outputs are the same bits and the weight is on its grid."""
    quant = QuantConfig(weight_rotation=rotation, activation_rotation=rotation)
    layer = QuantLinear(128, 64, bias=True, bits=bits, method=quant)
    before = layer(x)
    original = layer.weight.detach().clone()
    layer.freeze_weight()
    assert torch.equal(layer(x), before)
    layer.freeze_weight()
    assert torch.equal(layer(x), before)
    touched = layer.bits.weight.quantized or rotation == "hadamard"
    assert torch.equal(layer.weight, original) is not touched


@pytest.mark.parametrize("bits", BITS)
def test_bf16_autocast(bits: str, x: Tensor) -> None:
    """Under autocast the product is in bf16 and nothing else: within bf16's rounding of the fp32
    result, from fp32 scales and codes, with fp32 gradients for fp32 leaves."""
    layer = QuantLinear(128, 64, bits=bits)
    exact = run(layer, x)

    class Autocast(nn.Module):
        weight = layer.weight

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y: Tensor = layer(x)
            assert y.dtype == torch.bfloat16
            return y

    layer.zero_grad()
    for name, ours, reference in zip("yxw", run(Autocast(), x), exact, strict=True):
        assert name == "y" or ours.dtype == torch.float32
        # each bf16 operand is off by 2^-9 of itself on average, the sum of 64 or 128 by less
        assert (ours - reference).norm() < 2**-7 * reference.norm()


@pytest.mark.filterwarnings(COMPILE_WARNING)
@pytest.mark.parametrize("bits", BITS)
def test_compiles_to_one_graph_with_the_same_results(bits: str, x: Tensor) -> None:
    """torch.compile takes forward and backward without a graph break; same bits come out."""
    layer = QuantLinear(128, 64, bits=bits)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for ours, eager in zip(run(compiled, x), run(layer, x), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings(COMPILE_WARNING)
def test_compiles_under_autocast(x: Tensor) -> None:
    """The rotation's switch for autocast is traceable too."""
    layer = QuantLinear(128, 64)
    torch.compiler.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        y, eager = compiled(x), layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, eager)


def test_backward_uses_the_quantized_operands(x: Tensor) -> None:
    """grad_x of a frozen layer, whose weight *is* the quantized one, is the same bits."""
    layer = QuantLinear(128, 64)
    frozen = copy.deepcopy(layer)
    frozen.freeze_weight()
    assert torch.equal(run(layer, x)[1], run(frozen, x)[1])


def test_infinite_trust_is_straight_through(x: Tensor) -> None:
    """t = ∞ passes every gradient: the one of the dense layer with the quantized weight."""
    layer = QuantLinear(128, 64, method=QuantConfig(trust_scale=math.inf), dtype=torch.float64)
    _, grad_x, _ = run(layer, x.double())
    g = torch.linspace(-1, 1, 64).double()
    dense = g @ layer.weight_quantizer.rotation(layer.weight_quantizer(layer.weight))
    torch.testing.assert_close(grad_x, dense.expand_as(grad_x))


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_device_and_dtype_arguments(device: str) -> None:
    """As in nn.Linear: nothing is allocated on meta, and the dtype is the weight's."""
    layer = QuantLinear(128, 64, device=device, dtype=torch.bfloat16)
    assert (layer.weight.device.type, layer.weight.dtype) == (device, torch.bfloat16)


@pytest.mark.parametrize(
    ("wrong", "close"), [("qest", "quest"), ("lsqplus", "lsq-plus"), ("quest-no-ht", "quest-noht")]
)
def test_unknown_method_names_the_nearest(wrong: str, close: str) -> None:
    """A misspelt method is answered with the list of methods and the nearest."""
    with pytest.raises(UserError, match=rf"unknown method '{wrong}'.*Did you mean '{close}'\?"):
        QuantLinear(128, 64, method=wrong)


@pytest.mark.parametrize(
    ("bits", "method", "names"),
    [
        ("w4s24a4", "lsq", "w4s24a4"),
        ("w1a4", QuantConfig(grid="int"), "w1a4"),
        ("w4a4", QuantConfig(scale="learned"), "'learned'"),
        ("w4a4", QuantConfig(hadamard_block=8), "quant.hadamard_block=8"),
    ],
)
def test_what_cannot_be_composed_is_refused(
    bits: str, method: str | QuantConfig, names: str
) -> None:
    """The layer knows the rules of the config, for use without one."""
    with pytest.raises(UserError, match=names):
        QuantLinear(128, 64, bits=bits, method=method)
