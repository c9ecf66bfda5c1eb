"""The attention of one decoding step, against the model's own parts and float64."""

import pytest
import torch

from questtrain.kernels import decode_attention
from questtrain.kernels.ops.decode_attention import HEAD_WIDTHS, attends_in_one_kernel
from tests.kernels.arguments import random_step
from tests.kernels.exact_attention import exact_decode_attention

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
HEADS, WIDTH, CAPACITY = 4, 64, 40


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("position", [0, 1, 17, CAPACITY - 1])
@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
def test_it_is_rotation_cache_and_attention(batch, position, dtype, kv_heads):
    step = (HEADS, WIDTH, CAPACITY, position)
    arguments = random_step(batch, dtype, "cpu", *step, kv_heads=kv_heads)
    expected, keys, values = exact_decode_attention(*arguments)
    y = decode_attention(*arguments)
    assert (y.dtype, y.shape) == (dtype, (batch, HEADS * WIDTH))
    tolerance = max(torch.finfo(dtype).eps, 1e-5)  # one rounding; fp32's scores are of order 10
    torch.testing.assert_close(y.double(), expected, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(arguments[3:5], (keys, values), strict=True):
        assert torch.equal(actual.nan_to_num(7.0), wanted.nan_to_num(7.0)), "one place written"


@pytest.mark.parametrize("position", [CAPACITY, CAPACITY + 5, -1])
def test_a_position_outside_the_cache_is_nan_and_writes_nothing(position):
    arguments = random_step(2, torch.bfloat16, capacity=CAPACITY, position=CAPACITY)
    arguments[5].fill_(position)
    kept = [cache.clone() for cache in arguments[3:5]]
    assert decode_attention(*arguments).isnan().all()
    assert all(map(torch.equal, arguments[3:5], kept))


@pytest.mark.parametrize("which", ["q", "k", "v", "keys", "values"])
def test_a_nan_shows_in_its_head_only(which):
    arguments = random_step(2, torch.float32, "cpu", HEADS, WIDTH, CAPACITY, 17)
    operand = dict(zip(("q", "k", "v", "keys", "values"), arguments, strict=False))[which]
    if operand.dim() == 4:
        operand[1, 2, 5, 7] = torch.nan
    else:
        operand[1, 2 * WIDTH + 7] = torch.nan
    lost = decode_attention(*arguments).view(2, HEADS, WIDTH).isnan()
    assert lost[1, 2].sum() == (1 if which in ("v", "values") else WIDTH)
    assert lost.sum() == lost[1, 2].sum()


def test_compiled_without_a_break():
    def run(*arguments):
        return decode_attention(*arguments) + 1

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for position in (3, 4):
        step = {"position": position, "kv_heads": 2}
        one, other = (random_step(2, torch.bfloat16, **step) for _ in range(2))
        assert torch.equal(compiled(*one), run(*other))
        for actual, expected in zip(one[3:5], other[3:5], strict=True):
            assert torch.equal(actual.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_heads_that_do_not_make_the_width_are_refused():
    arguments = list(random_step(2, torch.bfloat16, heads=4, width=64))
    arguments[3] = arguments[4] = torch.zeros(2, 3, 40, 64, dtype=torch.bfloat16)
    message = r"keys must be \[2, heads, capacity, width\] with heads·width 256, not \[2, 3, 40"
    with pytest.raises(RuntimeError, match=message):
        decode_attention(*arguments)


def test_queries_of_no_whole_number_of_heads_a_key_are_refused():
    arguments = list(random_step(2, torch.bfloat16, heads=4, width=64, kv_heads=2))
    arguments[0] = torch.zeros(2, 3 * 64, dtype=torch.bfloat16)
    message = r"q must be \[2, a multiple of 2 heads of 64\], not \[2, 192\]"
    with pytest.raises(RuntimeError, match=message):
        decode_attention(*arguments)


def test_an_odd_width_is_refused():
    arguments = random_step(2, torch.bfloat16, heads=4, width=64)
    caches = (torch.zeros(2, 256, 40, 1, dtype=torch.bfloat16) for _ in range(2))
    with pytest.raises(RuntimeError, match=r"keys must have places and an even width, not shape"):
        decode_attention(*arguments[:3], *caches, *arguments[5:])


def test_the_kernel_is_for_gpus():
    assert not attends_in_one_kernel(torch.zeros(1, 1, 1, HEAD_WIDTHS[0]))
