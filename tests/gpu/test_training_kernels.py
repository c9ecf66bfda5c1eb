"""The kernels of the training backward against float64, and `dequantize` bit for bit."""

import pytest
import torch
from torch.library import opcheck

from questtrain.kernels import unpack_bits
from questtrain.kernels.formats import OFFSET_LEVELS
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from tests.gpu.kernel_cases import call, need_kernel, needs_kernels
from tests.kernels.arguments import (
    EPSILON,
    device_generator,
    random_quantized,
    random_rows,
    reference_of,
)

pytestmark = [pytest.mark.gpu, needs_kernels]

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
DTYPES = [BF16, FP16, FP32]
BLOCKS = [1, 16, 32, 64, 128, 256]

SHAPES = [(1, 128), (3, 640), (333, 640), (77, 1792), (333, 2048), (9, 2816), (77, 5632)]
"""Row counts that fill no block of the grid."""

ROUNDED = {BF16: 2**-8, FP16: 2**-11, FP32: 2**-24}
"""Relative error of one rounding to the result's dtype: at most half an ulp."""

ARITHMETIC = 4e-6
"""Error of the fp32 arithmetic before, relative to the largest value of the row: sums of 256 terms
that cancel, the fast exponential, the sums over a row. Of a weight's gradient: relative to the sum
of the absolute terms."""


def random_mask(rows, width, seed=7):
    """Most bits set, as with a trust near 1."""
    bits = torch.randint(
        256, (3, rows, width // 8), device="cuda", generator=device_generator("cuda", seed)
    )
    return (bits[0] | bits[1] | bits[2]).to(torch.uint8)


def no_mask(rows):
    return torch.empty(rows, 0, dtype=torch.uint8, device="cuda")


def rotated_back(grad, mask, block):
    """float64."""
    wide = grad.double()
    if mask.shape[1]:
        wide = torch.where(unpack_bits(mask, 1).bool(), wide, 0.0)
    return hadamard_transform(wide, hadamard_signs(block, grad.device))


def exact_rmsnorm(grad, mask, x, weight, block, residual_grad):
    """The gradient of x, and the terms whose sum over the rows is the weight's."""
    grad_y = rotated_back(grad, mask, block)
    factor = torch.rsqrt(x.double().square().mean(-1, keepdim=True) + EPSILON)
    normalized = x.double() * factor
    scaled = grad_y * weight.double()
    grad_x = factor * (scaled - normalized * (scaled * normalized).mean(-1, keepdim=True))
    if residual_grad is not None:
        grad_x = grad_x + residual_grad.double()
    return grad_x, grad_y * normalized


def exact_swiglu(grad, mask, gate_up, block):
    grad_y = rotated_back(grad, mask, block)
    gate, up = gate_up.double().chunk(2, dim=1)
    sigmoid = gate.sigmoid()
    grad_gate = grad_y * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat((grad_gate, grad_y * gate * sigmoid), dim=1)


def assert_rounded_once(actual, exact, dtype):
    assert actual.shape == exact.shape
    assert actual.dtype == dtype
    assert torch.equal(actual.isnan(), exact.isnan())
    if not exact.numel():
        return
    largest = exact.nan_to_num(0.0).abs().amax(1, keepdim=True)
    error = (actual.double() - exact).abs().nan_to_num(0.0)
    allowed = ROUNDED[dtype] * exact.abs().nan_to_num(0.0) + ARITHMETIC * largest
    assert (error <= allowed).all(), f"{(error / allowed).nan_to_num(0.0).max()} of the bound"


def assert_summed(actual, terms):
    assert actual.dtype == FP32
    assert actual.shape == terms.shape[1:]
    exact = terms.sum(0)
    assert torch.equal(actual.isnan(), exact.isnan())
    error = (actual.double() - exact).abs().nan_to_num(0.0)
    # A term is a value of a rotated row, whose error goes with the largest of them.
    size = terms.abs().nan_to_num(0.0)
    allowed = ARITHMETIC * size.amax(1, keepdim=True).sum(0).maximum(size.sum(0))
    assert (error <= allowed).all()


def compare_hadamard(grad, mask, block):
    actual = call("hadamard_backward", grad, mask, block)
    assert_rounded_once(actual, rotated_back(grad, mask, block), grad.dtype)


def compare_rmsnorm(grad, mask, x, weight, block, residual_grad=None):
    operands = (grad, mask, x, weight, EPSILON, block, residual_grad)
    grad_x, grad_weight = call("rmsnorm_backward", *operands)
    exact, terms = exact_rmsnorm(grad, mask, x, weight, block, residual_grad)
    assert_rounded_once(grad_x, exact, x.dtype)
    assert_summed(grad_weight, terms)


def compare_swiglu(grad, mask, gate_up, block):
    actual = call("swiglu_backward", grad, mask, gate_up, block)
    gates = exact_swiglu(grad, mask, gate_up, block).chunk(2, dim=1)
    for ours, exact in zip(actual.chunk(2, dim=1), gates, strict=True):
        assert_rounded_once(ours, exact, gate_up.dtype)


def norm_operands(rows, width, dtype, weight_dtype=FP32):
    weight = 1 + 0.1 * random_rows(1, width, FP32, "cuda", 2).flatten()
    return random_rows(rows, width, dtype, "cuda", 1), weight.to(weight_dtype)


def compare_all(rows, width, dtype, block=128, masked=True):
    grad = random_rows(rows, width, dtype, "cuda")
    mask = random_mask(rows, width) if masked else no_mask(rows)
    compare_hadamard(grad, mask, block)
    compare_swiglu(grad, mask, random_rows(rows, 2 * width, dtype, "cuda", 3), block)
    x, weight = norm_operands(rows, width, dtype)
    compare_rmsnorm(grad, mask, x, weight, block)
    compare_rmsnorm(
        grad, mask, x, weight.to(dtype), block, random_rows(rows, width, dtype, "cuda", 4)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_backward_of_every_shape(rows, width, dtype):
    compare_all(rows, width, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", BLOCKS)
def test_backward_in_every_block(block, dtype):
    for rows, width in ((33, 256), (7, 1280), (5, 5632)):
        compare_all(rows, width, dtype, block)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_of_narrow_and_wide_rows(dtype):
    for rows, width, block in ((5, 32, 32), (77, 96, 16), (3, 1120, 32), (3, 16384, 128)):
        compare_all(rows, width, dtype, block)


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_a_mask_all_of_it_passes(dtype):
    for width, block in ((640, 128), (2048, 64)):
        compare_all(17, width, dtype, block, masked=False)


@pytest.mark.parametrize("width", [640, 2048, 5632])
def test_more_rows_than_blocks(width):
    """Each block of RMSNorm's takes row after row."""
    grad = random_rows(4099, width, BF16, "cuda")
    x, weight = norm_operands(4099, width, BF16)
    compare_rmsnorm(grad, random_mask(4099, width), x, weight, 128, grad.flip(0))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    compare_all(0, 256, dtype)
    x, weight = norm_operands(0, 256, dtype)
    grad_weight = call("rmsnorm_backward", x, no_mask(0), x, weight, EPSILON, 128)[1]
    assert grad_weight.count_nonzero() == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [1, 128])
def test_a_row_without_a_number_stays_alone(block, dtype):
    """NaN passes where the mask lets it, and not where it does not."""
    rows, width = 9, 1024
    grad, mask = random_rows(rows, width, dtype, "cuda"), random_mask(rows, width)
    grad[2, 9], grad[5, 600] = torch.nan, torch.nan
    mask[2, 1], mask[5, 75] = 0xFF, 0xFE
    compare_hadamard(grad, mask, block)
    gate_up = random_rows(rows, 2 * width, dtype, "cuda", 3)
    x, weight = norm_operands(rows, width, dtype)
    x[7, 3] = gate_up[7, 3] = torch.nan
    compare_swiglu(grad, mask, gate_up, block)
    compare_rmsnorm(grad, mask, x, weight, block)
    result = call("hadamard_backward", grad, mask, block)
    assert result[5].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_gates_far_from_zero(dtype):
    """The sigmoid saturates: no gradient becomes NaN."""
    gates = torch.tensor([-1e4, -100.0, -88.0, -20.0, 0.0, 20.0, 100.0, 1e4], device="cuda")
    gate_up = torch.cat((gates.repeat(16), torch.ones(128, device="cuda"))).to(dtype).unsqueeze(0)
    grad = random_rows(1, 128, dtype, "cuda")
    compare_swiglu(grad, no_mask(1), gate_up, 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16, 32, 64, 128])
def test_dequantize(levels, dtype):
    for rows, width in ((1, 32), (333, 640), (17, 5632), (0, 128)):
        for packed in (False, True) if levels <= 16 else (False,):
            codes, scales, *_ = random_quantized(rows, width, levels, "cuda", packed)
            actual = call("dequantize", codes, scales, levels, dtype)
            expected = reference_of("dequantize")(codes, scales, levels, dtype)
            torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dequantize_codes_of_256_levels(dtype):
    codes = torch.arange(-128, 128, device="cuda").to(torch.int8).repeat(3, 1)
    scales = torch.tensor([1.0, 0.37, torch.nan], device="cuda")
    actual = call("dequantize", codes, scales, OFFSET_LEVELS, dtype)
    expected = ((2 * codes.float() + 1) * scales.unsqueeze(1)).to(dtype)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)


def test_opcheck():
    rows, width = 5, 256
    grad, mask = random_rows(rows, width, BF16, "cuda"), random_mask(rows, width)
    x, weight = norm_operands(rows, width, BF16)
    codes, scales, *_ = random_quantized(rows, width, 16, "cuda")
    cases = {
        "hadamard_backward": (grad, mask, 128),
        "rmsnorm_backward": (grad, mask, x, weight, EPSILON, 128, grad),
        "swiglu_backward": (grad, mask, torch.cat((grad, x), 1), 128),
        "dequantize": (codes, scales, 16, BF16),
    }
    need_kernel(*cases)
    for op, operands in cases.items():
        opcheck(getattr(torch.ops.questtrain, op), operands)


def test_wider_norms_than_the_kernel_takes_are_refused():
    need_kernel("rmsnorm_backward")
    grad = random_rows(1, 16512, BF16, "cuda")
    with pytest.raises(RuntimeError, match="rmsnorm_backward: the width 16512 exceeds 16384"):
        torch.ops.questtrain.rmsnorm_backward(
            grad, no_mask(1), grad, torch.ones(16512, device="cuda"), EPSILON, 128
        )
