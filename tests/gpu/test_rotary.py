"""The kernel of rotary positions against float64."""

import pytest
import torch
from torch.library import opcheck

from tests.gpu.kernel_cases import call, need_kernel, needs_kernels
from tests.kernels.arguments import random_angles, random_rows

pytestmark = [pytest.mark.gpu, needs_kernels]

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
ROUNDED = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-22}
"""Relative to the length of the pair that is turned."""


def operands(batch, length, heads, width, dtype):
    size = (heads[0] + 2 * heads[1]) * width
    qkv = random_rows(batch * length, size, dtype, "cuda")
    return qkv.view(batch, length, size), *random_angles(length, width, "cuda")


def parts_of(qkv, heads):
    sizes = (heads[0], heads[1], heads[1])
    batch, length, size = qkv.shape
    return qkv.view(batch, length, sum(sizes), size // sum(sizes)).split(sizes, 2)


def assert_turned(actual, before, cos, sin, dtype):
    first, second = before.double().chunk(2, dim=-1)
    cos, sin = (angles.double().unsqueeze(1).chunk(2, dim=-1)[0] for angles in (cos, sin))
    exact = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    length = torch.hypot(first, second).repeat(1, 1, 1, 2)
    assert ((actual.double() - exact).abs() <= ROUNDED[dtype] * length).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("batch", "length", "heads", "width"),
    [
        (1, 1, (1, 1), 16),
        (3, 7, (2, 2), 48),
        (2, 65, (5, 5), 128),
        (4, 512, (16, 16), 64),
        (1, 33, (3, 3), 256),
        (3, 7, (6, 2), 48),
        (2, 65, (12, 1), 128),
        (4, 512, (32, 8), 64),
    ],
)
def test_there_and_back(batch, length, heads, width, dtype):
    need_kernel("rotary_", "join_rotary")
    qkv, cos, sin = operands(batch, length, heads, width, dtype)
    turned = qkv.clone()
    torch.ops.questtrain.rotary_(turned, cos, sin, *heads)
    again = qkv.clone()
    torch.ops.questtrain.rotary_(again, cos, sin, *heads)
    assert torch.equal(turned, again)
    parts, before = parts_of(turned, heads), parts_of(qkv, heads)
    for part, old in zip(parts[:2], before[:2], strict=True):
        assert_turned(part, old, cos, sin, dtype)
    assert torch.equal(parts[2], before[2])

    apart = [part.contiguous() for part in parts]
    joined = parts_of(call("join_rotary", *apart, cos, sin), heads)
    for part, old in zip(joined[:2], apart[:2], strict=True):
        assert_turned(part, old, cos, -sin, dtype)
    assert torch.equal(joined[2], apart[2])


def test_no_tokens():
    need_kernel("rotary_", "join_rotary")
    qkv, cos, sin = operands(0, 5, (4, 2), 32, torch.bfloat16)
    torch.ops.questtrain.rotary_(qkv, cos, sin, 4, 2)
    parts = [part.contiguous() for part in parts_of(qkv, (4, 2))]
    assert call("join_rotary", *parts, cos, sin).shape == (0, 5, 256)


def test_opcheck():
    need_kernel("rotary_", "join_rotary")
    qkv, cos, sin = operands(2, 5, (4, 2), 32, torch.bfloat16)
    parts = [part.contiguous() for part in parts_of(qkv, (4, 2))]
    opcheck(torch.ops.questtrain.rotary_, (qkv, cos, sin, 4, 2))
    opcheck(torch.ops.questtrain.join_rotary, (*parts, cos, sin))


def test_other_head_widths_are_refused():
    need_kernel("rotary_")
    qkv, cos, sin = operands(1, 2, (2, 2), 24, torch.bfloat16)
    with pytest.raises(RuntimeError, match="rotary_: the head width 24 must be a multiple of 16"):
        torch.ops.questtrain.rotary_(qkv, cos, sin, 2, 2)
