"""The CPU's library: every path of it against int64, and where its sums are largest."""

import re

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils._pytree import tree_map_only

from questtrain.kernels import unpack
from questtrain.kernels.formats import (
    LEVELS,
    Int8Matrix,
    PackedMatrix,
    Quantized,
    container_bits,
    int8_codes,
    integers_of,
    pack_bits,
    packed_integers,
)
from tests.kernels.arguments import (
    SERVED_ON_CPUS,
    arguments,
    assert_a_row_without_a_number_stays_alone,
    random_quantized,
    random_rows,
    random_weight,
    reference_of,
)
from tests.kernels.refusals import named, wrong_numbers, wrong_tensors

pytestmark = pytest.mark.usefixtures("built_cpu_library")
ops = torch.ops.questtrain
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
PACKED_LEVELS = (2, 3, 4, 8, 16)


def scaled(sums, x_scales, weight_scales, dtype):
    scales = x_scales.double()[:, None] * weight_scales.double()
    return (sums.double() * scales).to(dtype)


def exact(x, weight, x_levels=128):
    """Σ of the integers in int64, of a packed or an int8 weight."""
    codes = weight.codes
    if isinstance(weight, PackedMatrix):
        codes = packed_integers(codes, weight.levels)
    integers = integers_of(x.codes, x_levels), integers_of(codes, weight.levels)
    return integers[0].long() @ integers[1].long().t()


def product(x, weight, dtype=torch.float32, x_levels=128):
    """By the op for such levels."""
    if isinstance(weight, PackedMatrix):
        return ops.packed_linear(*x[:3], weight.codes, weight.scales, weight.levels, dtype)
    if 256 in (x_levels, weight.levels):
        return ops.int8_offset_linear(*x[:3], *weight[:3], x_levels, weight.levels, dtype)
    return ops.int8_linear(*x[:2], *weight[:2], dtype)


def random_int8(rows, width, levels, seed=1):
    return Int8Matrix(*random_quantized(rows, width, levels, seed=seed)[:3], levels)


def constant(rows, width, code):
    """Rows of one int8 code, of scale 1."""
    codes = torch.full((rows, width), code, dtype=torch.int8)
    sums = codes.sum(1, dtype=torch.int32)
    return Quantized(codes, torch.ones(rows), sums, torch.empty(rows, 0, dtype=torch.uint8))


def constant_weight(rows, width, index, levels):
    """Packed codes that are all one level."""
    indices = torch.full((rows, width), index, dtype=torch.uint8)
    codes = int8_codes(indices, levels)
    sums = codes.sum(1, dtype=torch.int32)
    return PackedMatrix(pack_bits(indices, container_bits(levels)), torch.ones(rows), sums, levels)


# ---- all shapes, dtypes and pairs of levels


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 131])
@pytest.mark.parametrize(("columns", "width"), [(16, 128), (48, 384), (32, 2176)])
@pytest.mark.parametrize("levels", PACKED_LEVELS)
def test_packed_weights(path, levels, columns, width, rows):
    x, weight = random_quantized(rows, width, 128), random_weight(columns, width, levels)
    x.codes[:1] = -128
    for dtype in DTYPES:
        expected = scaled(exact(x, weight), x.scales, weight.scales, dtype)
        assert torch.equal(product(x, weight, dtype), expected)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 5, 131])
@pytest.mark.parametrize(("columns", "width"), [(8, 16), (24, 48), (16, 2064), (40, 528)])
def test_int8_weights(path, columns, width, rows):
    x, weight = random_quantized(rows, width, 128), random_int8(columns, width, 128)
    x.codes[:1], weight.codes[:3] = -128, -128
    for dtype in DTYPES:
        expected = scaled(exact(x, weight), x.scales, weight.scales, dtype)
        assert torch.equal(product(x, weight, dtype), expected)


@pytest.mark.parametrize("x_levels", LEVELS)
@pytest.mark.parametrize("levels", LEVELS)
def test_every_pair_of_levels(path, x_levels, levels):
    x = random_quantized(5, 256, x_levels)
    weights = [random_int8(24, 256, levels)]
    if levels in PACKED_LEVELS and x_levels != 256:
        weights.append(random_weight(32, 256, levels))
    for weight in weights:
        expected = scaled(exact(x, weight, x_levels), x.scales, weight.scales, torch.float32)
        assert torch.equal(product(x, weight, x_levels=x_levels), expected)


@pytest.mark.parametrize("levels", PACKED_LEVELS)
@pytest.mark.parametrize("width", [32, 96, 128, 2080])
def test_unpack(path, levels, width):
    for rows in (0, 1, 7):
        packed = random_weight(rows, width, levels).codes
        assert torch.equal(ops.unpack(packed, levels), packed_integers(packed, levels))


# ---- the largest sums

ADDITIONS = {16: 72, 128: 8}
"""So many sums of two products stay in int16 where AVX2 multiplies 16 levels by so many (128: any
int8): `exact_additions` in csrc/cpu/kernels_avx2.cpp. A step is 32 wide."""


@pytest.mark.parametrize("x_levels", ADDITIONS)
@pytest.mark.parametrize("steps", [-4, 0, 4])
@pytest.mark.parametrize("times", [1, 3])
def test_the_bound_of_int16_sums(path, x_levels, steps, times):
    """All codes at an end of their grid, so that every addition adds the most; the width just
    under, at and just over what is added before the sums become int32, once and several times."""
    most = 2 * 15 * (128 if x_levels == 128 else 15)
    assert ADDITIONS[x_levels] == 32767 // most
    width = times * 32 * ADDITIONS[x_levels] + 32 * steps
    ends = (127, -128) if x_levels == 128 else (15, -15)
    for code in ends:
        for index in (0, 15):
            x, weight = constant(3, width, code), constant_weight(16, width, index, 16)
            assert (product(x, weight).double() == code * (2 * index - 15) * width).all()


@pytest.mark.parametrize("codes", [(127, 127), (127, -128), (-128, 127), (-128, -128)])
@pytest.mark.parametrize("width", [1024, 1040, 65536, 131056])
def test_the_largest_int8_sums(path, codes, width):
    """Up to the widest rows that it takes, where a sum almost reaches 2^31."""
    x, weight = constant(3, width, codes[0]), constant(8, width, codes[1])
    y = ops.int8_linear(x.codes, x.scales, weight.codes, weight.scales, torch.float32)
    assert abs(codes[0] * codes[1] * width) < 2**31
    assert (y == torch.tensor(float(codes[0] * codes[1] * width))).all()


@pytest.mark.parametrize("levels", [(256, 256), (256, 128), (128, 256)])
def test_the_largest_sums_of_256_levels(path, levels):
    for codes in ((127, 127), (-128, -128), (127, -128), (-128, 127)):
        x = constant(2, 32768, codes[0])
        weight = Int8Matrix(*constant(8, 32768, codes[1])[:3], levels[1])
        expected = exact(x, weight, levels[0]).double().float()
        assert torch.equal(product(x, weight, x_levels=levels[0]), expected)


@pytest.mark.parametrize("levels", PACKED_LEVELS)
def test_the_widest_packed_rows(path, levels):
    for code in (127, -128):
        for index in (0, levels - 1):
            x, weight = constant(1, 130944, code), constant_weight(16, 130944, index, levels)
            assert (product(x, weight) == float(code * (2 * index - (levels - 1)) * 130944)).all()


# ---- rounding and rows


def test_rounding_is_that_of_torch(path):
    """Scales that make results of all sizes: subnormal, halfway between two numbers, too large."""
    x, weight = random_quantized(9, 256, 128), random_int8(64, 256, 128)
    sizes = torch.logspace(-45, 30, 9)
    x = x._replace(scales=sizes)
    for dtype in DTYPES:
        expected = scaled(exact(x, weight), x.scales, weight.scales, dtype)
        assert torch.equal(product(x, weight, dtype), expected)


@pytest.mark.parametrize("op", ["packed_linear", "int8_linear", "int8_offset_linear"])
def test_a_row_without_a_number_stays_alone(path, op):
    assert_a_row_without_a_number_stays_alone(getattr(ops, op), op)


def test_threads_change_no_bit(path):
    x, weight = random_quantized(300, 1024, 16), random_weight(1040, 1024, 16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(product(x, weight))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


# ---- floats


@pytest.mark.parametrize("rows", [0, 1, 3, 8, 9, 31])
@pytest.mark.parametrize(
    ("block", "width"), [(1, 32), (16, 160), (32, 96), (64, 192), (128, 512), (256, 512)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_float_activations(path, dtype, block, width, rows):
    """As near to the product in float64 as plain torch is, in its sums of another order: within
    fp32's and the dtype's rounding."""
    x = random_rows(rows, width, dtype)
    for levels in PACKED_LEVELS:
        weight = random_weight(40, width, levels)
        operands = (x, weight.codes, weight.scales, levels, block)
        rotated = x.double()
        if block > 1:
            signs = torch.ones(1, 1, dtype=torch.float64)
            while len(signs) < block:
                signs = torch.kron(torch.tensor([[1.0, 1], [1, -1]], dtype=torch.float64), signs)
            rotated = (rotated.reshape(-1, block) @ signs).reshape(x.shape) * block**-0.5
        values = unpack(weight.codes, levels).double() * weight.scales.double()[:, None]
        sizes = rotated.abs() @ values.abs().t()
        bound = 2e-6 * sizes + torch.finfo(dtype).eps * (rotated @ values.t()).abs()
        for op in (ops.packed_weight_linear, reference_of("packed_weight_linear")):
            result = op(*operands)
            assert result.dtype == dtype
            assert ((result.double() - rotated @ values.t()).abs() <= bound).all()


# ---- what torch asks of an op, and refusals


@pytest.mark.parametrize("op", SERVED_ON_CPUS)
def test_opcheck(op):
    for rows in (1, 17):
        opcheck(getattr(ops, op), arguments(op, rows=rows))


def refusal(op, wrong):
    with pytest.raises(RuntimeError) as refused:
        getattr(ops, op)(**wrong)
    return str(refused.value)


@pytest.mark.parametrize("op", SERVED_ON_CPUS)
def test_a_wrong_argument_is_refused_in_the_references_words(op):
    """Fakes of the arguments go to the reference."""
    shorter = [
        ({**named(op), name: value[..., :-1].contiguous()}, f"^{op}: ")
        for name, value in named(op).items()
        if isinstance(value, torch.Tensor)
    ]
    for wrong, words in (*wrong_tensors(op), *wrong_numbers(op), *shorter):
        if re.search(r"\bmeta\b", words):
            continue  # torch itself chooses the fake for a tensor on meta
        actual = refusal(op, wrong)
        with FakeTensorMode() as fake:
            expected = refusal(op, tree_map_only(torch.Tensor, fake.from_tensor, wrong))
        assert actual == expected
        assert re.search(words, actual)


def test_rows_that_could_leave_int32_are_refused():
    x, weight = constant(1, 1 << 17, 1), constant(8, 1 << 17, 1)
    with pytest.raises(RuntimeError, match="int8_linear: the width 131072 exceeds 131071"):
        ops.int8_linear(x.codes, x.scales, weight.codes, weight.scales, torch.float32)
