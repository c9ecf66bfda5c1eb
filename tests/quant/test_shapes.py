"""Any shape with any method: leading dimensions, empty ones included, and odd widths."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from questtrain.quant import learned_scalars
from questtrain.quant.quantizer import Quantizer
from tests.quant.combinations import COMBINATIONS, VARIANTS, Combination
from tests.quant.operands import FORMATS, ROTATIONS, Format, gaussian

LEADING = st.lists(st.integers(0, 5), max_size=3)
WIDTHS = st.sampled_from([16, 48, 80, 144, 256])
ODD_WIDTHS = st.sampled_from([1, 3, 7, 77])
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.bfloat16])
UNROTATED_DENSE = [c for c in COMBINATIONS if c.method != "quest" and not c.recipes()[0].sparse]


@given(LEADING, WIDTHS, st.sampled_from(FORMATS), st.sampled_from(ROTATIONS), DTYPES)
def test_rows_are_quantized_on_their_own(
    leading: list[int], width: int, stored_as: Format, rotation: str, dtype: torch.dtype
) -> None:
    """Shape and dtype are kept, there is one scale a row, and each row is what it is alone."""
    quantizer = stored_as.quantizer(rotation, width)
    x = gaussian(*leading, width, dtype=torch.float64).to(dtype)
    out = quantizer(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    stored = quantizer.quantize(x)
    assert (stored.codes.shape, stored.codes.dtype) == (x.shape, torch.uint8)
    assert stored.scale.shape == (*leading, 1)
    assert quantizer.mask(x).shape == x.shape
    values = quantizer.dequantize(stored)
    expected = quantizer.rotation(values) if rotation == "hadamard-back" else values
    assert torch.equal(out, expected.to(dtype))
    for row, value in zip(x.reshape(-1, width)[:3], out.reshape(-1, width)[:3], strict=True):
        torch.testing.assert_close(quantizer(row), value, rtol=1e-2, atol=1e-6)


def _trains(combination: Combination, leading: list[int], width: int, dtype: torch.dtype) -> None:
    layer = combination.layer(width, 5, dtype)
    x = gaussian(*leading, width, dtype=torch.float64).to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert (y.shape, y.dtype) == ((*leading, 5), dtype)
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert (x.grad.shape, layer.weight.grad.shape) == (x.shape, (5, width))
    learned = [scalar.value for scalar in learned_scalars(layer)]
    gradients = [value.grad for value in learned if value.grad is not None]
    assert len(gradients) == len(learned)
    for tensor in (y, x.grad, layer.weight.grad, *learned, *gradients):
        assert tensor.isfinite().all()


@given(st.sampled_from(COMBINATIONS + VARIANTS), LEADING, WIDTHS, DTYPES)
def test_any_shape_trains(
    combination: Combination, leading: list[int], width: int, dtype: torch.dtype
) -> None:
    """Every method runs forward and backward; nothing becomes NaN, learned numbers included."""
    _trains(combination, leading, width, dtype)


@given(st.sampled_from(UNROTATED_DENSE), LEADING, ODD_WIDTHS, DTYPES)
def test_odd_widths_train_without_rotation(
    combination: Combination, leading: list[int], width: int, dtype: torch.dtype
) -> None:
    """Without rotation and sparsity a row may have any width, a single value included."""
    _trains(combination, leading, width, dtype)


@given(st.sampled_from(COMBINATIONS), WIDTHS)
def test_an_empty_operand_quantizes_to_nothing(combination: Combination, width: int) -> None:
    """No rows: no codes, no values, no crash, for either operand."""
    layer = combination.layer(width, 5)
    for quantizer in (layer.weight_quantizer, layer.activation_quantizer):
        if not isinstance(quantizer, Quantizer):
            continue
        stored = quantizer.quantize(torch.zeros(0, width))
        assert stored.codes.shape == (0, width)
        assert quantizer.dequantize(stored).shape == (0, width)
        assert all(scalar.value.isfinite().all() for scalar in learned_scalars(quantizer))
