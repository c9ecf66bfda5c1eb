"""How the kernels' results are compared with the references'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from questtrain.kernels import container_bits, unpack_bits
from questtrain.kernels.extension import serves
from questtrain.kernels.formats import packed_integers

FLIPPED = 1e-4
"""Codes and mask bits that may differ: values so near the middle between two codes, or the trust,
that the order of fp32 additions decides."""

DIFFERING = {torch.bfloat16: 1e-4, torch.float16: 2e-3, torch.float32: 1.0}
"""Results that may be one ulp off: the kernels scale in fp32 and round that again. A tie of the
second rounding comes up in 2^-16 of bf16's cases and 2^-13 of fp16's."""

MAX_ULPS = {torch.bfloat16: 1, torch.float16: 1, torch.float32: 2}

MEASURED_SCALE = 2e-6
"""Relative error of a row's scale: a sum of K squares in fp32, in another order."""


def has_kernel(op: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"questtrain::{op}", "CUDA")


needs_kernels = pytest.mark.skipif(
    not serves("cuda"),
    reason="needs a CUDA device and `make kernels`",
)


whatever_training_warns_of = [
    # The autograd thread's first product finds no context and makes one, as it should.
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch of itself
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # the compiler looks
]


def need_kernel(*ops: str) -> None:
    """Skips the test where the library has no such kernels."""
    missing = [op for op in ops if not has_kernel(op)]
    if missing:
        pytest.skip(f"the library has no {', '.join(missing)}")


def call(op: str, *arguments: Any) -> Any:
    """The op on CUDA, twice; the second time every block that the allocator hands out is full of
    NaN or 0x7f. Both results must be the same bits."""
    need_kernel(op)
    function = getattr(torch.ops.questtrain, op)
    first = function(*arguments)
    kept = [result.clone() for result in tensors(first)]
    _poison(tensors(first))
    del first
    second = function(*arguments)
    for one, other in zip(kept, tensors(second), strict=True):
        assert same_bits(one, other), f"{op} left memory unwritten, or differs from run to run"
    return second


def tensors(result: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...]:
    if result is None:
        return ()
    return (result,) if isinstance(result, Tensor) else tuple(result)


def same_bits(one: Tensor, other: Tensor) -> bool:
    if one.numel() == 0:
        return one.shape == other.shape
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _poison(results: tuple[Tensor, ...]) -> None:
    for result in results:
        if result.numel():
            result.view(torch.uint8).fill_(0xFF if result.is_floating_point() else 0x7F)
    for size in range(9, 25):
        torch.full((1 << size,), 0xFF, dtype=torch.uint8, device="cuda")


def assert_quantized(
    actual: tuple[Tensor, ...],
    expected: tuple[Tensor, ...],
    levels: int,
    packed: bool = False,
    rounded_before: bool = False,
) -> None:
    """Codes, scales, sums and mask, but for what falls the other way.

    ``rounded_before``: the operand was normalized and rounded to 16 bits first. Where that falls
    the other way, the rms of a row moves by up to 2^-8 of one value's share in it.
    """
    codes, scales, sums, mask = actual
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
    finite = expected[1].isfinite()
    torch.testing.assert_close(scales[~finite], expected[1][~finite], equal_nan=True)
    if not finite.any():
        return
    error = (scales / expected[1] - 1).abs()[finite]
    if rounded_before:
        assert error.median() <= MEASURED_SCALE
        assert error.max() <= 1e-3
    else:
        assert error.max() <= MEASURED_SCALE
    integers = packed_integers(codes, levels) if packed else codes
    theirs = packed_integers(expected[0], levels) if packed else expected[0]
    assert torch.equal(sums[finite], integers.sum(1, dtype=torch.int32)[finite])
    difference = (integers.int() - theirs.int()).abs()[finite]
    assert difference.max() <= 2, "by more than one level"
    assert difference.count_nonzero() <= 2 + FLIPPED * difference.numel()
    flipped = unpack_bits(mask, 1)[finite] != unpack_bits(expected[3], 1)[finite]
    assert flipped.count_nonzero() <= 2 + FLIPPED * flipped.numel()


def assert_linear(actual: Tensor, expected: Tensor) -> None:
    """``expected`` is the float64 result, rounded once."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.isnan(), expected.isnan())
    ulps = (_place(actual) - _place(expected)).abs().masked_fill(expected.isnan(), 0)
    if ulps.numel() == 0:
        return
    assert ulps.max() <= MAX_ULPS[actual.dtype], f"{ulps.max()} ulps"
    assert ulps.count_nonzero() <= 2 + DIFFERING[actual.dtype] * ulps.numel()


def _place(values: Tensor) -> Tensor:
    """Its place in the order of all numbers of its dtype."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16).long()
    sign = 1 << (8 * values.element_size() - 1)
    return torch.where(bits < 0, -(bits & (sign - 1)), bits)


def assert_near(actual: Tensor, expected: Tensor, width: int) -> None:
    """Of a product whose activations are quantized on the way: a row with one code that falls the
    other way is off by about ``1/√K`` of itself; most rows have none."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if actual.numel() == 0:
        return
    difference = (actual.double() - expected.double()).norm(dim=1)
    error = difference / expected.double().norm(dim=1).clamp_min(1e-30)
    assert error.max() <= 2 * width**-0.5
    assert error.median() <= 1e-3


def on(device: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    moved: tuple[Any, ...] = tree_map_only(Tensor, lambda each: each.to(device), arguments)
    return moved


def replaced(
    arguments: tuple[Any, ...], index: int, change: Callable[[Tensor], Tensor]
) -> tuple[Any, ...]:
    return (*arguments[:index], change(arguments[index]), *arguments[index + 1 :])


def can_pack(levels: int) -> bool:
    try:
        container_bits(levels)
    except RuntimeError:
        return False
    return True
