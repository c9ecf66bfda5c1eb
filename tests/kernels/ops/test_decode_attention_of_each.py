"""The attention of one decoding step where each sequence has a position of its own."""

from importlib import import_module

import pytest
import torch

from questtrain.kernels import decode_attention
from tests.kernels.arguments import random_steps
from tests.kernels.exact_attention import exact_attention_of_each

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HEADS, WIDTH, CAPACITY = 4, 64, 40
POSITIONS = (0, 17, CAPACITY - 1, 1, 5)
NOWHERE = (-1, CAPACITY, 3, 1 << 40)


def same(a, b):
    return torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("positions", [(), (17,), POSITIONS, NOWHERE])
@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_each_is_attended_at_its_own_position(positions, dtype, kv_heads):
    step = random_steps(positions, dtype, "cpu", HEADS, WIDTH, CAPACITY, kv_heads=kv_heads)
    expected, keys, values = exact_attention_of_each(*step)
    y = decode_attention(*step)
    assert (y.dtype, y.shape) == (dtype, (len(positions), HEADS * WIDTH))
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    close = {"rtol": tolerance, "atol": tolerance, "equal_nan": True}
    torch.testing.assert_close(y.double(), expected, **close)
    assert same(step[3], keys)
    assert same(step[4], values), "one place written, in sequences that have one"


def test_a_sequence_is_the_same_bits_in_any_batch():
    together = random_steps((*POSITIONS, *NOWHERE), torch.float32, kv_heads=2)
    alone = [tensor.clone() for tensor in together]
    y = decode_attention(*together)
    for index in range(len(y)):
        one = [tensor[index : index + 1].clone() for tensor in alone]
        assert same(decode_attention(*one), y[index : index + 1])
        for cache, whole in zip(one[3:5], together[3:5], strict=True):
            assert same(cache, whole[index : index + 1])


def test_compiled_without_a_break():
    def run(*arguments):
        return decode_attention(*arguments) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    one, other = (random_steps(POSITIONS, torch.bfloat16, kv_heads=2) for _ in range(2))
    assert torch.equal(compiled(*one), run(*other))
    assert all(map(same, one[3:5], other[3:5]))


def test_behind_a_mask_it_is_the_same(monkeypatch):
    """Without a look at the positions, as on a GPU without the kernel."""
    module = import_module("questtrain.kernels.ops.decode_attention")
    monkeypatch.setattr(module, "has_values", lambda _: False)
    step = random_steps((*POSITIONS, *NOWHERE), torch.float32, kv_heads=2)
    expected, keys, values = exact_attention_of_each(*step)
    y = decode_attention(*step)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert same(step[3], keys)
    assert same(step[4], values)


@pytest.mark.parametrize(
    ("index", "wrong", "message"),
    [
        (5, torch.zeros(3, dtype=torch.int64), r"position must be a scalar or \[2\], not of sh"),
        (5, torch.zeros(2, 1, dtype=torch.int64), r"position must be a scalar or \[2\], not of"),
        (5, torch.zeros(2, dtype=torch.int32), "position must be int64, not torch.int32"),
        (5, torch.zeros(4, dtype=torch.int64)[::2], "position must be contiguous"),
        (5, torch.tensor(3), r"cos must be \[64\], not \[2, 64\]"),
        (6, torch.zeros(64), r"cos must have 2 dimensions, not shape \[64\]"),
        (7, torch.zeros(3, 64), r"sin must be \[2, 64\], not \[3, 64\]"),
        (7, torch.zeros(2, 64).double(), "sin must be float32, not torch.float64"),
    ],
)
def test_positions_and_angles_that_do_not_go_together_are_refused(index, wrong, message):
    step = list(random_steps((3, 4), torch.float32))
    step[index] = wrong
    with pytest.raises(RuntimeError, match=f"^decode_attention: {message}"):
        decode_attention(*step)
