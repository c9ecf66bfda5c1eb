"""Rotary positions between one product and attention, with their way back."""

import pytest
import torch

from questtrain.kernels.elementwise import split_rotary
from questtrain.kernels.ops.rotary import rotate
from tests.kernels.arguments import random_angles, random_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch of itself
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),  # the compiler looks
]

WIDTH, LENGTH, BATCH = 32, 7, 2


@pytest.fixture(params=[(3, 3), (6, 2), (4, 1)], ids=str)
def heads(request):
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16])
def operands(request, heads):
    qkv = random_rows(BATCH * LENGTH, (heads[0] + 2 * heads[1]) * WIDTH, request.param)
    return qkv.view(BATCH, LENGTH, -1), *random_angles(LENGTH, WIDTH)


def plain(qkv, cos, sin, heads):
    """By torch's own operations."""
    sizes = (heads[0], heads[1], heads[1])
    q, k, v = qkv.view(BATCH, LENGTH, sum(sizes), WIDTH).split(sizes, 2)
    angles = cos.unsqueeze(1), sin.unsqueeze(1)
    return rotate(q, *angles), rotate(k, *angles), v


def weighted(parts):
    return sum((part.float() * (i + 1)).sin().sum() for i, part in enumerate(parts))


def test_values_and_gradients_are_those_of_the_plain_composition(operands, heads):
    qkv, *angles = operands
    theirs, ours = (qkv.clone().requires_grad_() for _ in range(2))
    expected = plain(theirs, *angles, heads)
    actual = split_rotary(ours * 1, *angles, *heads)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    weighted(expected).backward()
    weighted(actual).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("heads", [(6, 2)], indirect=True)
def test_compiled_it_is_the_same_function(operands, heads):
    qkv, *angles = operands
    compiled = torch.compile(
        lambda x: split_rotary(x * 1, *angles, *heads), fullgraph=True, dynamic=False
    )
    theirs, ours = (qkv.clone().requires_grad_() for _ in range(2))
    expected, actual = split_rotary(theirs * 1, *angles, *heads), compiled(ours)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)
    weighted(expected).backward()
    weighted(actual).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("grad", [False, True])
def test_nothing_is_copied(operands, heads, grad):
    qkv, *angles = operands
    product = qkv.requires_grad_(grad) * 1
    with torch.set_grad_enabled(grad):
        parts = split_rotary(product, *angles, *heads)
    assert {part.untyped_storage().data_ptr() for part in parts} == {
        product.untyped_storage().data_ptr()
    }
