"""The CUDA kernels against their references: `make test-gpu`, after `make kernels`.

The references run on the same tensors on the GPU: products in float64, quantizers in fp32. Every
op is called through `call`, which fills what it must overwrite with rubbish first.
"""

import re

import pytest
import torch

from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.kernels.formats import packed_integers
from questtrain.kernels.library import OPS
from tests.gpu.kernel_cases import (
    assert_linear,
    assert_near,
    assert_quantized,
    call,
    can_pack,
    has_kernel,
    need_kernel,
    needs_kernels,
    same_bits,
    tensors,
)
from tests.kernels.arguments import (
    EPSILON,
    FUSED_LINEARS,
    QUANTIZERS,
    WIDTH,
    WITHOUT_CUDA,
    arguments,
    random_quantized,
    random_rows,
    random_sparse_weight,
    random_weight,
    reference_of,
)

pytestmark = [pytest.mark.gpu, needs_kernels]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
FORMATS = [
    (levels, packed)
    for levels in (2, 3, 4, 8, 16, 32, 64, 128)
    for packed in (False, True)
    if not packed or can_pack(levels)
]


def compare_quantizer(op, operands, levels=16, block=128, packed=False, trust=1.1, rounded=False):
    form = (levels, GAUSSIAN_ALPHA[levels], block, packed, trust)
    actual = call(op, *operands, *form)
    expected = reference_of(op)(*operands, *form)
    if op == "add_rmsnorm_quantize":
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0, equal_nan=True)
        actual, expected = actual[1:], expected[1:]
    assert_quantized(actual, expected, levels, packed, rounded)


def compare_linear(op, *operands):
    assert_linear(call(op, *operands), reference_of(op)(*operands))


def operands_of(form, rows, width, dtype, weight_dtype=FP32):
    """The same as `arguments` draws, of any shape."""
    x = random_rows(rows, width, dtype, "cuda")
    weight = 1 + 0.1 * random_rows(1, width, weight_dtype, "cuda", 2).flatten()
    match form:
        case "hadamard":
            return (x,)
        case "rmsnorm":
            return (x, weight, EPSILON)
        case "add_rmsnorm":
            return (x, random_rows(rows, width, dtype, "cuda", 1), weight, EPSILON)
        case _:
            return (random_rows(rows, 2 * width, dtype, "cuda"),)


def test_every_op_has_a_kernel():
    assert {op for op in OPS if not has_kernel(op)} == set(WITHOUT_CUDA)


# ---- quantizers


@pytest.mark.parametrize(("levels", "packed"), FORMATS)
def test_quantize_to_every_format(levels, packed):
    x = random_rows(77, 2048, BF16, "cuda")
    compare_quantizer("hadamard_quantize", (x,), levels, packed=packed)
    compare_quantizer("hadamard_quantize", (x.float(),), levels, 32, packed, trust=None)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("block", [1, 16, 32, 64, 128, 256])
def test_quantize_in_every_block(block, dtype):
    for width in (256, 5632):
        x = random_rows(33, width, dtype, "cuda")
        compare_quantizer("hadamard_quantize", (x,), block=block)
        compare_quantizer("hadamard_quantize", (x,), block=block, packed=True, trust=None)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize(
    ("rows", "width", "block"),
    [
        (0, 128, 128),
        (1, 32, 32),
        (17, 32, 16),
        (1, 128, 128),
        (300, 128, 128),
        (77, 96, 32),
        (17, 1024, 128),
        (300, 1152, 128),
        (17, 11008, 128),
        (3, 14336, 128),
        (2, 28672, 128),
        (1, 32768, 256),
        (20000, 384, 128),
    ],
)
def test_quantize_every_shape(rows, width, block, dtype):
    x = random_rows(rows, width, dtype, "cuda")
    compare_quantizer("hadamard_quantize", (x,), block=block)
    compare_quantizer("hadamard_quantize", (x,), 4, block, packed=True)


@pytest.mark.parametrize("form", ["rmsnorm", "add_rmsnorm", "swiglu"])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
def test_fused_quantizers(form, dtype):
    for rows, width, block, packed in (
        (300, 2048, 128, False),
        (17, 11008, 128, True),
        (1, 128, 128, False),
        (77, 384, 64, True),
        (5, 256, 1, False),
        (0, 256, 128, False),
    ):
        operands = operands_of(form, rows, width, dtype, FP32 if packed else dtype)
        rounded = dtype != FP32
        compare_quantizer(f"{form}_quantize", operands, 16, block, packed, rounded=rounded)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("block", [1, 128])
@pytest.mark.parametrize("op", QUANTIZERS)
def test_rows_of_zeros_outliers_and_no_numbers(op, block, dtype):
    """A row of zeros stays finite, NaN and infinity show in the scale, other rows stay as they
    are."""
    x = random_rows(8, 1024 if op == "swiglu_quantize" else 512, dtype, "cuda")
    x[1] = 0
    x[2, 5] = torch.nan
    x[3, 7] = torch.inf
    x[4, 9] = 1e30 if dtype != FP16 else 6e4
    x[5, 300] = 1000
    rest = arguments(op, "cuda", 8, dtype)[1:-5]
    operands = (x, *(_widened(value, x) for value in rest))
    rounded = dtype != FP32 and op != "hadamard_quantize"
    for levels in (2, 3, 16):
        compare_quantizer(op, operands, levels, block, rounded=rounded)
    scales = call(op, *operands, 16, 2.5, block, False, None)[-3]
    assert scales[2].isnan()
    assert not scales[3].isfinite()
    assert scales[[0, 5, 6, 7]].isfinite().all()


def _widened(value, x):
    """An operand of `arguments`, repeated to x's width."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.cat([value] * (x.shape[1] // WIDTH), dim=-1)


# ---- products


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [
        (0, 8, 16),
        (1, 8, 16),
        (17, 24, 48),
        (77, 8, 128),
        (300, 2048, 2048),
        (64, 4096, 11008),
        (17, 1032, 28672),
        (129, 6144, 2064),
        (1000, 136, 528),
        (3, 128256, 512),
    ],
)
def test_int8_linear(rows, columns, width, dtype):
    x = random_quantized(rows, width, 16, "cuda")
    weight = random_quantized(columns, width, 128, "cuda", seed=1)
    compare_linear("int8_linear", *x[:2], weight.codes, weight.scales, dtype)


def test_largest_integers_do_not_overflow():
    """127 · 127 · 28672 in every element, and its negative."""
    x = torch.full((33, 28672), 127, dtype=torch.int8, device="cuda")
    weight = torch.full((48, 28672), 127, dtype=torch.int8, device="cuda")
    weight[::2] = -127
    x_scales, scales = (
        torch.full((33,), 1e-4, device="cuda"),
        torch.full((48,), 1e-3, device="cuda"),
    )
    compare_linear("int8_linear", x, x_scales, weight, scales, FP32)
    packed = torch.full((48, 28672 // 2), 0xFF, dtype=torch.uint8, device="cuda")
    packed[::2] = 0
    sums = x.sum(1, dtype=torch.int32)
    compare_linear("packed_linear", x, x_scales, sums, packed, scales, 16, FP32)


@pytest.mark.parametrize(("rows", "columns", "width"), [(300, 2048, 2048), (17, 264, 528)])
def test_every_tile_gives_the_same_product(rows, columns, width):
    """Bit for bit: sums are exact, and all tiles scale alike."""
    need_kernel("int8_linear", "int8_linear_tile")
    x = random_quantized(rows, width, 16, "cuda")
    weight = random_quantized(columns, width, 16, "cuda", seed=1)
    operands = (*x[:2], weight.codes, weight.scales, BF16)
    with pytest.raises(RuntimeError, match=r"tile must be 0 to \d+, not -1") as refusal:
        torch.ops.questtrain.int8_linear_tile(*operands, -1)
    last = int(re.search(r"0 to (\d+)", str(refusal.value)).group(1))
    expected = call("int8_linear", *operands)
    products = {tile: _product_of_tile(*operands, tile) for tile in range(last + 1)}
    served = {tile: y for tile, y in products.items() if y is not None}
    assert len(served) > last // 2
    assert [tile for tile, y in served.items() if not same_bits(y, expected)] == []


def _product_of_tile(*operands):
    """None where that tile cannot do the shape."""
    try:
        return call("int8_linear_tile", *operands)
    except RuntimeError as error:
        if "not supported" in str(error):
            return None
        raise


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 32, 33, 64])
def test_packed_linear_of_every_row_count(rows, levels):
    for columns, width in ((16, 128), (48, 384), (2048, 2048)):
        x = random_quantized(rows, width, 16, "cuda")
        weight = random_weight(columns, width, levels, "cuda")
        compare_linear("packed_linear", *x[:3], weight.codes, weight.scales, levels, BF16)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [(1, 4096, 11008), (7, 2560, 6912), (1, 128256, 1024), (2, 16, 28672), (33, 1040, 14336)],
)
def test_packed_linear_shapes(rows, columns, width, dtype):
    for levels in (2, 4, 16):
        x = random_quantized(rows, width, 128, "cuda")
        weight = random_weight(columns, width, levels, "cuda")
        compare_linear("packed_linear", *x[:3], weight.codes, weight.scales, levels, dtype)


@pytest.mark.parametrize("dtype", [BF16, FP16])
@pytest.mark.parametrize("levels", [2, 3, 4, 16])
@pytest.mark.parametrize("op", FUSED_LINEARS)
def test_fused_linears(op, levels, dtype):
    form = op.removesuffix("_quantize_linear")
    for rows, columns, width in (
        (0, 32, 256),
        (1, 16, 256),
        (1, 4096, 2048),
        (2, 2048, 5632),
        (3, 48, 2304),
        (8, 512, 2048),
        (1, 1024, 11008),
        (2, 256, 16384),
    ):
        operands = operands_of(form, rows, width, dtype, dtype if rows % 2 else FP32)
        weight = random_weight(columns, width, levels, "cuda")
        rest = (16, GAUSSIAN_ALPHA[16], weight.codes, weight.scales, levels)
        actual = tensors(call(op, *operands, *rest))
        expected = tensors(reference_of(op)(*operands, *rest))
        assert_near(actual[-1], expected[-1], width)
        assert all(map(same_bits, actual[:-1], expected[:-1])), "x + residual, rounded once"


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("rows", [0, 1, 17, 77, 300])
def test_int4_linear(rows, dtype):
    for columns, width in ((8, 64), (24, 192), (2056, 2048), (264, 5632)):
        x = random_quantized(rows, width, 16, "cuda", packed=True)
        weight = random_weight(columns, width, 16, "cuda")
        compare_linear("int4_linear", *x[:3], *weight[:3], dtype)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("rows", [0, 1, 17, 77, 300])
def test_int4_sparse_linear(rows, dtype):
    for columns, width in ((16, 128), (48, 384), (2064, 2048), (272, 5632)):
        x = random_quantized(rows, width, 16, "cuda", packed=True)
        weight = random_sparse_weight(columns, width, "cuda")
        compare_linear("int4_sparse_linear", *x[:2], *weight[:3], dtype)


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
def test_unpack(levels):
    for rows, width in ((0, 128), (1, 32), (17, 96), (300, 11008)):
        packed = random_weight(rows, width, levels, "cuda").codes
        expected = packed_integers(packed, levels)
        assert torch.equal(call("unpack", packed, levels), expected)


@pytest.mark.parametrize(
    "op", ["int8_linear", "packed_linear", "int4_linear", "int4_sparse_linear"]
)
def test_a_row_without_a_number_stays_alone(op):
    operands = arguments(op, "cuda", rows=5)
    scales = operands[1].clone()
    scales[2], scales[4] = torch.nan, torch.inf
    operands = (operands[0], scales, *operands[2:])
    compare_linear(op, *operands)


def test_more_rows_than_a_kernel_takes_are_refused():
    need_kernel("packed_linear", "rmsnorm_quantize_linear")
    with pytest.raises(RuntimeError, match="65 rows"):
        torch.ops.questtrain.packed_linear(*arguments("packed_linear", "cuda", rows=65))
    operands = arguments("rmsnorm_quantize_linear", "cuda", rows=1025)
    with pytest.raises(RuntimeError, match="1025 rows"):
        torch.ops.questtrain.rmsnorm_quantize_linear(*operands)
