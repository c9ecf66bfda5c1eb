"""`convert` on models that are not ours."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

import questtrain
from questtrain.errors import UserError
from questtrain.quant import QuantLinear, convert


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            up=nn.Linear(32, 64),
            act=nn.GELU(),
            inner=nn.Sequential(nn.Linear(64, 64, bias=False), nn.Dropout(0.0)),
            lm_head=nn.Linear(64, 10),
        )
    )


def quantized_names(model: nn.Module) -> set[str]:
    return {name for name, child in model.named_modules() if isinstance(child, QuantLinear)}


def test_keeps_parameters_and_structure() -> None:
    """Converted in place: the same Parameter objects, names, device, mode; lm_head is left."""
    model = mlp().eval()
    before = dict(model.named_parameters())
    assert questtrain.convert(model, bits="w2a16") is model
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert quantized_names(model) == {"up", "inner.0"}
    assert all(not child.training for child in model.modules())
    assert str(model.up.bits) == "w2a16"


@pytest.mark.parametrize(
    ("skip", "quantized"),
    [
        ((), {"up", "inner.0", "lm_head"}),
        (("inner.*",), {"up", "lm_head"}),
        (("lm_head", "up"), {"inner.0"}),
        (("inner",), {"up", "lm_head"}),
        ("lm_head", {"up", "inner.0"}),
    ],
)
def test_skip_patterns(skip: tuple[str, ...] | str, quantized: set[str]) -> None:
    """``skip`` holds shell-style patterns of dotted names; a container stands for all in it."""
    assert quantized_names(convert(mlp(), skip=skip)) == quantized


@pytest.mark.parametrize(
    ("bits", "method"),
    [
        ("w4a4", "quest"),
        ("fp4", "quest"),
        ("w4s24a4", "clip"),
        ("w3a3", "ste"),
        ("w4a4", "lsq"),
        ("w4a4", "lsq-plus"),
        ("w4a4", "pact"),
    ],
)
def test_a_training_step_works_with_an_optimizer_made_before(bits: str, method: str) -> None:
    """The optimizer that held the weights still does: the loss falls, whatever the method."""
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    convert(model, bits, method)
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), torch.arange(64) % 10)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_a_single_linear_is_converted() -> None:
    """A root that is a linear itself changes in place too; a second time there is nothing to do,
    and nothing else can be done."""
    linear = nn.Linear(32, 16)
    weight = linear.weight
    assert convert(linear, "w4a4") is linear
    assert isinstance(linear, QuantLinear)
    assert linear.weight is weight
    assert convert(linear, "w4a4") is linear
    with pytest.raises(UserError, match="Linear: quantized already, to other bits than w2a2"):
        convert(linear, "w2a2")
    assert str(linear.bits) == "w4a4"


def test_a_shared_layer_stays_shared_and_is_converted_everywhere() -> None:
    """One Linear in two places becomes one QuantLinear in both."""
    model = mlp()
    model.again = model.inner
    model.twice = model.up
    convert(model)
    assert isinstance(model.up, QuantLinear)
    assert model.twice is model.up
    assert isinstance(model.again[0], QuantLinear)


def test_transformer_encoder_layer_is_quantized_in_inference_too() -> None:
    """PyTorch's fused inference path would bypass the layers: it gives way. Subclasses of Linear
    (attention's out_proj) are left, since their parents read the weights."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 128, dropout=0.0, batch_first=True).double()
    x = torch.randn(2, 5, 64).double()
    dense = layer(x)
    # float64, and a grid with a level at zero: LayerNorm makes the rotated rows' first entry zero
    # up to rounding, which is a tie on an even grid
    with pytest.warns(UserWarning, match=r"self_attn: nn\.MultiheadAttention"):
        convert(layer, "w1.58a1.58")
    assert quantized_names(layer) == {"linear1", "linear2"}
    trained = layer(x)
    trained.square().mean().backward()
    assert layer.linear1.weight.grad is not None
    with torch.inference_mode():
        inferred = layer.eval()(x)
    torch.testing.assert_close(inferred, trained)
    assert not torch.allclose(inferred, dense, atol=1e-2)


def test_dtype_follows_the_model() -> None:
    """A bf16 model stays one, and its rotation still computes in fp32."""
    model = convert(mlp().bfloat16())
    y = model(torch.randn(3, 32).bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.isfinite().all()


def test_widths_without_a_block_name_the_problem() -> None:
    """A model with a width of 20 is refused with advice."""
    with pytest.raises(UserError, match="multiple of 16"):
        convert(nn.Sequential(nn.Linear(20, 20)))
