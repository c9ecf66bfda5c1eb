"""The whole `QuantLinear`, forward and all gradients, against the reference in float64 numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from questtrain.quant import QuantLinear
from questtrain.quant.method import method_names
from questtrain.quant.quantizer import Quantizer
from tests.quant.combinations import (
    COMBINATIONS,
    METHODS,
    PARTS_OF_A_ROTATION,
    VARIANTS,
    Combination,
)
from tests.quant.quest_reference import (
    Array,
    Decided,
    Operand,
    Recipe,
    initial,
    quantized,
    rows,
    unquantized,
)

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


class Trained(NamedTuple):
    """One forward and backward of a layer."""

    layer: QuantLinear
    y: Tensor
    grad_x: Tensor | None


def _data(kinds: tuple[str, ...], count: int, seed: int) -> Array:
    per_kind = count // len(kinds)
    return np.concatenate([rows(kind, per_kind, WIDTH, seed + i) for i, kind in enumerate(kinds)])


def _train(combination: Combination, dtype: torch.dtype, x: Array, w: Array, g: Array) -> Trained:
    layer = combination.layer(WIDTH, OUTPUTS, dtype)
    layer.weight.data.copy_(torch.from_numpy(w))
    x_torch = torch.from_numpy(x).to(dtype).unflatten(0, (2, -1)).requires_grad_()
    y = layer(x_torch)
    y.backward(torch.from_numpy(g).to(dtype).unflatten(0, (2, -1)))
    return Trained(layer, y, x_torch.grad)


def _learned(quantizer: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The learned numbers of a quantizer, by the piece that holds them."""
    parameters = quantizer.named_parameters()
    return {name.removesuffix(".value"): parameter for name, parameter in parameters}


def _reference_operand(
    x: Array, quantizer: torch.nn.Module, recipe: Recipe, dtype: torch.dtype
) -> Operand:
    if recipe.label == "16":
        return unquantized(x, recipe)
    assert isinstance(quantizer, Quantizer)
    x_torch = torch.from_numpy(x).to(dtype)
    stored = quantizer.quantize(x_torch)
    trusted = quantizer.mask(x_torch).double().numpy()
    kept = None if stored.kept is None else stored.kept.double().numpy()
    decided = Decided(stored.codes.double().numpy(), trusted, kept)
    learned = {name: parameter.item() for name, parameter in _learned(quantizer).items()}
    return quantized(x, recipe, decided, TIE[dtype], learned)


def _assert_within(got: Tensor | None, expected: Array, bound: Array) -> None:
    assert got is not None
    error = abs(got.detach().double().flatten(0, -2).numpy() - expected)
    worst = np.unravel_index((error - bound).argmax(), error.shape)
    assert (error <= bound + TINY).all(), f"at {worst}: {error[worst]} > {bound[worst]}"


def _assert_initialised(x: Array, quantizer: torch.nn.Module, recipe: Recipe, unit: float) -> None:
    """Each learned number starts where the reference says, up to the sums' rounding."""
    learned = _learned(quantizer)
    expected = initial(x, recipe)
    assert learned.keys() == expected.keys()
    for name, parameter in learned.items():
        magnitude = abs(expected[name]) if name == "scale" else np.sqrt(np.mean(x**2))
        assert parameter.item() == pytest.approx(expected[name], rel=0, abs=unit * magnitude)


@pytest.mark.parametrize("dtype", COMPUTED, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("combination", COMBINATIONS + VARIANTS, ids=str)
def test_forward_and_gradients(combination: Combination, dtype: torch.dtype) -> None:
    """y, grad_x, grad_w and the gradients of learned numbers equal the re-derivation, for rows of
    every kind in both operands."""
    _assert_equals_reference(combination, dtype, KINDS)


@pytest.mark.parametrize("dtype", COMPUTED, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("combination", PARTS_OF_A_ROTATION, ids=str)
def test_groups_in_a_hadamard_block(combination: Combination, dtype: torch.dtype) -> None:
    """The same of random rows."""
    _assert_equals_reference(combination, dtype, ("gaussian", "heavy-tailed"))


def _assert_equals_reference(
    combination: Combination, dtype: torch.dtype, kinds: tuple[str, ...]
) -> None:
    x, w = _data(kinds, 30, seed=1), _data(kinds, OUTPUTS, seed=2)
    g = rows("gaussian", len(x), OUTPUTS, seed=3)
    layer, y, grad_x = _train(combination, dtype, x, w, g)
    weight_recipe, activation_recipe = combination.recipes()
    _assert_initialised(w, layer.weight_quantizer, weight_recipe, COMPUTED[dtype])
    _assert_initialised(x, layer.activation_quantizer, activation_recipe, COMPUTED[dtype])
    qw = _reference_operand(w, layer.weight_quantizer, weight_recipe, dtype)
    qx = _reference_operand(x, layer.activation_quantizer, activation_recipe, dtype)
    stored, computed = STORED[dtype], COMPUTED[dtype]
    assert y.dtype == dtype
    _assert_within(
        y,
        qx.product @ qw.product.T,
        stored * abs(qx.product) @ abs(qw.product).T + computed * qx.magnitude @ qw.magnitude.T,
    )
    for got, quantizer, operand, grad, other in (
        (grad_x, layer.activation_quantizer, qx, g, qw),
        (layer.weight.grad, layer.weight_quantizer, qw, g.T, qx),
    ):
        expected = grad @ other.product
        terms = abs(grad) @ (stored * abs(other.product) + computed * other.magnitude)
        _assert_within(got, operand.backward(expected), operand.backward_magnitude(terms))
        for name, parameter in _learned(quantizer).items():
            assert parameter.grad is not None
            assert parameter.dtype == torch.promote_types(dtype, torch.float32)
            error = abs(parameter.grad.item() - operand.learned_gradient(name, expected))
            magnitude = abs(grad) @ abs(other.product)
            assert error <= operand.learned_gradient_bound(name, magnitude, terms, computed)


def test_every_method_is_compared() -> None:
    """The reference knows each method of conf/method, and each has its combinations above."""
    assert set(method_names()) == METHODS.keys()
    assert {combination.method for combination in COMBINATIONS} == METHODS.keys()


@pytest.mark.parametrize("dtype", COMPUTED, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize(
    "combination", [c for c in COMBINATIONS if c.method in ("quest", "lsq-plus")], ids=str
)
def test_decisions_differ_only_at_ties(combination: Combination, dtype: torch.dtype) -> None:
    """On random rows at most 1 decision in 1,000 hangs on rounding: with 2·10⁻⁵ of a half-width
    around each of n-1 ties that many values may be expected at 8 bits, fewer below."""
    x = _data(("gaussian", "heavy-tailed"), 40, seed=4)
    layer = combination.layer(WIDTH, OUTPUTS, dtype)
    for quantizer, recipe in zip(
        (layer.weight_quantizer, layer.activation_quantizer), combination.recipes(), strict=True
    ):
        operand = _reference_operand(x, quantizer, recipe, dtype)
        assert operand.ties <= x.size / 1000
        if dtype == torch.float64:
            assert operand.ties == 0


@pytest.mark.parametrize(
    "combination",
    [c for c in COMBINATIONS if c.method == "quest" and "16" not in c.bits],
    ids=str,
)
def test_product_in_rotated_space_is_the_dense_product(combination: Combination) -> None:
    """Q(x_h)·Q(w_h)ᵀ equals the product of both operands rotated back: H is orthonormal."""
    x = torch.from_numpy(_data(KINDS, 30, seed=5))
    stays = combination.layer(WIDTH, OUTPUTS, torch.float64)
    bits, back_and_back = combination.bits, ("hadamard-back", "hadamard-back")
    back = Combination("quest", bits, combination.grid, back_and_back).layer(
        WIDTH, OUTPUTS, torch.float64
    )
    back.load_state_dict(stays.state_dict())
    dense = back.activation_quantizer(x) @ back.weight_quantizer(back.weight).T
    torch.testing.assert_close(stays(x), dense, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(stays(x), x @ stays.weight.T, rtol=1e-3)
