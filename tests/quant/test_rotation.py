"""Which operand is rotated how (trap 1), and which block a width gets."""

from __future__ import annotations

import logging

import pytest
import torch

from questtrain.config import QuantConfig, pair_rotations, parse_bits
from questtrain.errors import UserError
from questtrain.quant import QuantLinear
from questtrain.quant.rotation import build_rotation

STAY, BACK, NONE = "hadamard", "hadamard-back", "none"


@pytest.mark.parametrize(
    ("bits", "rotation", "weight", "activation", "resolved"),
    [
        # both quantized: the product stays rotated; one quantized: that one rotates back
        ("w4a4", STAY, "auto", "auto", (STAY, STAY)),
        ("w4a16", STAY, "auto", "auto", (BACK, NONE)),
        ("w16a4", STAY, "auto", "auto", (NONE, BACK)),
        ("w16a16", STAY, "auto", "auto", (NONE, NONE)),
        # without the Hadamard transform nothing rotates
        ("w4a4", NONE, "auto", "auto", (NONE, NONE)),
        ("w4a16", NONE, "auto", "auto", (NONE, NONE)),
        # one given: the other follows into the same space
        ("w4a4", STAY, "auto", NONE, (BACK, NONE)),
        ("w4a4", STAY, NONE, "auto", (NONE, BACK)),
        ("w4a4", STAY, BACK, "auto", (BACK, BACK)),
        ("w4a4", STAY, "auto", BACK, (BACK, BACK)),
        ("w4a16", STAY, STAY, "auto", (STAY, STAY)),
        ("w4a16", STAY, "auto", STAY, (STAY, STAY)),
        ("w4a4", NONE, STAY, "auto", (STAY, STAY)),
        ("w4a4", NONE, "auto", BACK, (NONE, BACK)),
    ],
)
def test_auto_resolves_to_one_space(
    bits: str, rotation: str, weight: str, activation: str, resolved: tuple[str, str]
) -> None:
    """``auto`` is the cheapest pair whose product is taken in one space."""
    quant = QuantConfig(rotation=rotation, weight_rotation=weight, activation_rotation=activation)
    assert pair_rotations(parse_bits(bits), quant) == resolved


@pytest.mark.parametrize(
    ("weight", "activation"), [(STAY, BACK), (STAY, NONE), (BACK, STAY), (NONE, STAY)]
)
@pytest.mark.parametrize("bits", ["w4a4", "w4a16", "w16a4"])
def test_a_rotated_against_an_unrotated_operand_is_refused(
    bits: str, weight: str, activation: str
) -> None:
    """Trap 1: such a pair is an error when the layer is made, and the message says what to do."""
    quant = QuantConfig(weight_rotation=weight, activation_rotation=activation)
    with pytest.raises(UserError, match="choose hadamard for both, or hadamard-back"):
        QuantLinear(128, 16, bits=bits, method=quant)


@pytest.mark.parametrize("bits", ["w2a16", "w16a2", "w4a4"])
def test_rotating_back_equals_rotating_the_partner(bits: str) -> None:
    """With one side unquantized, rotating that side too gives the same product and gradients."""
    torch.manual_seed(0)
    x, w = torch.randn(6, 256).double(), torch.randn(8, 256).double()
    results = []
    for rotation in (BACK, STAY):
        quant = QuantConfig(weight_rotation=rotation, activation_rotation=rotation)
        layer = QuantLinear(256, 8, bits=bits, method=quant, dtype=torch.float64)
        layer.weight.data.copy_(w)
        x_leaf = x.clone().requires_grad_()
        y = layer(x_leaf)
        y.square().sum().backward()
        results.append((y, x_leaf.grad, layer.weight.grad))
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("width", "block"), [(16, 16), (48, 16), (80, 16), (192, 64), (640, 128)])
def test_a_smaller_block_where_the_width_asks_for_it(width: int, block: int) -> None:
    """The block is the largest power of two up to 128 that divides the width."""
    assert build_rotation("hadamard", width, 128).signs.shape == (block, block)


def test_a_smaller_block_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """One warning for a width however many layers have it; none for a multiple of 128."""
    with caplog.at_level(logging.WARNING, "questtrain"):
        for width in (2064, 2064, 2048):  # 2064 = 129·16, used by no other test
            build_rotation("hadamard", width, 128)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["width 2064 is no multiple of 128: its Hadamard block is 16"]


@pytest.mark.parametrize(("width", "close"), [(8, 16), (15, 16), (24, 32), (100, 96), (129, 128)])
@pytest.mark.parametrize("bits", ["w4a4", "w4a16", "w16a4"])
def test_a_width_without_a_block_raises(width: int, close: int, bits: str) -> None:
    """Under a block of 16 the layer is refused with the nearest width, unless nothing rotates."""
    with pytest.raises(UserError, match=rf"width of {width} .*the nearest: {close}\)"):
        QuantLinear(width, 16, bits=bits)
    unrotated = QuantLinear(width, 16, bits=bits, method=QuantConfig(rotation="none"))
    assert unrotated(torch.ones(2, width)).shape == (2, 16)


def test_signs_survive_a_birth_on_the_meta_device() -> None:
    """A layer made on meta and then emptied onto a device rotates as any other: no checkpoint
    holds the signs, so they are made anew."""
    layer = QuantLinear(128, 8, device="meta").to_empty(device="cpu")
    usual = QuantLinear(128, 8)
    layer.load_state_dict(usual.state_dict())
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), usual(x))
    with torch.device("meta"):
        layer = QuantLinear(128, 8)
    layer.to_empty(device="cpu").load_state_dict(usual.state_dict())
    assert torch.equal(layer(x), usual(x))
