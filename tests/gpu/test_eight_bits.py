"""256 levels on the GPU: codes ``q - 128``, and products corrected by the sums of the codes."""

import pytest
import torch

import questtrain.kernels as kernels
from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.kernels import Int8Matrix, RowFormat
from questtrain.quant import PackedLinear, QuantLinear, pack_linear
from tests.gpu.kernel_cases import assert_linear, call, needs_kernels
from tests.kernels.arguments import (
    EPSILON,
    random_quantized,
    random_rows,
    random_weight,
    reference_of,
)

pytestmark = [
    pytest.mark.gpu,
    needs_kernels,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BF16, FP16, FP32]
ALPHA = GAUSSIAN_ALPHA[256]

FLIPPED = 2e-3
"""Codes that may be one off: 1e-4 is what 16 levels are allowed, and 256 lie 17 times as close."""

SHAPES = [
    (0, 8, 128),
    (1, 8, 16),
    (17, 24, 48),
    (64, 2048, 2048),
    (128, 6144, 256),
    (129, 264, 528),
    (300, 2048, 5632),
    (513, 6144, 2048),  # 128 × 192
    (2049, 2688, 2688),  # 128 × 192
    (2100, 2048, 1024),  # 128 × 256
    (2100, 6136, 144),  # 128 × 192, ragged
    (2100, 4104, 144),  # 128 × 256, ragged
    (40, 64, 32768),
]


def assert_codes(actual, expected):
    codes, scales, sums, mask = actual
    assert torch.equal(sums, codes.sum(1, dtype=torch.int32))
    difference = (codes.int() - expected[0].int()).abs()
    assert difference.numel() == 0 or difference.max() <= 1
    assert difference.count_nonzero() <= 2 + FLIPPED * difference.numel()
    torch.testing.assert_close(scales, expected[1], rtol=1e-5, atol=0)
    assert mask.shape == expected[3].shape


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", ["hadamard", "rmsnorm", "add_rmsnorm", "swiglu"])
@pytest.mark.parametrize(
    ("rows", "width", "block"),
    [(0, 256, 128), (1, 128, 128), (77, 2048, 128), (33, 384, 64), (5, 5632, 1), (3, 32768, 128)],
)
def test_quantizers(rows, width, block, form, dtype):
    x, other = (random_rows(rows, width, dtype, "cuda", seed) for seed in (0, 1))
    norm = 1 + 0.1 * random_rows(1, width, FP32, "cuda", 2).flatten()
    operands = {
        "hadamard": (x,),
        "rmsnorm": (x, norm, EPSILON),
        "add_rmsnorm": (x, other, norm, EPSILON),
        "swiglu": (torch.cat([x, other], 1),),
    }[form]
    for trust in (None, 1.1):
        arguments = (*operands, 256, ALPHA, block, False, trust)
        actual = call(f"{form}_quantize", *arguments)
        expected = reference_of(f"{form}_quantize")(*arguments)
        assert_codes(actual[-4:], expected[-4:])


def test_all_codes_occur():
    """Beyond both ends of the grid too: -128 and 127, which stand for -255 and 255."""
    x = torch.linspace(-1, 1, 4096, device="cuda").expand(3, -1).contiguous()
    codes = kernels.hadamard_quantize(x, 256, 1.0, 1).codes
    assert torch.equal(codes[0].unique().cpu(), torch.arange(-128, 128, dtype=torch.int8))
    assert (codes[:, 0] == -128).all()
    assert (codes[:, -1] == 127).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [(256, 256), (256, 16), (16, 256), (128, 256), (16, 16)])
@pytest.mark.parametrize(("rows", "columns", "width"), SHAPES)
def test_products(rows, columns, width, levels, dtype):
    x = random_quantized(rows, width, levels[0], "cuda")
    weight = random_quantized(columns, width, levels[1], "cuda", seed=1)
    arguments = (*x[:3], *weight[:3], *levels, dtype)
    expected = reference_of("int8_offset_linear")(*arguments)
    assert_linear(call("int8_offset_linear", *arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [2048, 6144])
@pytest.mark.parametrize("rows", [3, 200, 2100])
@pytest.mark.parametrize("codes", [(127, 127), (-128, -128), (-128, 127)])
def test_the_largest_integers_do_not_overflow(codes, rows, columns, dtype):
    """±255²·32768, which fp32 holds exactly."""
    operands = []
    for code, count in zip(codes, (rows, columns), strict=True):
        matrix = torch.full((count, 32768), code, dtype=torch.int8, device="cuda")
        scales = torch.full((count,), 2.0**-12, device="cuda")
        operands += [matrix, scales, matrix.sum(1, dtype=torch.int32)]
    y = call("int8_offset_linear", *operands, 256, 256, dtype)
    expected = (2 * codes[0] + 1) * (2 * codes[1] + 1) * 32768 * 2.0**-24
    assert (y == torch.tensor(expected, dtype=dtype, device="cuda")).all()


@pytest.mark.parametrize("rows", [1, 65, 300])
@pytest.mark.parametrize("levels", [(256, 256), (256, 16), (16, 256)])
def test_linears_choose_the_product(levels, rows):
    weights = [Int8Matrix(*random_quantized(64, 256, levels[1], "cuda", seed=1)[:3], levels[1])]
    if levels[1] == 16:
        weights.append(random_weight(64, 256, 16, "cuda"))
    x = random_rows(rows, 256, BF16, "cuda")
    fed = kernels.hadamard_quantize(x, levels[0], ALPHA)
    for weight in weights:
        y = kernels.hadamard_linear(x, RowFormat(levels[0], ALPHA, 128), weight)
        codes = weights[0].codes
        arguments = (*fed[:3], codes, weight.scales, weight.sums, *levels, BF16)
        assert_linear(y, reference_of("int8_offset_linear")(*arguments))


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w8a4"])
def test_a_packed_layer_is_the_trained_one(bits):
    """And compiled, the same to the bit."""
    torch.manual_seed(0)
    layer = QuantLinear(512, 256, bits=bits).cuda().requires_grad_(False)
    packed = pack_linear(layer)
    assert isinstance(packed, PackedLinear)
    compiled = torch.compile(packed, fullgraph=True, dynamic=True)
    for rows in (2, 300):
        x = torch.randn(rows, 512, device="cuda")
        error = (packed(x) - layer(x)).norm() / layer(x).norm()
        assert error <= 1e-3, "a code or two fall the other way"
        assert torch.equal(compiled(x), packed(x))
