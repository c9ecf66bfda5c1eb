"""The operands of a backward in FP8: formulas, scales, what saturates, what stays visible."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from questtrain.kernels.formats import E4M3
from questtrain.kernels.ops.fp8 import LARGEST
from tests.kernels.arguments import random_quantized, random_rows

ops = torch.ops.questtrain

ROUNDED = 2**-4
"""Relative error of one rounding to e4m3: at most half an ulp."""

SUBNORMAL = 2**-10
"""The same of values below 2⁻⁶, absolute."""


def gradient(rows: int, width: int, size: float = 1.0, seed: int = 0) -> Tensor:
    return (size * random_rows(rows, width, torch.float32, seed=seed)).bfloat16()


def scales(count: int, seed: int = 1, size: float = 0.01) -> Tensor:
    return size * (0.5 + torch.rand(count, generator=torch.Generator().manual_seed(seed)))


def rms(values: Tensor) -> float:
    return values.double().square().mean().sqrt().item()


@pytest.mark.parametrize("size", [1.0, 1e-7, 3e-12, 1e4])
@pytest.mark.parametrize(("rows", "width"), [(16, 16), (48, 80), (512, 640)])
def test_both_operands_are_the_scaled_gradient_rounded_once(
    rows: int, width: int, size: float
) -> None:
    grad, of_weight, of_x = gradient(rows, width, size), scales(width), scales(rows, 2, 3.0)
    by_rows, by_columns, *units = ops.fp8_gradients(grad, of_weight, of_x)
    exact = grad.double() * of_weight.double(), (grad.double() * of_x.double().unsqueeze(1)).t()
    for operand, unit, values in zip((by_rows, by_columns), units, exact, strict=True):
        assert operand.dtype == E4M3
        assert operand.shape == values.shape
        expected = values / unit.double()
        error = (operand.double() - expected).abs()
        assert (error <= 1.001 * (ROUNDED * expected.abs()).clamp_min(SUBNORMAL)).all()
        assert 0.5 < rms(expected) < 4, "brought to about 1"
        assert torch.frexp(unit).mantissa == 0.5, "by a power of two"


def test_the_products_are_those_of_the_backward() -> None:
    """What `torch._scaled_mm` makes of both operands, up to the gradient's rounding."""
    rows, width, columns = 64, 96, 128
    grad = gradient(rows, width, 1e-4)
    x, weight = random_quantized(rows, columns, 16), random_quantized(width, columns, 16, seed=1)
    by_rows, by_columns, unit_rows, unit_columns = ops.fp8_gradients(grad, weight.scales, x.scales)
    one = torch.ones(1)
    for operand, unit, codes, exact in (
        (
            by_rows,
            unit_rows,
            weight.codes,
            grad.float() @ ops.dequantize(*weight[:2], 16, torch.float32),
        ),
        (
            by_columns,
            unit_columns,
            x.codes,
            grad.float().t() @ ops.dequantize(*x[:2], 16, torch.float32),
        ),
    ):
        other = ops.fp8_transpose(codes, 16).t()
        product = torch._scaled_mm(operand, other, unit, one, out_dtype=torch.float32)
        assert (product - exact).norm() <= ROUNDED * exact.norm()


def test_what_is_too_large_saturates_and_what_is_no_number_stays_visible() -> None:
    grad = gradient(32, 16)
    grad[3, 5], grad[4, 6] = 1e30, -1e30
    grad[5, 7], grad[6, 8], grad[7, 9] = torch.inf, -torch.inf, torch.nan
    by_rows, by_columns, *_ = ops.fp8_gradients(grad, scales(16), scales(32))
    for operand in (by_rows.float(), by_columns.float().t()):
        assert operand[3, 5] == LARGEST
        assert operand[4, 6] == -LARGEST
        assert torch.equal(operand.isnan(), ~grad.isfinite())


def test_a_sample_without_a_size_scales_by_one() -> None:
    """Zeros stay zeros; where the sample has an infinity, the rest stays finite."""
    zero = torch.zeros(16, 16, dtype=torch.bfloat16)
    infinite = torch.full_like(zero, 0.5)
    infinite[2, 3] = torch.inf
    for grad in (zero, infinite):
        by_rows, by_columns, *units = ops.fp8_gradients(grad, torch.ones(16), torch.ones(16))
        assert units == [1.0, 1.0]
        for operand in (by_rows.float(), by_columns.float().t()):
            assert torch.equal(operand[grad.isfinite()], grad.float()[grad.isfinite()])


def test_the_sample_meets_every_place_of_a_sequence() -> None:
    """One place alone has a gradient, and sequences are as long as sampled rows lie apart."""
    for length in (16, 64, 128):
        for place in (0, length // 2, length - 2):
            grad = torch.zeros(128 * length, 16, dtype=torch.bfloat16)
            grad[place::length] = 1.0
            *_, unit, _ = ops.fp8_gradients(grad, torch.ones(16), torch.ones(len(grad)))
            assert unit < 1, (length, place)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_codes_are_exact(levels: int, packed: bool) -> None:
    codes = random_quantized(48, 96, levels, packed=packed).codes
    integers = random_quantized(48, 96, levels).codes
    transposed = ops.fp8_transpose(codes, levels)
    assert transposed.dtype == E4M3
    assert transposed.is_contiguous()
    assert torch.equal(transposed.float(), integers.t().float())


def test_sizes_and_formats_that_no_product_takes_are_refused() -> None:
    grad = gradient(32, 32)
    for arguments, message in (
        ((grad[:8].contiguous(), scales(32), scales(8)), "the number of rows 8 must be a multiple"),
        ((grad[:, :24].contiguous(), scales(24), scales(32)), "the width 24 must be a multiple"),
        ((grad.float(), scales(32), scales(32)), "grad must be bfloat16, not torch.float32"),
        ((grad, scales(16), scales(32)), "weight_scales must be [32], not [16]"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(f"fp8_gradients: {message}")):
            ops.fp8_gradients(*arguments)
    codes = random_quantized(32, 32, 16).codes
    for codes_of, levels, message in (
        (codes[:8], 16, "the number of rows 8 must be a multiple of 16"),
        (codes[:, :8].contiguous(), 16, "the width 8 must be a multiple of 16"),
        (codes, 32, "levels of packed codes must be 2 to 16, not 32"),
    ):
        with pytest.raises(RuntimeError, match=f"fp8_transpose: {message}"):
            ops.fp8_transpose(codes_of, levels)


def test_weight_gradients_are_summed_in_place() -> None:
    rows, width, columns = 48, 32, 64
    grads = [gradient(width, rows, seed=seed).to(E4M3) for seed in (1, 2)]
    xs = [gradient(columns, rows, seed=seed).to(E4M3) for seed in (3, 4)]
    unit, total = torch.full((1,), 0.25), torch.full((width, columns), torch.nan)
    exact = torch.zeros(width, columns)
    for grad, x in zip(grads, xs, strict=True):
        ops.add_weight_gradient_(total, grad.t(), x.t(), grad is grads[0], unit)
        exact += 0.25 * grad.float() @ x.float().t()
        torch.testing.assert_close(total, exact)
    with pytest.raises(RuntimeError, match="add_weight_gradient_: grad's transpose must be contig"):
        ops.add_weight_gradient_(total, grads[0].t().contiguous(), xs[0].t(), True, unit)
    with pytest.raises(RuntimeError, match="x's transpose must be float8_e4m3fn"):
        ops.add_weight_gradient_(total, grads[0].t(), xs[0].float().t(), True, unit)
