"""What the CPU's library does to rows, on every path: against the references and float64."""

import pytest
import torch

from questtrain.config import NumberFormat, QuantConfig
from questtrain.config.gaussian import GAUSSIAN_ALPHA
from questtrain.kernels import unpack_bits
from questtrain.kernels.elementwise import hadamard_rows
from questtrain.kernels.formats import BLOCKS, LEVELS
from questtrain.kernels.hadamard import hadamard_signs, hadamard_transform
from questtrain.quant.build import build_quantizer
from tests.kernels.arguments import random_rows, reference_of

pytestmark = pytest.mark.usefixtures("path")
ops = torch.ops.questtrain
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
MOST_TIES = 1e-4
"""Of the codes, that may be the neighbour's: the rotation's sums are rounded in another order."""


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize(
    ("rows", "width", "block"), [(33, 256, 128), (5, 640, 128), (3, 96, 32), (9, 96, 1)]
)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_rows_are_quantized_as_by_the_reference(levels, rows, width, block, dtype):
    x = random_rows(rows, width, dtype)
    alpha, trust = GAUSSIAN_ALPHA[levels], levels / (levels - 1)
    form = (levels, alpha, block, False, trust)
    codes, scales, sums, mask = ops.hadamard_quantize(x, *form)
    expected = reference_of("hadamard_quantize")(x, *form)
    off = (codes.int() - expected[0].int()).abs()
    assert off.max() <= 2
    assert (off > 0).float().mean() <= MOST_TIES
    torch.testing.assert_close(scales, expected[1], rtol=1e-6, atol=0)
    if block == 1:
        assert torch.equal(scales, expected[1])
    assert torch.equal(sums, codes.sum(1, dtype=torch.int32))
    differ = unpack_bits(mask, 1) != unpack_bits(expected[3], 1)
    assert differ.float().mean() <= MOST_TIES


@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("block", [1, 128])
def test_packed_codes_hold_the_same_integers(levels, block):
    x = random_rows(9, 384, FP32)
    form = (levels, GAUSSIAN_ALPHA[levels], block)
    plain, packed = (ops.hadamard_quantize(x, *form, bits, None) for bits in (False, True))
    assert torch.equal(ops.unpack(packed[0], levels), plain[0])
    assert torch.equal(packed[2], plain[2])
    assert packed[3].shape == (9, 0)


def test_they_are_the_trained_quantizers_bit_for_bit():
    """Which rotates by the library, too."""
    levels = 16
    quantizer = build_quantizer(NumberFormat("4"), QuantConfig(), "hadamard", 512)
    x = random_rows(64, 512, FP32)
    form = (levels, GAUSSIAN_ALPHA[levels], 128, False, levels / (levels - 1))
    codes, scales, _, mask = ops.hadamard_quantize(x, *form)
    assert torch.equal(ops.dequantize(codes, scales, levels, FP32), quantizer(x))
    assert torch.equal(unpack_bits(mask, 1).bool(), quantizer.mask(x))


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e18])
def test_rows_of_zeros_and_of_what_is_no_number(value):
    x = random_rows(4, 128, FP32)
    x[1] = 0
    x[1, 3] = value
    form = (16, 2.513931, 128, False, 16 / 15)
    for ours, expected in zip(
        ops.hadamard_quantize(x, *form),
        reference_of("hadamard_quantize")(x, *form),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_gradients_go_back_as_in_float64(block, dtype):
    grad = random_rows(17, 512, dtype)
    mask = torch.randint(256, (17, 64), dtype=torch.uint8)
    ours = ops.hadamard_backward(grad, mask, block)
    masked = torch.where(unpack_bits(mask, 1).bool(), grad.double(), 0.0)
    expected = hadamard_transform(masked, hadamard_signs(block)) if block > 1 else masked
    assert ours.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(ours.double(), expected, rtol=eps, atol=8 * eps)


def test_a_gradient_is_dropped_whatever_it_is():
    grad = random_rows(2, 128, FP32)
    grad[0, 5] = float("nan")
    mask = torch.full((2, 16), 255, dtype=torch.uint8)
    mask[0, 0] = 0b11011111
    ours = ops.hadamard_backward(grad, mask, 128)
    assert torch.isfinite(ours).all()
    expected = reference_of("hadamard_backward")(grad, mask, 128)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
def test_values_are_the_references_bit_for_bit(levels, packed, dtype):
    if packed and levels > 16:
        pytest.skip("packed codes have up to 16 levels")
    x = random_rows(7, 160, FP32)
    codes, scales, *_ = ops.hadamard_quantize(x, levels, 2.0, 32, packed, None)
    ours = ops.dequantize(codes, scales, levels, dtype)
    assert torch.equal(ours, reference_of("dequantize")(codes, scales, levels, dtype))


def test_a_rotation_has_its_gradient():
    x = random_rows(3, 256, FP32).view(3, 2, 128).requires_grad_()
    grad = random_rows(3, 256, FP32, seed=1).view(3, 2, 128)
    signs = hadamard_signs(64)
    y = hadamard_rows(x, 64)
    torch.testing.assert_close(y, hadamard_transform(x, signs))
    (ours,) = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(ours, hadamard_transform(grad, signs))
