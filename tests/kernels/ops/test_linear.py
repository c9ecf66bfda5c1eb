"""The products: exact integers, scaled in float64, rounded once; and which of them runs."""

from types import SimpleNamespace

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.kernels.dispatch import quantizes_on_the_way
from questtrain.kernels.formats import LEVELS as EVERY_LEVELS
from questtrain.kernels.formats import integers_of
from questtrain.kernels.library import OPS
from questtrain.kernels.ops.linear import _integer_product
from tests.kernels.arguments import (
    ALPHA,
    COLUMNS,
    EPSILON,
    FUSED_LINEARS,
    LEVELS,
    WIDTH,
    arguments,
    assert_a_row_without_a_number_stays_alone,
    random_quantized,
    random_rows,
    random_sparse_weight,
    random_weight,
)

# a CPU's library may serve torch.ops
ops = SimpleNamespace(**{name: op.reference for name, op in OPS.items()})
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
OFFSET = [(256, 256), (256, 16), (16, 256), (128, 256), (16, 3)]
"""Levels of x and of the weight."""


def product(x, x_scales, weight, weight_scales, dtype):
    exact = x.long() @ weight.long().t()
    return (exact.double() * (x_scales.double()[:, None] * weight_scales.double())).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(0, 8, 16), (1, 8, 16), (17, 24, 48), (300, 16, 528)]
)
def test_int8_linear(rows, columns, width, dtype):
    x = random_quantized(rows, width, 128)
    weight = random_quantized(columns, width, 128, seed=1)
    expected = product(x.codes, x.scales, weight.codes, weight.scales, dtype)
    operands = (x.codes, x.scales, weight.codes, weight.scales, dtype)
    assert torch.equal(ops.int8_linear(*operands), expected)
    assert torch.equal(ops.int8_linear_tile(*operands, 3), expected)


@pytest.mark.parametrize("value", [127, -127])
def test_the_largest_integers_do_not_overflow(value):
    x = torch.full((2, 28672), 127, dtype=torch.int8)
    weight = torch.full((8, 28672), value, dtype=torch.int8)
    y = ops.int8_linear(x, torch.ones(2), weight, torch.ones(8), torch.float32)
    assert (y == float(127 * value * 28672)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", OFFSET)
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(0, 8, 16), (1, 8, 16), (17, 24, 48), (300, 16, 528)]
)
def test_int8_offset_linear(rows, columns, width, levels, dtype):
    x = random_quantized(rows, width, levels[0])
    weight = random_quantized(columns, width, levels[1], seed=1)
    integers = integers_of(x.codes, levels[0]), integers_of(weight.codes, levels[1])
    expected = product(integers[0], x.scales, integers[1], weight.scales, dtype)
    assert torch.equal(ops.int8_offset_linear(*x[:3], *weight[:3], *levels, dtype), expected)


@pytest.mark.parametrize("levels", OFFSET)
def test_codes_give_the_product_of_integers(levels):
    """What the kernel computes: factors 2 and terms +1 where a side has 256 levels."""
    x, weight = random_quantized(5, 256, levels[0]), random_quantized(8, 256, levels[1], seed=1)
    factors, terms = [1 + (n == 256) for n in levels], [n == 256 for n in levels]
    sums = factors[0] * terms[1] * x.sums[:, None] + factors[1] * terms[0] * weight.sums
    codes = factors[0] * factors[1] * (x.codes.long() @ weight.codes.long().t())
    corrected = codes + sums + 256 * terms[0] * terms[1]
    integers = integers_of(x.codes, levels[0]), integers_of(weight.codes, levels[1])
    assert torch.equal(corrected, integers[0].long() @ integers[1].long().t())


def test_the_widest_rows_of_256_levels_stay_in_int32():
    for code in (127, -128):
        x, weight = (torch.full((n, 32768), code, dtype=torch.int8) for n in (1, 8))
        sums = [each.sum(1, dtype=torch.int32) for each in (x, weight)]
        y = ops.int8_offset_linear(
            x, torch.ones(1), sums[0], weight, torch.ones(8), sums[1], 256, 256, torch.float32
        )
        assert (y == float(255 * 255 * 32768)).all()
    assert 255 * 255 * 32768 < 2**31


def test_levels_and_widths_that_int8_offset_linear_does_not_take():
    good = arguments("int8_offset_linear")
    for place, name in ((6, "x_levels"), (7, "weight_levels")):
        with pytest.raises(RuntimeError, match=rf"^int8_offset_linear: {name} must be one of .* 5"):
            ops.int8_offset_linear(*good[:place], 5, *good[place + 1 :])
    x, weight = random_quantized(1, 32784, 256), random_quantized(8, 32784, 256)
    with pytest.raises(RuntimeError, match="the width 32784 exceeds 32768"):
        ops.int8_offset_linear(*x[:3], *weight[:3], 256, 256, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(0, 16, 128), (1, 16, 128), (17, 48, 384), (77, 16, 256)]
)
def test_packed_linear(rows, columns, width, levels, dtype):
    x = random_quantized(rows, width, 128)
    weight = random_weight(columns, width, levels)
    y = ops.packed_linear(*x[:3], weight.codes, weight.scales, levels, dtype)
    values = kernels.unpack(weight.codes, levels)
    assert torch.equal(y, product(x.codes, x.scales, values, weight.scales, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(0, 8, 64), (1, 8, 64), (17, 24, 192), (77, 16, 256)]
)
def test_int4_linear(rows, columns, width, dtype):
    x = random_quantized(rows, width, 16, packed=True)
    weight = random_weight(columns, width, 16)
    y = ops.int4_linear(*x[:3], *weight[:3], dtype)
    integers = kernels.unpack(x.codes, 16), kernels.unpack(weight.codes, 16)
    assert torch.equal(y, product(integers[0], x.scales, integers[1], weight.scales, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(0, 16, 128), (1, 16, 128), (17, 48, 384), (77, 16, 256)]
)
def test_int4_sparse_linear(rows, columns, width, dtype):
    x = random_quantized(rows, width, 16, packed=True)
    weight = random_sparse_weight(columns, width)
    y = ops.int4_sparse_linear(*x[:2], weight.codes, weight.metadata, weight.scales, dtype)
    integers = kernels.unpack(x.codes, 16)
    assert torch.equal(y, product(integers, x.scales, weight.integers, weight.scales, dtype))


def test_indices_give_the_product_of_integers():
    """What the INT4 kernel computes: 4·Σ q_x·q_w - 15·(Σ v_x + Σ v_w) - 225·K."""
    x, weight = random_quantized(5, 256, 16), random_quantized(8, 256, 16, seed=1)
    q_x, q_w = ((operand.codes.long() + 15) // 2 for operand in (x, weight))
    sums = x.sums.long()[:, None] + weight.sums.long()
    indices = 4 * (q_x @ q_w.t()) - 15 * sums - 225 * 256
    assert torch.equal(indices, x.codes.long() @ weight.codes.long().t())


@pytest.mark.parametrize(
    "op",
    ["int8_linear", "int8_offset_linear", "packed_linear", "int4_linear", "int4_sparse_linear"],
)
def test_a_row_without_a_number_stays_alone(op):
    assert_a_row_without_a_number_stays_alone(getattr(ops, op), op)


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("levels", [2, 3, 4, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fused_linears_equal_the_compositions(levels, rows, dtype):
    weight = random_weight(COLUMNS, WIDTH, levels)
    rest = (LEVELS, ALPHA, weight.codes, weight.scales, levels)
    x, residual = (random_rows(rows, WIDTH, dtype, seed=seed) for seed in (0, 1))
    norm, gate_up = torch.linspace(0.5, 1.5, WIDTH), torch.cat([x, residual], 1)

    def linear(quantized):
        return kernels.quantized_linear(quantized, weight, dtype)

    quantized = kernels.hadamard_quantize(x, LEVELS, ALPHA)
    assert torch.equal(ops.hadamard_quantize_linear(x, *rest), linear(quantized))
    quantized = kernels.rmsnorm_quantize(x, norm, EPSILON, LEVELS, ALPHA)
    assert torch.equal(ops.rmsnorm_quantize_linear(x, norm, EPSILON, *rest), linear(quantized))
    quantized = kernels.swiglu_quantize(gate_up, LEVELS, ALPHA)
    assert torch.equal(ops.swiglu_quantize_linear(gate_up, *rest), linear(quantized))
    hidden, quantized = kernels.add_rmsnorm_quantize(x, residual, norm, EPSILON, LEVELS, ALPHA)
    fused = ops.add_rmsnorm_quantize_linear(x, residual, norm, EPSILON, *rest)
    assert torch.equal(fused[0], hidden)
    assert torch.equal(fused[1], linear(quantized))
    assert len(FUSED_LINEARS) == 4


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 300])
@pytest.mark.parametrize(("columns", "width"), [(32, 256), (24, 256), (32, 96)])
def test_quantized_linear_takes_every_shape(rows, columns, width):
    """Packed codes that `packed_linear` does not take are unpacked first."""
    x = random_quantized(rows, width, LEVELS)
    weight = random_weight(columns, width, LEVELS)
    values = kernels.unpack(weight.codes, LEVELS)
    expected = product(x.codes, x.scales, values, weight.scales, torch.bfloat16)
    dense = kernels.Int8Matrix(values, weight.scales)
    for matrix in (weight, dense):
        assert torch.equal(kernels.quantized_linear(x, matrix, torch.bfloat16), expected)


def test_nothing_is_quantized_on_the_way_on_the_cpu():
    weight = random_weight(COLUMNS, WIDTH, LEVELS)
    x = random_rows(1, WIDTH, torch.bfloat16)
    assert not quantizes_on_the_way(x, WIDTH, 128, weight)


def extreme(rows, width, largest):
    """int16 rows of the largest integers a format has, of either sign."""
    integers = torch.full((rows, width), largest, dtype=torch.int16)
    integers[1::2] *= -1
    return integers


@pytest.mark.parametrize("beyond", [0, 1])
@pytest.mark.parametrize("largest", [(15, 15), (127, 127), (1, 127), (255, 15), (255, 255)])
def test_a_product_is_exact_on_both_sides_of_fp32s_bound(largest, beyond):
    """The widest rows whose sums fp32 holds, and one column more."""
    width = 2**24 // (largest[0] * largest[1]) + beyond
    x, weight = extreme(2, width, largest[0]), extreme(2, width, largest[1])
    x[0, 0] -= 2
    product = _integer_product(x, weight)
    assert product.dtype == (torch.float64 if beyond else torch.float32)
    assert torch.equal(product.long(), x.long() @ weight.long().t())


@pytest.mark.parametrize("x_levels", EVERY_LEVELS)
@pytest.mark.parametrize("levels", EVERY_LEVELS)
def test_products_of_every_pair_of_formats_are_exact(x_levels, levels):
    for width in (16, 272, 2064):
        x, weight = (
            integers_of(random_quantized(6, width, each, seed=seed)[0], each).to(torch.int16)
            for seed, each in enumerate((x_levels, levels))
        )
        x[0], weight[0] = x_levels - 1, 1 - levels
        product = _integer_product(x, weight)
        assert torch.equal(product.long(), x.long() @ weight.long().t())
