"""The kernels of a backward in FP8 against their references, code for code."""

import pytest
import torch
from torch.library import opcheck

from questtrain.kernels.formats import E4M3
from questtrain.kernels.ops.fp8 import LARGEST
from tests.gpu.kernel_cases import call, need_kernel, needs_kernels, replaced
from tests.kernels.arguments import (
    arguments,
    device_generator,
    random_quantized,
    random_rows,
    reference_of,
)

pytestmark = [pytest.mark.gpu, needs_kernels]

needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
    reason="needs tensor cores that multiply FP8",
)

SHAPES = [(16, 16), (16, 48), (48, 16), (80, 208), (128, 128), (1040, 640), (2000, 2064)]
"""Multiples of 16 that fill no tile, and some that do."""


def operands(rows, width, size=1e-5):
    """Gradient, the weight's scales, and those of x."""
    generator = device_generator("cuda", 1)
    scales = 0.5 + torch.rand(width + rows, device="cuda", generator=generator)
    grad = (size * random_rows(rows, width, torch.float32, "cuda")).bfloat16()
    return grad, 0.01 * scales[:width].clone(), scales[width:].clone()


def assert_same_codes(actual, expected):
    """Bit for bit, but for the sign of NaN."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype == E4M3
    actual, expected = actual.cpu().float(), expected.float()
    assert torch.equal(actual.isnan(), expected.isnan())
    assert torch.equal(actual.nan_to_num(), expected.nan_to_num())


def compare_gradients(*tensors):
    actual = call("fp8_gradients", *tensors)
    expected = reference_of("fp8_gradients")(*(tensor.cpu() for tensor in tensors))
    for ours, theirs in zip(actual[2:], expected[2:], strict=True):
        assert torch.equal(ours.cpu(), theirs), "another power of two"
    for ours, theirs in zip(actual[:2], expected[:2], strict=True):
        assert_same_codes(ours, theirs)
    return actual


@pytest.mark.parametrize(("rows", "width"), SHAPES)
def test_gradients_of_every_shape(rows, width):
    compare_gradients(*operands(rows, width))


@pytest.mark.parametrize("size", [1e-15, 1e-7, 1.0, 1e8])
def test_gradients_of_every_size(size):
    compare_gradients(*operands(256, 640, size))


def test_gradients_without_a_size():
    for value in (0.0, torch.nan, torch.inf):
        grad, *scales = operands(32, 64)
        _, _, *units = compare_gradients(torch.full_like(grad, value), *scales)
        assert units == [1.0, 1.0]


def test_no_rows():
    by_rows, by_columns, *units = compare_gradients(*operands(0, 64))
    assert by_rows.shape == (0, 64)
    assert by_columns.shape == (64, 0)
    assert units == [1.0, 1.0]
    assert call("fp8_transpose", arguments("fp8_transpose", "cuda", 0)[0], 16).shape == (256, 0)


def test_what_saturates_and_what_is_no_number():
    grad, *scales = operands(512, 640)
    grad[3, 5], grad[4, 6] = 1e30, -1e30
    grad[5, 7], grad[6, 8], grad[7, 9] = torch.inf, -torch.inf, torch.nan
    by_rows, by_columns, *_ = compare_gradients(grad, *scales)
    for operand in (by_rows.float(), by_columns.float().t()):
        assert torch.equal(operand.isnan(), ~grad.isfinite())
        assert operand[3, 5] == -operand[4, 6] == LARGEST


@pytest.mark.parametrize(("rows", "width"), SHAPES)
@pytest.mark.parametrize("levels", [2, 3, 4, 8, 16])
def test_transpose(rows, width, levels):
    for packed in (False, True):
        codes = random_quantized(rows, width, levels, "cuda", packed).codes
        expected = random_quantized(rows, width, levels, "cuda").codes.t()
        assert_same_codes(call("fp8_transpose", codes, levels), expected.float().to(E4M3).cpu())


@needs_fp8
@pytest.mark.parametrize(("rows", "width", "columns"), [(512, 640, 640), (2048, 2048, 5632)])
def test_products(rows, width, columns):
    """Of both operands, on the tensor cores: the values' own, but for the order of the sum."""
    grad = operands(rows, width)[0]
    x, weight = (random_quantized(n, columns, 16, "cuda", seed=n) for n in (rows, width))
    by_rows, by_columns, *units = call("fp8_gradients", grad, weight.scales, x.scales)
    one = torch.ones(1, device="cuda")
    for operand, unit, codes in (
        (by_rows, units[0], weight.codes),
        (by_columns, units[1], x.codes),
    ):
        other = call("fp8_transpose", codes, 16).t()
        product = torch._scaled_mm(operand, other, unit, one, out_dtype=torch.float32)
        exact = operand.double() @ codes.double() * unit.double()
        assert (product - exact).norm() <= 1e-3 * exact.norm()


def test_opcheck():
    need_kernel("fp8_gradients", "fp8_transpose")
    for op in ("fp8_gradients", "fp8_transpose"):
        opcheck(getattr(torch.ops.questtrain, op), arguments(op, "cuda"))


def test_what_the_kernels_do_not_take_is_refused():
    need_kernel("fp8_gradients", "fp8_transpose")
    good = operands(32, 32)
    narrow = (good[0][:, :24].contiguous(), good[1][:24].clone(), good[2])
    for tensors, message in (
        (replaced(good, 0, torch.Tensor.float), "grad must be bfloat16, not torch.float32"),
        (replaced(good, 1, lambda scales: scales[:16]), r"weight_scales must be \[32\]"),
        (narrow, "the width 24 must be a multiple of 16"),
        ((good[0][:8], good[1], good[2][:8]), "the number of rows 8 must be a multiple of 16"),
    ):
        with pytest.raises(RuntimeError, match=f"fp8_gradients: {message}"):
            torch.ops.questtrain.fp8_gradients(*tensors)
    with pytest.raises(
        RuntimeError, match="fp8_transpose: levels of packed codes must be 2 to 16, not 32"
    ):
        torch.ops.questtrain.fp8_transpose(random_quantized(32, 32, 16, "cuda").codes, 32)
