"""The whole `QuantLinear`, forward and both gradients, against quest.md in float64 numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from questtrain.config import QuantConfig
from questtrain.quant import QuantLinear
from questtrain.quant.quantizer import Quantizer
from tests.quant.quest_reference import ALPHA, Array, Operand, quantized, rows, unquantized

WIDTH, OUTPUTS = 256, 20
KINDS = ("gaussian", "heavy-tailed", "constant", "zero", "outlier")

# Error bounds: unit roundoff times how many roundings meet, relative to the terms' magnitudes.
COMPUTED = {  # a product and up to two rotations accumulate K terms each; in fp32 for bf16
    torch.float64: 3 * WIDTH * 2.0**-53,
    torch.float32: 3 * WIDTH * 2.0**-24,
    torch.bfloat16: 3 * WIDTH * 2.0**-24,
}
STORED = {  # bf16 rounds both operands, the product and the gradient once each
    torch.float64: 0.0,
    torch.float32: 0.0,
    torch.bfloat16: 4 * 2.0**-8,
}
# A row's grid is computed in float64 or, for fp32 and bf16 input, in fp32: closer to the middle
# between two levels than this (in half-widths) either level is the nearest.
TIE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-5}
TINY = 1e-25  # an all-zero row has the scale of an rms of 1e-30 instead of none

SAME_SPACE = [(f"w{label}a{label}", "hadamard", "hadamard") for label in ALPHA]
MIXED = [("w2a8", "hadamard", "hadamard"), ("w8a1", "hadamard", "hadamard")]
ONE_SIDED = [(f"w{label}a16", "hadamard-back", "none") for label in ("1", "1.58", "2", "4")] + [
    (f"w16a{label}", "none", "hadamard-back") for label in ("1", "4", "8")
]
UNROTATED = [(f"w{a}a{b}", "none", "none") for a, b in (("1", "1"), ("4", "4"), ("3", "16"))]
BACK = [("w4a4", "hadamard-back", "hadamard-back"), ("w4a4", "none", "hadamard-back")]
CASES = SAME_SPACE + MIXED + ONE_SIDED + UNROTATED + BACK


def _data(kinds: tuple[str, ...], count: int, seed: int) -> Array:
    per_kind = count // len(kinds)
    return np.concatenate([rows(kind, per_kind, WIDTH, seed + i) for i, kind in enumerate(kinds)])


def _reference_operand(x: Array, quantizer: torch.nn.Module, label: str, rotation: str,
                       dtype: torch.dtype) -> Operand:  # fmt: skip
    if label == "16":
        return unquantized(x)
    assert isinstance(quantizer, Quantizer)
    codes, _ = quantizer.codes(torch.from_numpy(x).to(dtype))
    return quantized(x, label, rotation, codes.double().numpy(), TIE[dtype])


def _assert_within(got: Tensor | None, expected: Array, bound: Array) -> None:
    assert got is not None
    error = abs(got.detach().double().flatten(0, -2).numpy() - expected)
    worst = np.unravel_index((error - bound).argmax(), error.shape)
    assert (error <= bound + TINY).all(), f"at {worst}: {error[worst]} > {bound[worst]}"


@pytest.mark.parametrize("dtype", COMPUTED, ids=str)
@pytest.mark.parametrize(("bits", "weight_rotation", "activation_rotation"), CASES)
def test_forward_and_gradients(
    bits: str, weight_rotation: str, activation_rotation: str, dtype: torch.dtype
) -> None:
    """y, grad_x and grad_w equal the re-derivation, for rows of every kind in both operands."""
    x, w = _data(KINDS, 30, seed=1), _data(KINDS, OUTPUTS, seed=2)
    g = rows("gaussian", len(x), OUTPUTS, seed=3)
    quant = QuantConfig(rotation="none" if activation_rotation == weight_rotation == "none"
                        else "hadamard", weight_rotation=weight_rotation,
                        activation_rotation=activation_rotation)  # fmt: skip
    layer = QuantLinear(WIDTH, OUTPUTS, bits=bits, method=quant, dtype=dtype)
    layer.weight.data.copy_(torch.from_numpy(w))
    x_torch = torch.from_numpy(x).to(dtype).unflatten(0, (2, 15)).requires_grad_()
    y = layer(x_torch)
    y.backward(torch.from_numpy(g).to(dtype).unflatten(0, (2, 15)))

    weight_label, activation_label = bits[1:].split("a")
    qw = _reference_operand(w, layer.weight_quantizer, weight_label, weight_rotation, dtype)
    qx = _reference_operand(x, layer.activation_quantizer, activation_label, activation_rotation,
                            dtype)  # fmt: skip
    stored, computed = STORED[dtype], COMPUTED[dtype]
    assert y.dtype == dtype
    _assert_within(
        y,
        qx.product @ qw.product.T,
        stored * abs(qx.product) @ abs(qw.product).T + computed * qx.magnitude @ qw.magnitude.T,
    )
    for got, operand, grad, other in (
        (x_torch.grad, qx, g, qw),
        (layer.weight.grad, qw, g.T, qx),
    ):
        terms = abs(grad) @ (stored * abs(other.product) + computed * other.magnitude)
        _assert_within(
            got, operand.backward(grad @ other.product), operand.backward_magnitude(terms)
        )


@pytest.mark.parametrize("dtype", COMPUTED, ids=str)
@pytest.mark.parametrize("label", ALPHA)
def test_codes_flip_only_at_ties(label: str, dtype: torch.dtype) -> None:
    """On random rows at most 1 code in 1,000 is on the other side of a tie: with 2·10⁻⁵ of a
    half-width around each of n-1 ties that many values may be expected at 8 bits, fewer below."""
    x = _data(("gaussian", "heavy-tailed"), 40, seed=4)
    layer = QuantLinear(WIDTH, OUTPUTS, bits=f"w{label}a{label}", dtype=dtype)
    operand = _reference_operand(x, layer.activation_quantizer, label, "hadamard", dtype)
    assert operand.ties <= x.size / 1000
    if dtype == torch.float64:
        assert operand.ties == 0


@pytest.mark.parametrize("label", ALPHA)
def test_product_in_rotated_space_is_the_dense_product(label: str) -> None:
    """Q(x_h)·Q(w_h)ᵀ equals the product of both operands rotated back: H is orthonormal."""
    x = torch.from_numpy(_data(KINDS, 30, seed=5))
    bits = f"w{label}a{label}"
    stays = QuantLinear(WIDTH, OUTPUTS, bits=bits, dtype=torch.float64)
    quant = QuantConfig(weight_rotation="hadamard-back", activation_rotation="hadamard-back")
    back = QuantLinear(WIDTH, OUTPUTS, bits=bits, method=quant, dtype=torch.float64)
    back.load_state_dict(stays.state_dict())
    dense = back.activation_quantizer(x) @ back.weight_quantizer(back.weight).T
    torch.testing.assert_close(stays(x), dense, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(stays(x), x @ stays.weight.T, rtol=1e-3)
