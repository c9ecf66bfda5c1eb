"""Layers that are no nn.Linear: GPT-2's Conv1D is converted, every other one is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import questtrain
from questtrain.quant import QuantConv1D, QuantLinear, convert
from tests.quant.operands import gaussian


class Conv1D(nn.Module):
    """As in transformers.pytorch_utils."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.02)
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.shape[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


def gpt2() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {"c_attn": Conv1D(192, 64), "c_proj": Conv1D(64, 192), "lm_head": nn.Linear(64, 100)}
    )


@pytest.mark.parametrize(
    ("bits", "method"),
    [("w4a4", "quest"), ("w2a16", "quest"), ("w4s24a4", "quest"), ("fp4", "pact"), ("w3a3", "lsq")],
)
def test_conv1d_is_the_transposed_linear(bits: str, method: str) -> None:
    """Same outputs and gradients as a QuantLinear of the transposed weight, same Parameters."""
    model, x = gpt2(), gaussian(6, 64).requires_grad_()
    layer = model["c_attn"]
    before = dict(model.named_parameters())
    convert(model, bits, method)
    assert type(layer) is QuantConv1D
    assert all(before[name] is dict(model.named_parameters())[name] for name in before)
    linear = QuantLinear(64, 192, bias=True, bits=bits, method=method)
    with torch.no_grad():
        linear.weight.copy_(layer.weight.t())
        linear.bias.copy_(layer.bias)
    expected, y = linear(x), layer(x)
    torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, linear.weight.grad.t(), rtol=1e-4, atol=1e-4)


def test_conv1d_is_packed() -> None:
    """Into the same layer as a linear one; the model keeps its own weights."""
    model = nn.Sequential(Conv1D(192, 64), nn.GELU(), Conv1D(64, 192))
    convert(model, "w4a4")
    x = gaussian(5, 64)
    packed = questtrain.pack(model)
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(part, QuantConv1D) for part in packed.modules())
    assert model[0].weight.shape == (64, 192)
    assert repr(model[0]).startswith("QuantConv1D(\n  in_features=64, out_features=192, bits=w4a4")


class Experts(nn.Module):
    """The experts of a mixture, as transformers 5 keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 32, 64))
        self.down_proj = nn.Parameter(torch.randn(4, 32, 32))


class ColumnParallelLinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))


class WQLinear(nn.Module):
    """Integer codes in buffers, as AWQ and GPTQ have them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


class Linear4bit(nn.Linear):
    """As in bitsandbytes."""


class CodedWeight(Tensor):
    """As in torchao: a subclass of Tensor in an ordinary nn.Linear."""


def with_weight(weight: Tensor) -> nn.Linear:
    linear = nn.Linear(32, 32)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "attention": (lambda: nn.MultiheadAttention(32, 2), r"nn\.MultiheadAttention multiplies"),
    "bilinear": (lambda: nn.Bilinear(32, 32, 8), r"nn\.Bilinear .*\(weight \[8, 32, 32\]\)"),
    "lstm": (lambda: nn.LSTM(32, 32), r"nn\.LSTM .*weight_ih_l0 \[128, 32\]"),
    "gru cell": (lambda: nn.GRUCell(32, 32), r"nn\.GRUCell .*weight_ih"),
    "lazy": (lambda: nn.LazyLinear(32), r"nn\.LazyLinear has no weight yet"),
    "experts": (Experts, r"tests\.Experts .*gate_up_proj \[4, 32, 64\], down_proj \[4, 32, 32\]"),
    "megatron": (ColumnParallelLinear, r"tests\.ColumnParallelLinear .*weight \[32, 32\]"),
    "awq": (WQLinear, r"tests\.WQLinear is a linear layer of another library"),
    "bitsandbytes": (lambda: Linear4bit(32, 32), r"tests\.Linear4bit is a kind of nn\.Linear"),
    "torchao": (
        lambda: with_weight(torch.randn(32, 32).as_subclass(CodedWeight)),
        "its weight is a CodedWeight",
    ),
    "fp8": (lambda: with_weight(torch.zeros(32, 32).to(torch.float8_e4m3fn)), "float8_e4m3fn"),
    "int8": (lambda: with_weight(torch.zeros(32, 32, dtype=torch.int8)), r"torch\.int8"),
    "packed": (lambda: with_weight(torch.zeros(512)), r"its weight is \[512\] instead of"),
}


@pytest.mark.parametrize("kind", LEFT)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_converted_is_named(kind: str) -> None:
    """In one warning, with its reason and all its places; naming it in ``skip`` silences that."""
    make, reason = LEFT[kind]
    model = nn.ModuleDict({"first": make(), "up": nn.Linear(32, 32), "second": make()})
    with pytest.warns(UserWarning, match=f"first, second: .*{reason}") as heard:
        convert(model)
    assert len(heard) == 1
    assert heard[0].filename == __file__
    assert [name for name, part in model.named_modules() if type(part) is QuantLinear] == ["up"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert(model, skip=["first", "second"])


class Positions(nn.Module):
    """A vision model's: a token, positions that are added, a projection of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 32))
        self.positions = nn.Parameter(torch.zeros(1, 17, 32))
        self.patches = nn.Conv2d(3, 32, 4)
        self.words = nn.Embedding(10, 32)
        self.norm = nn.LayerNorm((4, 32))
        self.up = nn.Linear(32, 32)


def test_what_is_no_linear_layer_is_not_named() -> None:
    """Embeddings, convolutions, norms and what is added: nobody expects them converted."""
    convert(Positions())  # warnings are errors in tests


def test_a_parameter_of_a_model_can_be_named_in_skip() -> None:
    """A matrix that is no layer: its name silences the warning as a layer's does."""
    model = Positions()
    model.proj = nn.Parameter(torch.zeros(32, 16))
    with pytest.warns(UserWarning, match=r"tests\.Positions .*\(proj \[32, 16\]\)"):
        convert(model)
    convert(model, skip=["proj"])


def test_wrappers_around_linears_are_not_named() -> None:
    """LoRA's layer is called Linear and has its width; what it holds is converted."""

    class LoraLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.in_features = 64
            self.base_layer, self.lora_A = nn.Linear(64, 32), nn.Linear(64, 16)

    model = convert(nn.Sequential(LoraLinear()), skip=["*.lora_*"])
    assert type(model[0].base_layer) is QuantLinear
    assert type(model[0].lora_A) is nn.Linear
