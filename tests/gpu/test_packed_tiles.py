"""Rows quantized and multiplied by Hopper's tiles of packed weights: the codes of the quantizers,
and the exact product of `int8_linear`."""

from __future__ import annotations

import re

import pytest
import torch

from questtrain.kernels import Int8Matrix, PackedMatrix, RowFormat, hadamard_linear, unpack
from questtrain.kernels.dispatch import MAX_TILED_ROWS, has_tiles, quantized_linear
from questtrain.kernels.extension import serves
from questtrain.kernels.ops.quantize import (
    add_rmsnorm_quantize,
    hadamard_quantize,
    rmsnorm_quantize,
    swiglu_quantize,
)
from tests.gpu.kernel_cases import call, same_bits
from tests.kernels.arguments import ALPHA, EPSILON, random_rows, random_weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not serves("cuda") or not has_tiles(torch.device("cuda")),
        reason="needs a Hopper GPU and `make kernels` for 90a",
    ),
]

BF16, FP16 = torch.bfloat16, torch.float16
ROWS = (3, 8, 9, 16, 17, 33, 64, 65, 100, 128, 129, 200, 256)


def product(x, weight: PackedMatrix, dtype):
    """Of quantized rows, by INT8 values."""
    dense = Int8Matrix(unpack(weight.codes, weight.levels), weight.scales)
    return quantized_linear(x, dense, dtype)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("rows", ROWS)
def test_tiles_give_the_exact_product(rows, levels):
    narrow = ((32, 128),) if levels > 4 else ()  # less than a step of most tiles
    for columns, width in (*narrow, (16, 256), (48, 768), (272, 2048), (2048, 5632)):
        x = random_rows(rows, width, BF16, "cuda")
        weight = random_weight(columns, width, levels, "cuda")
        expected = product(hadamard_quantize(x, levels, ALPHA), weight, BF16)
        form = levels, ALPHA, weight.codes, weight.scales, levels
        assert same_bits(call("hadamard_quantize_linear", x, *form), expected)


@pytest.mark.parametrize("levels", [2, 4, 16])
@pytest.mark.parametrize(("rows", "columns", "width"), [(20, 2048, 2048), (300, 208, 1280)])
def test_every_tile_gives_the_same_product(rows, columns, width, levels):
    x = random_rows(rows, width, BF16, "cuda")
    weight = random_weight(columns, width, levels, "cuda")
    form = levels, ALPHA, weight.codes, weight.scales, levels
    with pytest.raises(RuntimeError, match=r"tile must be 0 to \d+, not -1") as refusal:
        torch.ops.questtrain.hadamard_quantize_linear_tile(x, *form, -1)
    last = int(re.search(r"0 to (\d+)", str(refusal.value)).group(1))
    expected = product(hadamard_quantize(x, levels, ALPHA), weight, BF16)
    products = {tile: product_of_tile(x, *form, tile) for tile in range(last + 1)}
    served = {tile: y for tile, y in products.items() if y is not None}
    assert len(served) > last // 3
    assert [tile for tile, y in served.items() if not same_bits(y, expected)] == []


def product_of_tile(*operands):
    """None where that tile does not take the shape."""
    try:
        return call("hadamard_quantize_linear_tile", *operands)
    except RuntimeError as error:
        if "invalid configuration" in str(error):
            return None
        raise


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("rows", [5, 40, 150])
def test_every_operand_is_quantized_as_by_its_own_kernel(rows, dtype):
    width, columns, levels = 1024, 512, 16
    x, residual = (random_rows(rows, width, dtype, "cuda", seed) for seed in (0, 1))
    gate_up = random_rows(rows, 2 * width, dtype, "cuda", 2)
    norm = 1 + 0.1 * random_rows(1, width, torch.float32, "cuda", 3).flatten()
    weight = random_weight(columns, width, levels, "cuda")
    form, matrix = (levels, ALPHA), (weight.codes, weight.scales, levels)

    fed = rmsnorm_quantize(x, norm, EPSILON, *form)
    y = call("rmsnorm_quantize_linear", x, norm, EPSILON, *form, *matrix)
    assert same_bits(y, product(fed, weight, dtype))

    hidden, fed = add_rmsnorm_quantize(x, residual, norm, EPSILON, *form)
    both = call("add_rmsnorm_quantize_linear", x, residual, norm, EPSILON, *form, *matrix)
    assert same_bits(both[0], hidden)
    assert same_bits(both[1], product(fed, weight, dtype))

    y = call("swiglu_quantize_linear", gate_up, *form, *matrix)
    assert same_bits(y, product(swiglu_quantize(gate_up, *form), weight, dtype))


def test_a_row_is_the_same_whatever_the_others_are():
    """In any number of rows: the same codes, an exact product, one order of scaling."""
    weight = random_weight(4096, 1024, 16, "cuda")
    x = random_rows(MAX_TILED_ROWS, 1024, BF16, "cuda")
    form = RowFormat(16, ALPHA, 128)
    whole = hadamard_linear(x, form, weight)
    for rows in (1, 2, 3, 8, 17, 64, 129):
        assert same_bits(hadamard_linear(x[:rows], form, weight), whole[:rows])


def test_a_row_without_a_number_stays_alone():
    weight = random_weight(64, 256, 16, "cuda")
    x = random_rows(9, 256, BF16, "cuda")
    form = RowFormat(16, ALPHA, 128)
    expected = hadamard_linear(x, form, weight)
    x[4, 7] = torch.nan
    y = hadamard_linear(x, form, weight)
    assert y[4].isnan().all()
    assert same_bits(y[:4], expected[:4])
    assert same_bits(y[5:], expected[5:])


def test_more_rows_than_tiles_take_are_refused():
    weight = random_weight(16, 256, 16, "cuda")
    x = random_rows(1025, 256, BF16, "cuda")
    words = "^hadamard_quantize_linear: x has 1025 rows, the kernel takes up to 1024"
    with pytest.raises(RuntimeError, match=words):
        torch.ops.questtrain.hadamard_quantize_linear(x, 16, ALPHA, weight.codes, weight.scales, 16)
